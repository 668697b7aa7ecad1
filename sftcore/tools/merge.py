"""Merge an adapter into its base, and verify that the saved model predicts the same as the unmerged one."""

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
from sftcore.tools.agreement import Agreement, ComparisonRows, compare_logits, comparison_rows, logits_of
from sftcore.tools.load_saved import (
    load_base,
    load_tokenizer,
    put_adapter,
    quantised_as_trained,
    saved_config,
    set_stops,
)
from sftcore.tools.saved import SavedRun
from sftcore.util.disk import writing
from sftcore.util.plain import plain
from sftcore.util.versions import versions

DTYPES = ("auto", "float32", "bfloat16", "float16")
FLOAT32_TOLERANCE, FLOAT32_SHARE = 1e-3, 2.5e-5
"""How far logits may differ because float32 sums are added in another order: 1e-3, or this share of the largest logit
if that is more."""
HALF_DIVERGENCE = {"bfloat16": 0.05, "float16": 0.005}
"""Allowed divergence in nats: well above the effect of rounding every weight and computing in that dtype, which is
0.004 and 2e-5 for SmolLM2-135M."""

Say = Callable[[str], None]


@frozen
class Merged:
    """A merged model on disk: its folder and dtype, the comparisons made, and notes for the user."""

    folder: Path
    dtype: str
    compared_on: ComparisonRows
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
    """Merge the adapter of `run` in float32, verify the result, save it in `dtype`, reload it and verify it again.

    Nothing is left in `output` unless every step succeeds.

    Args:
        run: the saved run, from `open_run`.
        output: the folder to create; it must be empty or not exist, unless `overwrite` is set.
        dtype: the dtype of the saved weights; "auto" is the one the base was saved in, or float32 if it names none.
        max_shard_size: as in transformers' `save_pretrained`.
        overwrite: replace whatever is in `output`.
        say: called with a line of text at each step.

    Raises:
        ModelError: the run has no adapter, or the merged model predicts something else than the unmerged one.
    """
    refuse_merge(run, output, overwrite=overwrite)
    tokenizer = load_tokenizer(run)
    compared_on = comparison_rows(run, tokenizer)
    say(f"comparing on {compared_on.description}")
    trained_as = _trained_as(run, tokenizer, compared_on, say)
    model = put_adapter(load_base(run), run, len(tokenizer))
    unmerged = logits_of(model, compared_on)
    model, notes = _merge(model, tokenizer, run)
    merged_logits = logits_of(model, compared_on)
    agreements = [compare_logits("merged in float32", unmerged, merged_logits, **limit_for("float32", unmerged))]
    _refuse_if_beyond_limit(agreements, run, say)
    if trained_as is not None:
        quantised, logits = trained_as
        agreements.append(compare_logits(f"quantised base used in training ({quantised})", logits, unmerged))
        say(f"{agreements[-1]}")
        notes.append(
            f"the adapter was trained on a base in {quantised} and merged into the unquantised base; the line "
            '"quantised base used in training" says how much the two differ'
        )
    saved_dtype = base_dtype(run) if dtype == "auto" else dtype
    with writing("the merged model", output, reads_too=True), _staged(output) as folder:
        model_class = type(model)
        _save(model, tokenizer, run, folder, saved_dtype, max_shard_size)
        del model
        reloaded = logits_of(model_class.from_pretrained(folder, dtype="auto", local_files_only=True), compared_on)
        limit = limit_for(saved_dtype, unmerged)
        agreements.append(compare_logits(f"saved in {saved_dtype} and reloaded", unmerged, reloaded, **limit))
        _refuse_if_beyond_limit(agreements, run, say)
        merged = Merged(output, saved_dtype, compared_on, tuple(agreements), (*run.notes, *notes))
        _write_about(merged, run, folder)
        return attrs.evolve(merged, notes=(*merged.notes, *_parity_notes(folder)))


def refuse_merge(run: SavedRun, output: Path, *, overwrite: bool = False) -> None:
    """Refuse whatever is known to fail before any weight is read.

    Raises:
        ModelError: the run has no adapter, or the output folder is in use.
    """
    if run.adapter is None:
        raise ModelError(
            "there is nothing to merge: this is a whole model, which was fine-tuned without an adapter.",
            where=run.name,
            fix="Use it as it is.",
        )
    inputs = [one.resolve() for one in (run.folder, run.adapter, Path(run.base.name or "").expanduser()) if one]
    if any(output.resolve() == one or output.resolve() in one.parents for one in inputs):
        raise ModelError(
            "the output folder contains the adapter or its base.", where=str(output), fix="Name another output folder."
        )
    if output.is_file() or (output.is_dir() and any(output.iterdir()) and not overwrite):
        what = "the output is an existing file" if output.is_file() else "the output folder is not empty"
        raise ModelError(f"{what}.", where=str(output), fix="Name another output folder, or give --overwrite.")


def base_dtype(run: SavedRun) -> str:
    """The dtype in which the base's weights are saved according to its config.json, or float32 if that names none."""
    config = saved_config(run)
    inner = config.get("text_config") or {}
    found = next((one.get(key) for one in (config, inner) for key in ("dtype", "torch_dtype") if one.get(key)), None)
    return found if found in DTYPES else "float32"


