"""The dtypes in which a run stores weights, computes and trains, and float32 copies of lower-precision weights."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sftcore.config.processes import uses_deepspeed, uses_fsdp
from sftcore.config.settings.values import ADAPTER_DTYPES
from sftcore.core.errors import ModelError, OptionTypeError
from sftcore.core.types import Plan
from sftcore.model.unwrap import causal_model, num_weights

if TYPE_CHECKING:
    import torch
    from transformers import TrainingArguments


_MASTER = "sftcore_master_weights"
_MADE_FOR_A_DTYPE = ("modules_to_save", "trainable_tokens_delta")
"""Trained copies of the base's modules and rows, which must stay in the base's dtype to work."""


def get_kbit_device_map() -> dict[str, int] | None:
    """The `device_map` for a quantised model: this process's own accelerator, or None on a CPU.

    >>> import torch
    >>> get_kbit_device_map() is None or torch.accelerator.is_available()
    True
    """
    import torch
    from accelerate import PartialState

    return {"": PartialState().local_process_index} if torch.accelerator.is_available() else None


# --- What a run says of its dtypes ----------------------------------------------------------------------------------
def dtype_notes(model: Any, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Notes on the dtypes of weights, compute and adapter, and on the memory of a quantised base."""
    trained = sorted({_name(one.dtype) for one in model.parameters() if one.requires_grad})
    held = sorted({_name(one.dtype) for one in _frozen_or_all(model) if one.dtype.is_floating_point})
    quantised = quantisation_of(model)
    weights = f"{quantised} and {' and '.join(held)}" if quantised else " and ".join(held)
    autocast = "bfloat16" if settings.get("bf16") else "float16" if settings.get("fp16") else None
    own = (quantised and _compute_dtype(model)) or " and ".join(held)
    compute = f"{autocast} (autocast)" if autocast else own
    notes = [f"dtypes: weights {weights}, compute {compute}, {_what_trains(model)} {' and '.join(trained)}"]
    if quantised:
        used, half = weights_bytes(model)
        notes.append(f"memory of the weights: {used / 2**20:,.1f} MiB, {100 * used / half:.1f}% of bfloat16")
    if wants_master_weights(model, settings):
        notes.append(
            f"the optimizer steps on float32 master copies of the {_what_trains(model)}'s {_below_float32(model)}"
        )
    elif below := _below_float32(model):
        notes.append(
            f"trained in {below} without master copies, so updates that are small compared with a weight are lost; "
            "master_weights: true keeps them"
        )
    return tuple(notes)


def other_dtype(model: Any, plan: Plan) -> str:
    """The dtype of most of a loaded model's weights, where the run asks for another; empty if it is that one.

    A few weights may differ: transformers keeps some in float32. DeepSpeed makes them in a dtype of its own.
    """
    asked = _name(plan.model.dtype)
    if plan.model.dtype is None or asked == "auto" or quantisation_of(model) or uses_deepspeed(plan.settings):
        return ""
    held: Counter[str] = Counter()
    for parameter in _frozen_or_all(model):
        if parameter.dtype.is_floating_point:
            held[_name(parameter.dtype)] += num_weights(parameter)
    most = next((name for name, _ in held.most_common(1)), asked)
    return "" if most == {"half": "float16", "float": "float32", "double": "float64"}.get(asked, asked) else most


def quantisation_of(model: Any) -> str:
    """`4-bit nf4 double`, `8-bit`, the name of another method, or an empty text if the model is not quantised."""
    base = causal_model(model)
    if getattr(base, "hf_quantizer", None) is None:
        return ""
    config = base.hf_quantizer.quantization_config
    if getattr(config, "load_in_4bit", False):
        double = " double" if config.bnb_4bit_use_double_quant else ""
        return f"4-bit {config.bnb_4bit_quant_type}{double}"
    if getattr(config, "load_in_8bit", False):
        return "8-bit"
    return str(getattr(config.quant_method, "value", config.quant_method))


