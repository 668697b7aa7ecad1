"""Names of modules in an adapter's configuration, compared with those that the model has, by PEFT's own rules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sftcore import Problem
from sftcore.plugin_api import nearest

FUSED_EXPERTS = ("w1", "w2", "w3", "gate_proj", "up_proj", "down_proj", "gate_up_proj")
"""Layers of experts that transformers 5 holds as one tensor, and PEFT finds by the name that they had before."""

NOT_ADAPTED = ("norm", "ln_", "act", "drop", "rotary", "loss")
"""Parts of the names of layers that an adapter cannot be put on."""

_SHOWN = 12


def unknown_names(config: Mapping[str, Any], module_names: Sequence[str]) -> Iterator[Problem]:
    """Problems with names that match no module: PEFT passes over them, and what was meant would not be trained.

    Args:
        config: a PEFT configuration as plain values.
        module_names: of the model, as in `named_modules`.
    """
    fused = any(name.rpartition(".")[2] == "experts" for name in module_names)
    targets = config.get("target_modules")
    if isinstance(targets, str):
        yield from _pattern(targets, module_names, fused=fused)
    else:
        for name in targets or ():
            found = any(one == name or one.endswith(f".{name}") for one in module_names)
            if not found and not (fused and str(name).rpartition(".")[2] in FUSED_EXPERTS):
                yield _unknown("target_modules", name, _adapted(module_names))
    indices = config.get("trainable_token_indices")
    whole = {"modules_to_save": config.get("modules_to_save") or ()}
    whole["trainable_token_indices"] = indices if isinstance(indices, Mapping) else ()
    for option, names in whole.items():
        for name in names:
            if not any(one.endswith(name) for one in module_names):
                yield _unknown(option, name, module_names)


def _pattern(pattern: str, module_names: Sequence[str], *, fused: bool) -> Iterator[Problem]:
    """Problems with a text, which PEFT takes for a regular expression of whole names."""
    if pattern == "all-linear":
        return
    try:
        expression = re.compile(pattern)
    except re.error as error:
        yield Problem(f'target_modules "{pattern}" is not a regular expression: {error}.', fix="Write a list of names.")
        return
    if fused or any(expression.fullmatch(one) for one in module_names):
        return
    if any(one == pattern or one.endswith(f".{pattern}") for one in module_names):
        yield Problem(
            f'target_modules "{pattern}" is a text, which PEFT takes for a regular expression of whole names, and no '
            "module's name is that.",
            fix=f'Write a list: ["{pattern}"].',
        )
        return
    layers = _adapted(module_names)
    if pattern.replace("_", "").isalnum() or pattern == "all_linear":
        near = nearest(pattern, ["all-linear", *_last_parts(layers, 1)])
        yield Problem(f'target_modules "{pattern}" matches no module of the model.{near}', fix=_shown(layers))
    else:
        yield Problem(f'target_modules "{pattern}" matches the whole name of no module.', fix=_shown(layers))


def _adapted(module_names: Sequence[str]) -> list[str]:
    """The layers, without what holds others and without those that an adapter cannot be put on."""
    parents = {name.rpartition(".")[0] for name in module_names}
    layers = [name for name in module_names if name not in parents]
    return [name for name in layers if not any(part in name.rpartition(".")[2].lower() for part in NOT_ADAPTED)]


def _unknown(option: str, name: Any, module_names: Sequence[str]) -> Problem:
    depth = str(name).count(".") + 1
    near = nearest(str(name), _last_parts(module_names, depth))
    return Problem(f'{option} names "{name}", and no module of the model is called so.{near}', fix=_shown(module_names))


def _last_parts(module_names: Iterable[str], depth: int) -> list[str]:
    """The last parts of the names, each once, without numbers alone."""
    found = dict.fromkeys(".".join(name.split(".")[-depth:]) for name in module_names)
    return [name for name in found if not name.isdigit()]


def _shown(module_names: Sequence[str]) -> str:
    parents = {name.rpartition(".")[0] for name in module_names}
    names = _last_parts([name for name in module_names if name not in parents], 1)
    more = ", …" if len(names) > _SHOWN else ""
    return f"Its layers: {', '.join(names[:_SHOWN])}{more}."
