"""How a model is put together, so that it can be held that a patch which was taken off has left nothing behind.

It is read off the model without a forward pass: classes, forwards, hooks, layers, attributes, a sample of the bits of
weights and buffers, what trains, its configurations, and the functions and classes of the modules in which its layers
are defined, where libraries put patches too.
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

Structure: TypeAlias = Mapping[str, Any]
"""What stands at each place, by the place in words."""

SAMPLED = 4096
"""How many numbers of each weight are kept."""
_LAYER, _WEIGHT, _BUFFER = "the layer ", "the weight ", "the buffer "
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_OF_TORCH = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training", "forward")
_PLAIN = (bool, int, float, str, bytes, tuple, type(None))


def structure_of(model: Any, processor: Any = None) -> Structure:
    """The structure of a model as it is, and of its tokenizer or processor, if one is given."""
    found: dict[str, Any] = {**configurations_of(model), **facts_of_processor(processor)}
    classes: set[type] = set()
    for name, module in model.named_modules():
        found.update((f"{name or 'the model'}{place}", value) for place, value in _of_module(module))
        found.update((f"{_LAYER}{name}.{key}", child) for key, child in module._modules.items())
        classes.update(type(module).__mro__)
    for name, parameter in model.named_parameters():
        found[f"{_WEIGHT}{name}"] = bits_of(parameter)
        found[f"{_WEIGHT}{name}, which is another object"] = parameter  # the optimizer has the one from before
        found[f"{_WEIGHT}{name}, whose requires_grad is"] = parameter.requires_grad
    for name, buffer in model.named_buffers():
        found[f"{_BUFFER}{name}"] = bits_of(buffer)
    homes = {one.__module__ for one in classes} - {"builtins", "abc", "torch.nn.modules.module"}
    for kind in classes:
        if kind.__module__ in homes:
            where = f"{kind.__module__}.{kind.__qualname__}"
            found.update((f"{where}.{key}", value) for key, value in vars(kind).items() if callable(value))
    for home in {*homes, "torch.nn.functional"}:
        names = vars(sys.modules[home]) if home in sys.modules else {}
        found.update((f"{home}.{key}", value) for key, value in names.items() if callable(value))
    return found


def changed(before: Structure, after: Structure) -> list[str]:
    """The places at which something else stands than before, or nothing; of what is new, tensors and layers count."""
    gone = [place for place, value in before.items() if place not in after or not _same(value, after[place])]
    return gone + [place for place in after if place not in before and place.startswith((_LAYER, _WEIGHT, _BUFFER))]


def configurations_of(model: Any) -> Structure:
    """The fields of a model's configuration and of the one by which it generates, each as JSON."""
    found = {}
    for kind in ("config", "generation_config"):
        read = getattr(getattr(model, kind, None), "to_dict", dict)
        named = f"{kind.removesuffix('_config')} configuration's".removeprefix("config ")
        found.update({f"the {named} {key}": json.dumps(value, default=str) for key, value in read().items()})
    return found


def facts_of_processor(processor: Any) -> Structure:
    """What rows were prepared by, and what is saved with the model: vocabulary, special tokens and chat template."""
    tokenizer = getattr(processor, "tokenizer", processor)
    if not hasattr(tokenizer, "special_tokens_map"):
        return {}
    facts = {name: getattr(tokenizer, name, None) for name in ("chat_template", "padding_side", "special_tokens_map")}
    facts["vocabulary"] = len(tokenizer)
    return {f"the tokenizer's {name}": json.dumps(value, default=str) for name, value in facts.items()}


def _of_module(module: Any) -> Iterator[tuple[str, Any]]:
    attributes = vars(module)
    yield "", type(module)
    yield ".forward", module.forward
    for key in _HOOKS:
        yield f" {key.strip('_')}", tuple(map(id, attributes.get(key, {}).values()))
    for key, value in attributes.items():
        if key not in _OF_TORCH and key not in _HOOKS and not key.startswith("_"):
            yield f".{key}", value


def bits_of(parameter: Any) -> Any:
    """Some of a weight's numbers, as bytes; of a weight that is elsewhere or sharded, the object itself."""
    import torch

    if (
        type(parameter) not in (torch.nn.Parameter, torch.Tensor)
        or parameter.device.type == "meta"
        or not parameter.numel()
    ):
        return parameter
    numbers = parameter.detach().flatten()
    some = numbers[:: max(1, numbers.numel() // SAMPLED)]
    return bytes(some.contiguous().view(torch.uint8).cpu().numpy())


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, (types.MethodType, *_PLAIN)) and type(one) is type(other):
        return bool(one == other)
    return False
