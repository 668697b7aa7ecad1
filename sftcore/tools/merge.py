"""Merge an adapter into its base, and show that the model which is saved says what the unmerged one said."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from sftcore.core.errors import ModelError, SFTCoreError
from sftcore.model.embeddings import ADAPTER_WEIGHTS
from sftcore.tools.agreement import Agreement, Probes, compare, logits_of, probes_for
from sftcore.tools.load_saved import load_base, load_tokenizer, put_adapter, quantised_as_trained, set_stops
from sftcore.tools.saved import SavedRun
from sftcore.util.disk import writing
from sftcore.util.plain import plain

DTYPES = ("auto", "float32", "bfloat16", "float16")
FLOAT32_TOLERANCE, FLOAT32_SHARE = 1e-3, 2.5e-5
"""What another order of float32 sums may change: 1e-3, and of logits above 40 this share of the largest."""
HALF_DIVERGENCE = {"bfloat16": 0.05, "float16": 0.005}
"""Nats: well above what rounding every weight, and computing in that dtype, changes (SmolLM2-135M: 0.004 and 2e-5)."""

Say = Callable[[str], None]


@frozen
class Merged:
    """A merged model on the disk: its dtype, what was compared, what is to be said of it."""

    folder: Path
    dtype: str
    probes: Probes
    agreements: tuple[Agreement, ...]
    notes: tuple[str, ...]


def merge(
    run: SavedRun,
    output: Path,
    *,
    dtype: str = "auto",
    max_shard_size: str = "5GB",
    overwrite: bool = False,
    say: Say = lambda _: None,
) -> Merged:
    """Merge the adapter of `run` in float32, verify, save in `dtype`, reload, verify again.

    Nothing stands in `output` unless all of it went well.

    Args:
        run: from `open_run`.
        output: the folder to make; it must be empty or not exist, unless `overwrite` is set.
        dtype: of the saved weights; "auto" is the one that the base is saved in, float32 where it says none.
        max_shard_size: as in transformers' `save_pretrained`.
        overwrite: replace what is in `output`.
        say: is told what happens, a line each.

    Raises:
        ModelError: there is no adapter; the merged model says something else than the unmerged one.
    """
    refuse_merge(run, output, overwrite=overwrite)
    tokenizer = load_tokenizer(run)
    probes = probes_for(run, tokenizer)
    say(f"compared on {probes.description}")
    trained_as = _trained_as(run, tokenizer, probes, say)
    model = put_adapter(load_base(run), run, rows=len(tokenizer))
    unmerged = logits_of(model, probes)
    model, notes = _merge(model, tokenizer, run)
    agreements = [compare("merged, in float32", unmerged, logits_of(model, probes), **limit("float32", unmerged))]
    _refuse(agreements, run, say)
    if trained_as is not None:
        quantised, logits = trained_as
        agreements.append(compare(f"base as it was in training ({quantised})", logits, unmerged))
        say(f"{agreements[-1]}")
        notes.append(f"trained on a base in {quantised}, merged into the unquantised one: see the gap between the two")
    taken = base_dtype(run) if dtype == "auto" else dtype
    with writing("the merged model", output, reads_too=True), _aside(output, overwrite=overwrite) as folder:
        model_class = type(model)
        _save(model, tokenizer, run, folder, taken, max_shard_size)
        del model
        agreements.append(_reloaded(model_class, folder, probes, unmerged, taken))
        _refuse(agreements, run, say)
        merged = Merged(output, taken, probes, tuple(agreements), (*run.notes, *notes))
        _write_about(merged, run, folder)
        return attrs.evolve(merged, notes=(*merged.notes, *_served_otherwise(folder)))


def refuse_merge(run: SavedRun, output: Path, *, overwrite: bool = False) -> None:
    """Whatever can be known to go wrong before a weight is read.

    Raises:
        ModelError: a run without an adapter, an output that is in use.
    """
    if run.adapter is None:
        raise ModelError(
            "nothing to merge: this is a whole model, as a full fine-tune saves it.",
            where=run.name,
            fix="Use it as it is.",
        )
    taken = [one.resolve() for one in (run.folder, run.adapter, Path(run.base.name or "").expanduser()) if one]
    if any(output.resolve() == one or output.resolve() in one.parents for one in taken):
        raise ModelError("the adapter or its base stands in the output folder.", where=str(output), fix="Name another.")
    if output.is_file() or (output.is_dir() and any(output.iterdir()) and not overwrite):
        what = "this is a file" if output.is_file() else "the folder is not empty"
        raise ModelError(f"{what}.", where=str(output), fix="Name another, or give --overwrite.")


def base_dtype(run: SavedRun) -> str:
    """The dtype in which the base's weights are saved, by its config.json; float32 where that says nothing."""
    from transformers import PretrainedConfig

    try:
        config, _ = PretrainedConfig.get_config_dict(run.base.name, revision=run.base.revision)
    except (OSError, ValueError):  # a single file has none
        return "float32"
    inner = config.get("text_config") or {}
    found = next((one.get(key) for one in (config, inner) for key in ("dtype", "torch_dtype") if one.get(key)), None)
    return found if found in DTYPES else "float32"