def forget_unpacked(model: Any) -> bool:
    """Whether a file's packed weights were turned back into floats; such a model is then an ordinary one.

    While transformers holds it for quantised, it refuses to train or save it.
    """
    base = causal_model(model)
    quantiser = getattr(base, "hf_quantizer", None)
    if quantiser is None:
        return False
    method = getattr(quantiser.quantization_config, "quant_method", None)
    if getattr(method, "value", method) != "gguf" or not all(one.dtype.is_floating_point for one in base.parameters()):
        return False
    quantiser.remove_quantization_config(base)
    return True


def weights_bytes(model: Any) -> tuple[int, int]:
    """The bytes that the base's weights take, including quantisation scales, and would take in bfloat16."""
    used = count = 0
    for parameter in _frozen_or_all(model):
        state = getattr(parameter, "quant_state", None)
        count += math.prod(state.shape) if state is not None else parameter.numel()
        used += parameter.numel() * parameter.element_size()
        used += sum(one.numel() * one.element_size() for one in _scales(parameter, state))
    return used, 2 * count


def _scales(parameter: Any, state: Any) -> Iterator[torch.Tensor]:
    if state is not None:
        nested = getattr(state, "state2", None)
        yield state.absmax
        if nested is not None:
            yield from (nested.absmax, nested.code)
    elif getattr(parameter, "SCB", None) is not None:
        yield parameter.SCB


def _frozen_or_all(model: Any) -> list[Any]:
    """The base's parameters: those that are not PEFT's, or all of them if there is no adapter."""
    if not hasattr(model, "peft_config"):
        return list(model.parameters())
    return [one for name, one in model.named_parameters() if not one.requires_grad and ".lora_" not in name]


def _what_trains(model: Any) -> str:
    return "adapter" if hasattr(model, "peft_config") else "training"


def _compute_dtype(model: Any) -> str:
    config = causal_model(model).hf_quantizer.quantization_config
    return _name(config.bnb_4bit_compute_dtype) if getattr(config, "load_in_4bit", False) else ""


def _below_float32(model: Any) -> str:
    found = {_name(one.dtype) for one in model.parameters() if one.requires_grad and one.element_size() < 4}
    return " and ".join(sorted(found))


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


# --- Adapters in bfloat16, and master copies ------------------------------------------------------------------------
def cast_adapter(model: Any, dtype: str) -> None:
    """Cast the adapter's trained weights to `dtype`; copies of the base's own modules keep theirs.

    Raises:
        OptionTypeError: it is neither float32 nor bfloat16.
    """
    import torch

    if dtype not in ADAPTER_DTYPES:
        raise OptionTypeError(
            f'adapter_dtype is {" or ".join(ADAPTER_DTYPES)}, got "{dtype}".', where="SFTConfig.adapter_dtype"
        )
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not any(part in name for part in _MADE_FOR_A_DTYPE):
            parameter.data = parameter.data.to(getattr(torch, dtype))


def wants_master_weights(model: Any, settings: Mapping[str, Any]) -> bool:
    """Whether the optimizer updates float32 copies: if asked for, or if an adapter trains below float32."""
    asked = settings.get("master_weights")
    if not _below_float32(model) or uses_fsdp(settings) or uses_deepspeed(settings):
        return False
    return hasattr(model, "peft_config") if asked is None else bool(asked)


