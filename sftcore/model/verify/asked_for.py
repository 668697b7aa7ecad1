"""Whether a loaded model is the one that was asked for: its dtype, its revision, the arguments of `from_pretrained`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from sftcore.core.errors import ModelError
from sftcore.core.registry import Bound
from sftcore.core.types import LoadOptions, Plan
from sftcore.model.precision import other_dtype, quantisation_of
from sftcore.model.unwrap import causal_model, is_peft_model
from sftcore.model.verify.as_saved import other_configuration, other_weights
from sftcore.util.claims import refused, spelled

if TYPE_CHECKING:
    from sftcore.core.types import ModelRequest

T = TypeVar("T")
ELSEWHERE = (
    "quantization_config", "dtype", "torch_dtype", "attn_implementation", "use_cache", "num_labels",
    "trust_remote_code", "revision",
)  # fmt: skip
"""Arguments that are looked at by themselves, or that are not the model's."""


def watched(value: T) -> tuple[T, set[str]]:
    """A value like this one of attrs, and the names of its fields that were read since: what was not was ignored.

    >>> request, read = watched(LoadOptions({"subfolder": "a"}))
    >>> request.kwargs, read
    ({'subfolder': 'a'}, {'kwargs'})
    """
    read: set[str] = set()
    kind: Any = type(value)
    fields = [one.name for one in attrs.fields(kind)]

    class Watched(kind):  # type: ignore[misc]
        def __getattribute__(self, name: str) -> Any:
            if name in fields:
                read.add(name)
            return super().__getattribute__(name)

    made = object.__new__(Watched)
    for name in fields:
        object.__setattr__(made, name, getattr(value, name))
    return made, read


def hold_asked_for(one: Bound, model: Any, plan: Plan, options: LoadOptions, read: set[str]) -> tuple[str, ...]:
    """Hold that the loader did what was asked of it; what the run has to say of it.

    Args:
        one: the loader.
        options: of all plugins and the user, merged, as the loader was given them.
        read: which fields of its request and of the options it has read.

    Raises:
        ModelError: its weights have another dtype.
        BrokenPluginError: it did something else than was asked for, with what came.
    """
    if held := other_dtype(model, plan):
        raise ModelError(
            f"{spelled(one)} loaded the weights in {held}, and the run asks for {plan.model.dtype}.",
            where=f"model {plan.model.name}",
            fix=f"Set the dtype to {held} (model: {{dtype: {held}}}, or model_init_kwargs), or use another loader.",
        )
    config = causal_model(model).config
    asked = plan.model.revision
    if asked is not None and "revision" not in read and not Path(plan.model.name or "").exists():
        fault = f'the run asks for the revision "{asked}", and it never reads request.revision'
        raise refused(one, fault, "Hand it to from_pretrained.")
    if not is_peft_model(model) and (fault := _other_revision(config, plan.model)):
        raise refused(one, fault, "Hand request.revision to from_pretrained.")
    if plan.model.init_kwargs and not {"kwargs", "init_kwargs"} & read:
        given = ", ".join(plan.model.init_kwargs)
        raise refused(
            one, f"the run asks for {given}, and it never reads options.kwargs", "Hand it to from_pretrained."
        )
    for key, value in options.kwargs.items():
        if fault := _other_argument(model, config, key, value):
            raise refused(one, fault, "Hand options.kwargs to from_pretrained.")
    if fault := other_configuration(model, plan.model, options):
        raise refused(one, fault, "Load the model that the run names.")
    if one.entry.is_own:
        return ()
    fault, note = other_weights(model, plan.model)
    if fault:
        raise refused(one, fault, "Load the weights of the model that the run names.")
    return (f"{spelled(one)}: {note}",) if note else ()


def _other_revision(config: Any, request: ModelRequest) -> str:
    """What is wrong where the weights are of another commit than the revision's; empty where that is not known."""
    held, asked = getattr(config, "_commit_hash", None), request.revision
    if asked is None or held is None or request.name is None or Path(request.name).exists():
        return ""
    wanted = asked if re.fullmatch(r"[0-9a-f]{40}", asked) else _commit_in_cache(request.name, asked)
    if wanted is None or held == wanted:
        return ""
    return f'it loaded the commit {held[:12]}, and the run asks for the revision "{asked}", which is {wanted[:12]}'


def _commit_in_cache(name: str, revision: str) -> str | None:
    """The commit that a branch or tag was when the hub was asked last; None where nothing of it is here."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(path).parent.name if isinstance(path, str) else None


def _other_argument(model: Any, config: Any, key: str, asked: Any) -> str:
    """What is wrong where an argument of `from_pretrained` that can be seen in the model is not there."""
    if key == "quantization_config" and asked is not None:
        undone = getattr(asked, "dequantize", False)
        return "" if undone or quantisation_of(model) else "it was asked for a quantised model, and this one is not"
    if key in ("load_in_4bit", "load_in_8bit") and asked:
        return "" if quantisation_of(model) else f"it was asked for {key}, and the model is not quantised"
    if key in ELSEWHERE:
        return ""
    fields = [one.to_dict() for one in (config, config.get_text_config())]
    held = [one[key] for one in fields if key in one]
    if not held or any(_holds(one, asked) for one in held):
        return ""
    return f"it was asked for {key}={asked!r}, and the model has {held[0]!r}"


def _holds(held: Any, asked: Any) -> bool:
    """Whether a field of a configuration is what was asked for; transformers adds to mappings what they leave out."""
    if isinstance(asked, Mapping) and isinstance(held, Mapping):
        return all(key in held and _holds(held[key], value) for key, value in asked.items())
    if isinstance(asked, (list, tuple)) and isinstance(held, (list, tuple)):
        return list(asked) == list(held)
    return bool(held == asked) or str(held) == str(asked).removeprefix("torch.")