# --- Steps ----------------------------------------------------------------------------------------------------------
def _trained_as(run: SavedRun, tokenizer: Any, probes: Probes, say: Say) -> tuple[str, list[Any]] | None:
    """What the adapter says on the base as it was quantised in training; None where it was not, or cannot be now."""
    from sftcore.model.precision import quantisation_of

    try:
        base = quantised_as_trained(run)
        if base is None:
            return None
        name = quantisation_of(base)
        return name, logits_of(put_adapter(base, run, rows=len(tokenizer)), probes)
    except (SFTCoreError, OSError, ImportError, RuntimeError) as error:
        say(f"the base was quantised in training, and how far that is from the merged model is not known: {error}")
        return None


def _merge(model: Any, tokenizer: Any, run: SavedRun) -> tuple[Any, list[str]]:
    """The merged model with the run's stop tokens, and what is to be said."""
    from sftcore.model.build import merge_adapter

    notes = []
    tied = _is_tied(model.get_base_model())
    merged = merge_adapter(model)
    if tied and not _is_tied(merged):
        notes.append("embeddings and head shared one weight, and the adapter changed one of them: now there are two")
    set_stops(merged, tokenizer, run)
    return merged, notes


def _is_tied(model: Any) -> bool:
    return bool(model.config.get_text_config().tie_word_embeddings)


def _save(model: Any, tokenizer: Any, run: SavedRun, folder: Path, dtype: str, max_shard_size: str) -> None:
    import torch

    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    for found in run.folder.glob("*processor_config.json") if run.folder else ():
        shutil.copy(found, folder / found.name)


def _reloaded(model_class: Any, folder: Path, probes: Probes, unmerged: list[Any], dtype: str) -> Agreement:
    """What plain transformers makes of the folder, against the unmerged model."""
    model = model_class.from_pretrained(folder, dtype="auto", local_files_only=True)
    found = logits_of(model, probes)
    return compare(f"saved in {dtype} and loaded again", unmerged, found, **limit(dtype, unmerged))


def limit(dtype: str, logits: list[Any]) -> dict[str, Any]:
    """What may lie between the unmerged model in float32, with these logits, and the merged one in `dtype`."""
    if dtype != "float32":
        return {"measure": "divergence", "most": HALF_DIVERGENCE[dtype]}
    largest = max(float(one.abs().max()) for one in logits)
    return {"measure": "gap", "most": max(FLOAT32_TOLERANCE, FLOAT32_SHARE * largest)}


def _refuse(agreements: list[Agreement], run: SavedRun, say: Say) -> None:
    last = agreements[-1]
    say(f"{last}")
    if not last.holds:
        half = last.measure == "divergence"
        raise ModelError(
            f"the merged model does not say what the unmerged one says: {last}. Nothing was written.",
            where=run.name,
            fix="Merge with --dtype float32." if half else "Keep the adapter apart, and load it with PEFT.",
        )


def _served_otherwise(folder: Path) -> Iterator[str]:
    """Where template, tokens or stops of the folder are not those that the run recorded, or contradict each other."""
    from sftcore.chat.parity import parity
    from sftcore.chat.record import read_served

    for check in parity(read_served(str(folder))):
        if check.state == "differs":
            yield f"served otherwise than trained: {check}"


@contextmanager
def _aside(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder beside `output` that takes its place once all went well, and is gone otherwise."""
    with writing("the merged model", output):
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    folder.chmod(0o755)  # mkdtemp keeps others out
    try:
        yield folder
        if output.is_dir():
            before = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
            output.rename(before / "replaced")
            folder.rename(output)
            shutil.rmtree(before, ignore_errors=True)
        else:
            folder.rename(output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_about(merged: Merged, run: SavedRun, folder: Path) -> None:
    """Card and manifest: that of the run, with what was merged."""
    from sftcore.tools.cards import write_merged_card
    from sftcore.train.record import manifest

    assert run.adapter is not None
    weights = run.adapter / ADAPTER_WEIGHTS
    about = {
        "adapter": str(run.adapter),
        "adapter_name": run.adapter_name,
        "adapter_sha256": manifest.sha256_of_files([weights])[str(weights)],
        "base": plain(attrs.asdict(run.base)),
        "dtype": merged.dtype,
        "compared_on": merged.probes.description,
        "agreements": [attrs.asdict(one) for one in merged.agreements],
        "notes": list(merged.notes),
        "versions": manifest.versions(),
    }
    manifest.write(folder, {**run.manifest, "merge": about})
    write_merged_card(
        folder,
        run,
        name=merged.folder.name,
        dtype=merged.dtype,
        compared_on=merged.probes.description,
        agreements=merged.agreements,
    )
