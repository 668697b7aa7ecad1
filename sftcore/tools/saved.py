"""Find out what a saved folder contains: an adapter or a whole model, its base, its tokenizer and its run.

`open_run` only reads files and does not import torch; `load_saved` loads what it found.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from attrs import field, frozen

from sftcore.core.errors import ModelError, nearest, quoted
from sftcore.core.types import ModelRequest, Selection
from sftcore.model.embeddings import ADAPTER_WEIGHTS

ADAPTER_CONFIG = "adapter_config.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
QUANTISES = frozenset({"load_in_4bit", "load_in_8bit", "quantization_config"})
"""Arguments of `from_pretrained` that quantise the model."""
_OF_ONE_MACHINE = QUANTISES | {
    "attn_implementation", "device_map", "dtype", "max_memory", "token", "torch_dtype", "trust_remote_code",
}  # fmt: skip
"""Arguments of a run's `from_pretrained` that are not reused: they depend on its machine, quantise or run code."""


@frozen
class SavedRun:
    """A run's output folder, a checkpoint in it, an adapter's folder, or any model.

    Args:
        name: the name that the user gave.
        folder: the folder with its files; None for a hub id or a single file.
        base: the model to load; for an adapter, its base model.
        adapter: the folder with the adapter's weights; None for a whole model.
        adapter_name: the adapter's name, if the folder holds several.
        loader: the loader plugin that the run chose; None for the default.
        manifest: the run's manifest.json; empty if there is none.
        notes: decisions to tell the user about, one sentence each.
    """

    name: str
    folder: Path | None
    base: ModelRequest
    adapter: Path | None = None
    adapter_name: str = "default"
    loader: Selection | None = None
    manifest: Mapping[str, Any] = field(factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Where the run is, for error messages."""
        return str(self.folder or self.name)

    @property
    def adapter_config(self) -> Mapping[str, Any]:
        """The adapter's configuration file, as PEFT saved it; empty for a whole model."""
        return _read_json(self.adapter / ADAPTER_CONFIG) if self.adapter else {}


def open_run(
    name: str, *, adapter: str | None = None, base: str | None = None, trust_remote_code: bool = False
) -> SavedRun:
    """Find out what `name` refers to: a folder, a `.gguf` file or a hub id.

    Args:
        name: a run's output folder, a checkpoint, an adapter or a model.
        adapter: which adapter to use, if the folder holds several.
        base: replaces the base that the adapter or its run names.
        trust_remote_code: run the base's own code; never taken from a manifest, which may be someone else's.

    Raises:
        ModelError: the folder does not exist or holds neither a model nor an adapter, or the base is not known.
    """
    path = Path(name).expanduser()
    if not path.exists():
        if not _may_exist(name):
            raise ModelError(
                "there is no such folder or file.", where=name, fix="Give a run's output folder, or a hub id."
            )
        found = _from_hub(name)
        if found is None:
            return _whole(name, None, adapter, base, trust_remote_code)
        path = found
    elif path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelError("this is a file, not a folder.", where=name, fix="Give a folder, or a .gguf file.")
        return _whole(str(path), None, adapter, base, trust_remote_code)
    if (path / "config.json").is_file():
        return _whole(name, path, adapter, base, trust_remote_code)
    folder, notes = _adapter_in(path, name, adapter)
    return _adapter(name, path, folder, base, trust_remote_code, notes)


# --- What it is -----------------------------------------------------------------------------------------------------
def _whole(name: str, folder: Path | None, adapter: str | None, base: str | None, trust: bool) -> SavedRun:
    for option, given in (("adapter", adapter), ("base", base)):
        if given:
            raise ModelError(
                f"--{option} needs an adapter, and this is a whole model.",
                where=name,
                fix=f"Leave out --{option}.",
            )
    request = ModelRequest(str(folder) if folder else name, dtype="auto", trust_remote_code=trust)
    return SavedRun(name, folder, request, manifest=_manifest_of(folder) if folder else {})


def _adapter(name: str, path: Path, folder: Path, base: str | None, trust: bool, notes: tuple[str, ...]) -> SavedRun:
    if not (folder / ADAPTER_WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        what = (
            "the adapter's weights are a pickle file, which can run code when it is loaded"
            if pickled
            else "the adapter has no weights"
        )
        raise ModelError(
            f"{what}.", where=str(folder), fix=f"Save it as {ADAPTER_WEIGHTS} with PEFT's save_pretrained."
        )
    manifest = _manifest_of(path)
    request, loader = _base_of(folder, manifest, base)
    request = attrs.evolve(request, trust_remote_code=trust)
    adapter_name = folder.name if folder != path else "default"
    return SavedRun(name, path, request, folder, adapter_name, loader, manifest, notes)


def _adapter_in(path: Path, name: str, wanted: str | None) -> tuple[Path, tuple[str, ...]]:
    """The folder of the adapter: PEFT saves "default" in the folder itself, and any other in a folder of its name."""
    below = sorted(one.parent.name for one in path.glob(f"*/{ADAPTER_CONFIG}"))
    below = [one for one in below if not _CHECKPOINT.fullmatch(one)]
    names = ["default", *below] if (path / ADAPTER_CONFIG).is_file() else below
    if not names:
        raise _nothing_in(path, name)
    if wanted is not None and wanted not in names:
        raise ModelError(
            f'there is no adapter "{wanted}".{nearest(wanted, names)}', where=name, fix=f"Adapters: {quoted(names)}."
        )
    if wanted is None and len(names) > 1 and names[0] != "default":
        raise ModelError(
            f"there are several adapters: {quoted(names)}.", where=name, fix="Choose one with --adapter NAME."
        )
    chosen = wanted or names[0]
    rest = [one for one in names if one != chosen]
    notes = (f"using adapter {chosen}, not {quoted(rest)}",) if rest else ()
    return (path if chosen == "default" else path / chosen), notes


def _nothing_in(path: Path, name: str) -> ModelError:
    if steps := [int(found[1]) for one in path.iterdir() if (found := _CHECKPOINT.fullmatch(one.name))]:
        return ModelError(
            "the run has saved only checkpoints so far, and no final model.",
            where=name,
            fix=f"Name a checkpoint: {path / f'checkpoint-{max(steps)}'}",
        )
    gguf = sorted(path.glob("*.gguf"))
    fix = f"Name the file itself: {gguf[0]}" if gguf else "Give a folder written by a run or by save_pretrained."
    return ModelError("the folder holds neither a model nor an adapter.", where=name, fix=fix)


def _base_of(folder: Path, manifest: Mapping[str, Any], given: str | None) -> tuple[ModelRequest, Selection | None]:
    """The base and its loader: the one given, or else the one that the run names, or else the adapter's."""
    if given is not None:
        return ModelRequest(given), None
    ran = manifest.get("model") or {}
    config = _read_json(folder / ADAPTER_CONFIG)
    saved = config.get("base_model_name_or_path")
    named = ran.get("name")
    if named and _may_exist(named):
        if (Path(named).expanduser() / ADAPTER_CONFIG).is_file():  # the run continued to train a saved adapter
            before = open_run(named)
            return before.base, before.loader
        kwargs = {key: value for key, value in (ran.get("init_kwargs") or {}).items() if key not in _OF_ONE_MACHINE}
        loader = next(iter(selections_of(manifest, "loader")), None)
        return ModelRequest(named, ran.get("revision"), init_kwargs=kwargs), loader
    if saved and _may_exist(saved):
        return ModelRequest(saved, config.get("revision")), None
    looked = dict.fromkeys(filter(None, (named, saved)))
    raise ModelError(
        f"the adapter's base cannot be found; looked for {quoted(looked)}."
        if looked
        else "neither the adapter nor a manifest next to it names the base model.",
        where=str(folder),
        fix="Name the base: --base MODEL.",
    )


def _may_exist(name: str) -> bool:
    """Whether this is a local path that exists, or else may be a hub id."""
    path = Path(name).expanduser()
    local = name.startswith((".", "/", "~")) or name.count("/") > 1 or path.suffix == ".gguf"
    return path.exists() or not local


def selections_of(manifest: Mapping[str, Any], kind: str) -> list[Selection]:
    """The plugins of one kind that the run was asked to use, without defaults."""
    return [
        Selection(kind, one["name"], one.get("options") or {}, one.get("distribution"), path=f"manifest.json: {kind}")
        for one in manifest.get("plugins") or ()
        if one.get("kind") == kind and not one.get("default")
    ]


def _manifest_of(folder: Path) -> Mapping[str, Any]:
    path = folder / "manifest.json"
    return _read_json(path) if path.is_file() else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"the file is not valid JSON: {error}.", where=str(path)) from None
    if not isinstance(found, dict):
        raise ModelError(f"expected a JSON object, got {type(found).__name__}.", where=str(path))
    return found


def _from_hub(name: str) -> Path | None:
    """A local copy of an adapter on the hub; None if the hub id is a whole model."""
    from huggingface_hub import hf_hub_download, snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        hf_hub_download(name, ADAPTER_CONFIG)
        return Path(snapshot_download(name, ignore_patterns=["*.bin", "*.pt", "checkpoint-*", "optimizer*"]))
    except HFValidationError:
        what = "this is neither a folder nor a valid hub id."
    except LocalEntryNotFoundError:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return None
        what = "there is no such folder, and the hub cannot be reached."
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, OSError) as error:
        first = str(error).strip().partition("\n")[0]
        what = f"there is no such folder, and the hub refused it: {first}"
    raise ModelError(what, where=name, fix="Give a run's output folder.")
