"""The tokenizer or processor of a run's model: of one that is loaded by name, and of a ready object."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftcore.config.installed import Installed
from sftcore.config.plugins.bound import bind
from sftcore.config.probe import reads_images
from sftcore.config.selections import default_selections
from sftcore.config.settings.templates import refuse_large
from sftcore.core.door import Origin
from sftcore.core.errors import ModelError, SFTCoreError, near_name
from sftcore.core.registry import ActivePlugins
from sftcore.core.types import KINDS, ModelRequest, Plan
from sftcore.data.source.tokenizers import tokenizer_folder
from sftcore.model.unwrap import causal_model

if TYPE_CHECKING:
    from sftcore.config.setup import Setup

_PROCESSOR_NEEDS = ("torchvision", "num2words", "pillow", "sentencepiece", "tiktoken", "protobuf", "av")
"""Libraries that some processors and tokenizers need, as transformers names them in its errors."""

_UNKNOWN = "Unrecognized processing class"
"""How transformers' error begins where a folder holds nothing that it reads a tokenizer from."""

_SMALL = ("tokenizer_config.json", "special_tokens_map.json")
_GIVE_ONE = "pass processing_class=AutoTokenizer.from_pretrained(…)"


def load_processor(plan: Plan, plugins: ActivePlugins) -> Any:
    """The tokenizer or processor of a model that is named, before any weight is read.

    Raises:
        ModelError: there is none, or it cannot be loaded.
    """
    return _loaded(plan.model, plugins)


def processor_of(model: Any, setup: Setup) -> Any:
    """The tokenizer or processor of a run's model, which is a name or a ready object.

    A ready model has the one that it carries, else that of the name it was loaded by. If it reads no images, it gets
    the tokenizer alone, also where its name is that of a model that does.

    Raises:
        ModelError: a ready model says no name; there is no tokenizer, or it cannot be loaded.
    """
    if isinstance(model, str):
        return load_processor(setup.plan, setup.plugins)
    carried = next(_carried(model), None)
    if carried is not None:
        return carried
    name, revision = _named_by(model)
    if not name:
        raise ModelError(
            f"{type(causal_model(model)).__name__} does not say where its tokenizer is: its config._name_or_path is "
            "empty.",
            where="model",
            fix=f"{_GIVE_ONE[0].upper()}{_GIVE_ONE[1:]} to SFTTrainer.",
        )
    request = ModelRequest(name, revision, trust_remote_code=setup.plan.model.trust_remote_code)
    found = _loaded(request, _loader_of(request, setup), ready=True)
    return found if reads_images(causal_model(model).config) else getattr(found, "tokenizer", found)


def _carried(model: Any) -> Iterator[Any]:
    """What hangs on the model, or on the one that an adapter wraps, as models loaded by Unsloth have it."""
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

    for one in (model, causal_model(model)):
        yield from (each for each in vars(one).values() if isinstance(each, (PreTrainedTokenizerBase, ProcessorMixin)))


def _named_by(model: Any) -> tuple[str, str | None]:
    """The name that a model was loaded by, or that its adapter has for it, and the revision; both may be empty."""
    config = causal_model(model).config
    if name := getattr(config, "_name_or_path", None):
        return str(name), getattr(config, "_commit_hash", None)
    for adapter in getattr(model, "peft_config", {}).values():
        if name := getattr(adapter, "base_model_name_or_path", None):
            return str(name), getattr(adapter, "revision", None)
    return "", None


def _loader_of(request: ModelRequest, setup: Setup) -> ActivePlugins:
    """The loader that a run of this name has where it chooses none."""
    installed = Installed(setup.catalog, setup.blocked)
    (loader,) = default_selections(request, installed, set(KINDS) - {"loader"})
    return ActivePlugins([bind(loader, setup.catalog, setup.blocked)])