def add_master_weights(optimizer: torch.optim.Optimizer) -> int:
    """Make the optimizer update float32 copies of its lower-precision parameters; returns how many it has copied.

    A bfloat16 weight of 1.0 cannot change by less than 1/256; its copy can, and the weight follows once the updates add
    up. The copies are part of the optimizer's state dict, so that a run resumes with exactly the weights it had.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    >>> optimizer = torch.optim.SGD([weight], lr=0.001)
    >>> add_master_weights(optimizer)
    1
    >>> for _ in range(5):
    ...     weight.grad = torch.ones_like(weight)
    ...     optimizer.step()
    >>> weight.item()  # bfloat16's nearest to 0.995; without the copy it would still be 1.0
    0.99609375

    Raises:
        ModelError: the optimizer already holds state for its parameters, which the copies would not have.
    """
    import torch

    if optimizer.state:
        raise ModelError(
            f"{type(optimizer).__name__} creates its state before the first step, so it cannot use float32 copies.",
            where="SFTConfig.adapter_dtype",
            fix="Choose another optimizer, such as adamw_torch, or adapter_dtype: float32.",
        )
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    for group in optimizer.param_groups:
        for place, parameter in enumerate(group["params"]):
            if parameter.element_size() < 4:
                copy = parameter.detach().float().requires_grad_()
                pairs.append((parameter, copy))
                group["params"][place] = copy

    def before_step(*_: Any) -> None:
        for parameter, copy in pairs:
            copy.grad = None if parameter.grad is None else parameter.grad.float()

    def after_step(*_: Any) -> None:
        with torch.no_grad():
            for parameter, copy in pairs:
                parameter.copy_(copy)
                # the optimizer's zero_grad only reaches the copies
                parameter.grad = copy.grad = None

    def with_copies(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, _MASTER: [copy.detach() for _, copy in pairs]}

    def take_copies(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        saved = state.get(_MASTER, [])
        with torch.no_grad():
            for (_, copy), found in zip(pairs, saved, strict=bool(saved)):
                copy.copy_(found)
        return {key: value for key, value in state.items() if key != _MASTER}

    optimizer.register_step_pre_hook(before_step)
    optimizer.register_step_post_hook(after_step)
    optimizer.register_state_dict_post_hook(with_copies)
    optimizer.register_load_state_dict_pre_hook(take_copies)
    return len(pairs)


# --- Quantised bases ------------------------------------------------------------------------------------------------
def prepare_quantised(model: Any, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Prepare a quantised base for training an adapter on it; returns notes on what was done.

    Without `prepare_in_int8_kwargs` the base is frozen, and tensors that are not quantised keep their dtype, except
    for float16, which becomes float32 because it overflows in norms and head. With them, PEFT's
    `prepare_model_for_kbit_training` casts everything to float32, or `layer_norm_names` only the parameters with those
    names.
    """
    from peft import prepare_model_for_kbit_training

    given = settings.get("prepare_in_int8_kwargs")
    wanted = {"use_gradient_checkpointing": bool(settings.get("gradient_checkpointing")), **(given or {})}
    names = wanted.pop("layer_norm_names", None)
    if given is not None and names is None:
        prepare_model_for_kbit_training(model, **wanted)
        raised = "PEFT's prepare_model_for_kbit_training cast everything that is not quantised to float32"
    else:
        raised = _freeze_and_raise(model, names)
        if wanted["use_gradient_checkpointing"]:
            model.enable_input_require_grads()
    keep_gradients(model)
    return (f"{quantisation_of(model)} base frozen{raised and '; '}{raised}",)


def keep_gradients(model: Any) -> None:
    """Keep bitsandbytes from changing a quantised model at evaluation in a way that training cannot undo.

    bitsandbytes 0.50 repacks 4-bit weights for AVX512 at the first evaluation, and their kernel has no gradient:
    training would go on without an error, but without the gradients through these layers. `state_dict` unpacks them,
    but with scales that were rounded to bfloat16; a model that was never evaluated keeps the exact scales.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False
            module.state_dict()
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_once)


def _freeze_and_raise(model: Any, names: list[str] | None) -> str:
    import torch

    raised = 0
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        asked = any(part in name for part in names) if names else parameter.dtype == torch.float16
        if asked and parameter.dtype in (torch.float16, torch.bfloat16) and not hasattr(parameter, "quant_state"):
            parameter.data, raised = parameter.data.float(), raised + 1
    if names and raised:
        # float32 norms pass float32 on to a head that stayed in the weights' dtype
        head = model.get_output_embeddings()
        head.register_forward_pre_hook(lambda module, args: (args[0].to(module.weight.dtype), *args[1:]))
    return f"{raised} of its other tensors were cast to float32" if raised else ""


def _once(record: logging.LogRecord) -> bool:
    """Log a message only once: 8-bit layers of bitsandbytes report their cast in every call."""
    known = record.msg in _SAID
    _SAID.add(record.msg)
    return not known


_SAID: set[str] = set()


def running_dtype(model: Any, args: TrainingArguments) -> str:
    """The dtype in which attention runs: the autocast's, or else that of the weights."""
    if args.bf16 or args.fp16:
        return "bfloat16" if args.bf16 else "float16"
    return _name(model.dtype)
