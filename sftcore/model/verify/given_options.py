"""What plugins ask of `from_pretrained`: what is theirs to say, and whose the argument is that fails."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sftcore.core.errors import SFTCoreError, UnknownKeyError
from sftcore.core.registry import ActivePlugins, Bound
from sftcore.core.types import LoadOptions, ModelRequest, Plan
from sftcore.model.unwrap import causal_model
from sftcore.model.verify.asked_for import ELSEWHERE
from sftcore.util.claims import spelled

_OF_REQUEST = {
    "dtype": "dtype",
    "torch_dtype": "dtype",
    "revision": "revision",
    "trust_remote_code": "trust_remote_code",
}
"""Arguments of `from_pretrained` that a loader takes from its request, by the field that they are there."""


def hold_options(one: Bound, options: LoadOptions, request: ModelRequest) -> None:
    """Hold that a plugin leaves to the run which model is loaded, in which dtype, and whether its code may run.

    Raises:
        FaultyPluginError: it gives an argument that the request has, with another value.
    """
    for key, field in [*_OF_REQUEST.items(), ("pretrained_model_name_or_path", "name")]:
        asked = getattr(request, field)
        given = str(options.kwargs.get(key, asked)).removeprefix("torch.")
        if key in options.kwargs and given != str(asked) and not (field == "dtype" and asked in (None, "auto")):
            fault = f"gives {key}={options.kwargs[key]!r}, and the run asks for {asked!r}; which model is loaded"
            raise one.origin("load_options").fault(f"{fault} is not for it to say")


def unknown_argument(error: Exception, plan: Plan, plugins: ActivePlugins) -> SFTCoreError | None:
    """The error for an argument that neither `from_pretrained` nor the model knows; None for what is something else.

    Args:
        error: of the loader, or the one that names the loader, with its own as the cause.
    """
    # what transformers does not know of its keyword arguments, it hands to the model's class
    cause = error.__cause__ if isinstance(error, SFTCoreError) else error
    named = re.search(r"unexpected keyword argument '(\w+)'", str(cause)) if isinstance(cause, TypeError) else None
    if named is None:
        return None
    if named[1] in plan.model.init_kwargs:
        return UnknownKeyError(named[1], _known_to_transformers(plan.model), where="model_init_kwargs")
    for one, options in plugins.all("load_options", request=plan.model):
        if named[1] in options.kwargs:
            what = f'gives "{named[1]}", which from_pretrained does not know, nor the model'
            return one.origin("load_options").fault(what)
    return None


def _known_to_transformers(request: ModelRequest) -> set[str]:
    """What `from_pretrained` takes: its own arguments, and the fields of the model's configuration."""
    import transformers

    method = transformers.PreTrainedModel.from_pretrained
    own = set(inspect.signature(method).parameters) | set(
        re.findall(r'kwargs\.pop\("(\w+)"', inspect.getsource(method))
    )
    config = transformers.AutoConfig.from_pretrained(
        request.name, revision=request.revision, trust_remote_code=request.trust_remote_code
    )
    return {name for name in own | set(config.to_dict()) if not name.startswith("_")} - {"kwargs", "model_args", "self"}


def said_of_options(plan: Plan, plugins: ActivePlugins, model: Any) -> tuple[str, ...]:
    """What the plugins of others ask for that makes another model of the saved one."""
    fields = {*causal_model(model).config.to_dict(), *causal_model(model).config.attribute_map} - {*ELSEWHERE}
    said = []
    for one, options in plugins.all("load_options", request=plan.model):
        asked = [f"{key}={value!r}" for key, value in options.kwargs.items() if key in fields]
        if asked and not one.entry.is_own:
            said.append(f"{spelled(one)} asks for {', '.join(asked)} in the model's configuration")
    return tuple(said)


@contextmanager
def naming_others(plan: Plan, plugins: ActivePlugins) -> Iterator[None]:
    """Around the loading of a model: an error says which plugins of others have a part in it, and what they ask for."""
    try:
        yield
    except SFTCoreError as error:
        with suppress(SFTCoreError):  # the error itself may be that one of them cannot be asked
            asked = {
                one.entry.label: list(options.kwargs)
                for one, options in plugins.all("load_options", request=plan.model)
            }
            takes_part = [*plugins.answers("load_model"), *plugins.answers("load_options")]
            takes_part += [one for one in plugins.answers("attention_backend") if not one.selection.default]
            others = {one.entry.label: spelled(one) for one in takes_part if not one.entry.is_own}
            said = [
                f"{name} ({', '.join(asked[label])})" if asked.get(label) else name for label, name in others.items()
            ]
            if said and not any(name in error.what for name in others.values()):
                error.fix = f"{error.fix} Plugins of others have a part in it: {', '.join(said)}.".strip()
        raise