def _loaded(request: ModelRequest, plugins: ActivePlugins, *, ready: bool = False) -> Any:
    """What the loader gives by this name, which is that of a `ready` model or is to be loaded."""
    # what transformers says of a name is put into words below; another loader speaks for itself
    answering = plugins.answers("load_processor")
    if not answering and (loaders := plugins.answers("load_model")):
        raise ModelError(
            f"{loaders[0].entry.label} does not implement load_processor, so that the run has no tokenizer.",
            where=f"model {request.name}",
            fix="Add the hook to the loader, or in Python pass processing_class.",
        )
    leaves = (ImportError, OSError, ValueError) if all(one.entry.is_own for one in answering) else ()
    folder = tokenizer_folder(request.name or "", request.revision)
    if folder:
        refuse_large(folder)
        _refuse_damaged(folder, _SMALL)
    try:
        found = plugins.one("load_processor", leaves=leaves, request=request)
        return _as_transformers_has(found, answering[0].origin("load_processor")) if answering else found
    except SFTCoreError:
        raise
    except ImportError as error:
        named = next((name for name in _PROCESSOR_NEEDS if name in str(error).lower()), "")
        raise ModelError(
            f"its processor needs a library that is not installed: {named or _first_line(error)}.",
            where=f"model {request.name}",
            fix=f"Install it: pip install {named}" if named else "Install it, or pass processing_class.",
        ) from error
    except (OSError, ValueError) as error:
        if folder:
            _refuse_damaged(folder, ("tokenizer.json",))  # parsed where it failed alone, as it is large
        said, fix = _explained(str(request.name), _first_line(error))
        if ready:
            fix = f"{_GIVE_ONE[0].upper()}{_GIVE_ONE[1:]} to SFTTrainer."
        raise ModelError(said, where=f"model {request.name}", fix=fix) from error


def _as_transformers_has(found: Any, origin: Origin) -> Any:
    """What a loader gave, if it is a tokenizer or processor of transformers, or something around one.

    Raises:
        FaultyPluginError: it is not.
    """
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

    kinds = (PreTrainedTokenizerBase, ProcessorMixin)
    if not isinstance(found, type) and any(
        isinstance(one, kinds) for one in (found, getattr(found, "tokenizer", None))
    ):
        return found
    what = f"the class {found.__name__}" if isinstance(found, type) else f"{type(found).__name__}"
    raise origin.fault(f"returned {what}; expected a tokenizer or processor of transformers")


def _refuse_damaged(folder: Path, names: Sequence[str]) -> None:
    """Name a file that is not what it has to be, where a library would say that there is no tokenizer.

    Raises:
        ModelError: one of these files is there, and does not hold a JSON object.
    """
    for path in (folder / name for name in names if (folder / name).is_file()):
        try:
            what = "" if isinstance(json.loads(path.read_bytes()), dict) else "it does not hold a JSON object"
        except (ValueError, RecursionError) as error:
            what = f"it is not valid JSON: {error}"
        if what:
            fix = "Save the tokenizer there again, or fetch the file anew."
            raise ModelError(f"the file is damaged: {what}.", where=str(path), fix=fix)


def _explained(name: str, said: str) -> tuple[str, str]:
    """Why no tokenizer could be loaded by this name, and how to mend it; `said` is what the library says."""
    path = Path(name).expanduser()
    if path.is_file():
        return (
            "this is a file, and a model is a folder, a .gguf file or an id on the hub.",
            "If the model's files lie beside it, name their folder.",
        )
    has_none = said.startswith(_UNKNOWN)
    if path.is_dir() or has_none:
        what = "it has no tokenizer" if has_none else f"the tokenizer cannot be loaded: {said}"
        return f"{what.rstrip('.')}.", f"Give a model with a tokenizer, or in Python {_GIVE_ONE}."
    near = near_name(path.name, _models_in(path.parent))
    meant = f' Did you mean "{path.with_name(near)}"?' if near else ""
    return (
        f"there is no folder of this name here.{meant} Taken for an id on the hub: {said.rstrip('.')}.",
        "Name a folder or a .gguf file that is there, or an id on the hub (owner/name).",
    )


def _models_in(folder: Path) -> list[str]:
    """The names of the models in a folder, each a folder of its own; none where it cannot be read."""
    try:
        return [one.name for one in folder.iterdir() if (one / "config.json").is_file()]
    except OSError:
        return []


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