# --- Steps ----------------------------------------------------------------------------------------------------------
def _trained_as(run: SavedRun, tokenizer: Any, compared_on: ComparisonRows, say: Say) -> tuple[str, list[Any]] | None:
    """The name of the quantisation used in training, and the logits of the adapter on the base quantised that way.

    None if the base was not quantised in training, or if it cannot be quantised that way on this machine.
    """
    from sftcore.model.precision import quantisation_of

    try:
        base = quantised_as_trained(run)
        if base is None:
            return None
        name = quantisation_of(base)
        return name, logits_of(put_adapter(base, run, len(tokenizer)), compared_on)
    except (SFTCoreError, OSError, ImportError, RuntimeError) as error:
        say(f"the base was quantised in training, but it cannot be compared with the merged model: {error}")
        return None


def _merge(model: Any, tokenizer: Any, run: SavedRun) -> tuple[Any, list[str]]:
    """The merged model with the run's stop tokens, and notes for the user."""
    from sftcore.model.build import merge_adapter

    notes = []
    tied = model.get_base_model().config.get_text_config().tie_word_embeddings
    merged = merge_adapter(model)
    if tied and not merged.config.get_text_config().tie_word_embeddings:
        notes.append("embeddings and head shared one weight; they are separate now, as the adapter changed only one")
    set_stops(merged, tokenizer, run)
    return merged, notes


def _save(model: Any, tokenizer: Any, run: SavedRun, folder: Path, dtype: str, max_shard_size: str) -> None:
    import torch

    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    for found in run.folder.glob("*processor_config.json") if run.folder else ():
        shutil.copy(found, folder / found.name)


def limit_for(dtype: str, logits: list[Any]) -> dict[str, Any]:
    """How far the merged model in `dtype` may be from the unmerged one, which gave these logits in float32."""
    if dtype != "float32":
        return {"measure": "divergence", "limit": HALF_DIVERGENCE[dtype]}
    largest = max(float(one.abs().max()) for one in logits)
    return {"measure": "gap", "limit": max(FLOAT32_TOLERANCE, FLOAT32_SHARE * largest)}


def _refuse_if_beyond_limit(agreements: list[Agreement], run: SavedRun, say: Say) -> None:
    last = agreements[-1]
    say(f"{last}")
    if not last.within_limit:
        half = last.measure == "divergence"
        raise ModelError(
            f"the merged model does not predict the same as the unmerged one: {last}. Nothing was written.",
            where=run.name,
            fix="Merge with --dtype float32." if half else "Keep the adapter separate, and load it with PEFT.",
        )


def _parity_notes(folder: Path) -> Iterator[str]:
    """A note for each way in which serving the folder would differ from training, by its template, tokens and stops."""
    from sftcore.chat.served.parity import parity
    from sftcore.chat.served.record import read_served

    for check in parity(read_served(str(folder))):
        if check.state == "differs":
            yield f"serving would differ from training: {check}"


@contextmanager
def folder_beside(output: Path, what: str) -> Iterator[Path]:
    """A temporary folder next to `output`, so that what is finished there is moved to it in one step."""
    with writing(what, output):
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent, ignore_cleanup_errors=True)
    with folder as name:
        yield Path(name)


@contextmanager
def _staged(output: Path) -> Iterator[Path]:
    """An empty folder that replaces `output` if all goes well, and is deleted otherwise."""
    with folder_beside(output, "the merged model") as beside:
        folder = beside / "merged"
        folder.mkdir()
        yield folder
        replaced = beside / "replaced"
        if output.is_dir():
            output.rename(replaced)
        try:
            folder.rename(output)
        except OSError:
            if replaced.is_dir():  # what was there goes back before the temporary folder is deleted
                replaced.rename(output)
            raise


def _write_about(merged: Merged, run: SavedRun, folder: Path) -> None:
    """Write the card, and the run's manifest with a record of the merge."""
    from sftcore.train.record import manifest

    assert run.adapter is not None
    weights = run.adapter / ADAPTER_WEIGHTS
    about = {
        "adapter": str(run.adapter),
        "adapter_name": run.adapter_name,
        "adapter_sha256": manifest.sha256_of_files([weights])[str(weights)],
        "base": plain(attrs.asdict(run.base)),
        "dtype": merged.dtype,
        "compared_on": merged.compared_on.description,
        "agreements": [attrs.asdict(one) for one in merged.agreements],
        "notes": list(merged.notes),
        "versions": versions(),
    }
    manifest.write(folder, {**run.manifest, "merge": about})
    write_merged_card(folder, run, merged)


def write_merged_card(folder: Path, run: SavedRun, merged: Merged) -> None:
    """Write `README.md` of a merged model into `folder`."""
    from sftcore.train.record.card import made_by, public_name, save_card

    base = run.base.name or ""
    origin = (
        f"`{public_name(base)}` with an adapter merged into it, by {made_by()}. "
        f"Merged in float32, saved in {merged.dtype}."
    )
    ledgers = (run.manifest.get("data") or {}).get("ledgers") or ()
    whole = [one for one in ledgers if one.get("name") == "train_dataset"] or ledgers
    facts = [f"{one['rows_kept']:,} rows, {one['tokens_supervised']:,} tokens supervised" for one in whole[:1]]
    facts += [f"{run.manifest['steps']} steps"] if run.manifest.get("steps") else []
    facts += [f"Compared with the unmerged model on {merged.compared_on.description}"]
    facts += [f"{str(one)[:1].upper()}{str(one)[1:]}" for one in merged.agreements]
    save_card(folder, name=merged.folder.name, base=base, origin=origin, facts=facts)
