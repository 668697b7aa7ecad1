"""Quantise a saved run: merge its adapter, calibrate on its own rows, save, reload and measure the result."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sftcore.core.errors import ModelError, RecipeError, UnavailablePluginError, nearest, quoted
from sftcore.tools.quantization import gptq
from sftcore.tools.quantization.outcome import Options, Outcome
from sftcore.util.disk import writing
from sftcore.util.versions import versions

if TYPE_CHECKING:
    from sftcore.tools.quantization.perplexity import Perplexity
    from sftcore.tools.saved import SavedRun

BITS = (4, 8)
NOTABLE_RISE = 0.15
"""If the perplexity rises by more than this share, a note suggests how to reduce it."""
GROUP_SIZE = 128
"""The default number of weights that share a scale, if it divides the widths of the layers."""
METHODS = {"gptq": gptq}
"""Modules with `LIBRARIES`, the distributions that the method needs, and `quantise`, which quantises a model in place.

The first distribution is imported under its own name. The extra of sftcore that installs them is named as the method.
"""


def quantize(run: SavedRun, output: Path, options: Options, *, say: Callable[[str], None] = lambda _: None) -> Outcome:
    """Quantise a saved run into `output`; if this fails, nothing is left there.

    Args:
        run: an adapter, which is merged first, or a whole model.
        output: a folder that does not exist yet, or is empty.
        options: how to quantise.
        say: called with a line of text at each step.

    Raises:
        RecipeError: the options are not valid, or `output` is not empty.
        UnavailablePluginError: the method's library is not installed.
        DataError: there are no rows to calibrate on.
        ModelError: the model cannot be loaded, merged or quantised.
    """
    import torch

    from sftcore.tools.load_saved import load_tokenizer
    from sftcore.tools.merge import folder_beside
    from sftcore.tools.quantization.calibration import calibration_rows
    from sftcore.tools.quantization.perplexity import perplexity

    start = time.monotonic()
    method = check_options(run, output, options)
    tokenizer = load_tokenizer(run)
    calibration = calibration_rows(run, tokenizer, options)
    say(f"calibrating on {len(calibration.rows)} rows with {calibration.num_tokens:,} tokens from {calibration.of}")
    what = "the quantised model"
    with writing(what, output, reads_too=True), folder_beside(output, what) as work:
        whole, merge_notes = _whole_model(run, work / "merged", say)
        model = _load(whole)
        group_size = group_size_for(widths(model), options.group_size)
        say(f"measuring the perplexity on {len(calibration.held_out)} rows from {calibration.held_out_of}")
        before = perplexity(model, calibration.held_out)
        say(f"quantising with {options.method} to {options.bits} bits in groups of {group_size}")
        model = model.to(getattr(torch, options.dtype))
        notes = method.quantise(model, calibration.rows, options, group_size)
        saved = work / "quantised"
        _save(model, tokenizer, saved)
        del model
        say("reloading with transformers alone")
        after = perplexity(_load(saved), calibration.held_out)
        outcome = Outcome(
            output,
            calibration,
            group_size,
            before,
            after,
            weights_size(whole),
            weights_size(saved),
            time.monotonic() - start,
            (*(merge_notes or run.notes), *notes, *rise_notes(before, after, options, group_size)),
        )
        _describe(saved, whole, run, outcome, options)
        shutil.rmtree(output, ignore_errors=True)  # it was empty, as checked above
        saved.rename(output)
    return outcome


# --- What can be known before anything is loaded --------------------------------------------------------------------
def check_options(run: SavedRun, output: Path, options: Options) -> ModuleType:
    """Check the options, and return the method.

    Raises:
        RecipeError, UnavailablePluginError, ModelError: an option is not valid, or cannot work for this run.
    """
    method = method_named(options.method)
    if options.bits not in BITS:
        raise RecipeError(f"{options.method} supports {' or '.join(map(str, BITS))} bits, got {options.bits}.")
    config = run.folder / "config.json" if run.folder else None
    known = json.loads(config.read_text(encoding="utf-8")) if config is not None and config.is_file() else {}
    if quantised := (known.get("quantization_config") or {}).get("quant_method"):
        raise ModelError(
            f"the model is already quantised ({quantised}).",
            where=str(run.folder),
            fix="Give the run or the merged model that it was made from.",
        )
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        what = "the output is an existing file" if output.is_file() else "the output folder is not empty"
        raise RecipeError(f"{what}.", where=str(output), fix="Name another output folder: --output FOLDER.")
    if importlib.util.find_spec(method.LIBRARIES[0]) is None:
        raise UnavailablePluginError(
            f'method "{options.method}" needs {method.LIBRARIES[0]}, which is not installed.',
            fix=f'Install it: pip install "sftcore[{options.method}]"',
        )
    return method


def method_named(name: str) -> ModuleType:
    """The method with this name.

    Raises:
        RecipeError: there is no such method.
    """
    if name not in METHODS:
        raise RecipeError(f'there is no method "{name}".{nearest(name, METHODS)}', fix=f"Methods: {quoted(METHODS)}.")
    return METHODS[name]


def widths(model: Any) -> dict[str, int]:
    """The width (input features) of every layer that is quantised: all linear layers except the head."""
    import torch

    head = model.get_output_embeddings()
    return {
        name: module.in_features
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }


def group_size_for(widths: Mapping[str, int], wanted: int | None) -> int:
    """The group size that was asked for, or the largest power of two up to GROUP_SIZE that divides every width.

    Raises:
        ModelError: the model has no layers to quantise.
        RecipeError: the group size does not divide one of the widths.
    """
    if not widths:
        raise ModelError("the model has no linear layers except its head.", fix="Choose another model.")
    powers = [GROUP_SIZE >> shift for shift in range(GROUP_SIZE.bit_length())]
    fitting = [size for size in powers if all(width % size == 0 for width in widths.values())]
    if wanted is None:
        return fitting[0]
    for name, width in widths.items():
        if width % wanted:
            raise RecipeError(
                f"groups of {wanted} do not divide the layer {name}, which has {width} input features.",
                where="--group-size",
                fix=f"Choose one of: {', '.join(map(str, fitting))}.",
            )
    return wanted


def rise_notes(before: Perplexity, after: Perplexity, options: Options, group_size: int) -> tuple[str, ...]:
    """A note if the perplexity rose by much, with the options that reduce the rise."""
    rise = max(after.supervised / before.supervised, after.every / before.every) - 1
    if not rise > NOTABLE_RISE:
        return ()
    smaller = f", --group-size {group_size // 2}" if group_size > 32 else ""
    more = f"--samples {2 * options.samples}{smaller}"
    return (f"perplexity rose by {rise:.1%}; reduce this with {more}{' or --bits 8' if options.bits < 8 else ''}",)


# --- Models and folders ---------------------------------------------------------------------------------------------
def _whole_model(run: SavedRun, folder: Path, say: Callable[[str], None]) -> tuple[Path, tuple[str, ...]]:
    """The folder with the whole model, and notes: the run's own folder, or `folder` if the model had to be merged."""
    from sftcore.tools.load_saved import load_base
    from sftcore.tools.merge import merge

    if run.adapter is None and run.folder is not None:
        return run.folder, ()
    if run.adapter is None:
        load_base(run, dtype="auto").save_pretrained(folder)
        return folder, ()
    say(f"merging {run.name} into {run.base.name}")
    return folder, merge(run, folder, say=say).notes


def _load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    with warnings.catch_warnings():
        # llmcompressor hands the weights to accelerate while it saves them
        warnings.filterwarnings("ignore", message="Attempting to save a model with offloaded modules")
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def weights_size(folder: Path) -> int:
    """The size of the weight files in bytes."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _describe(folder: Path, whole: Path, run: SavedRun, outcome: Outcome, options: Options) -> None:
    """Write the card, and the manifest of the run and its merge with a record of the quantisation."""
    from sftcore.train.record import manifest

    before = whole / "manifest.json"
    known = json.loads(before.read_text(encoding="utf-8")) if before.is_file() else {}
    libraries = {name: importlib.metadata.version(name) for name in METHODS[options.method].LIBRARIES}
    done = {**outcome.as_dict(options), "versions": {**versions(), **libraries}}
    manifest.write(folder, {**known, "quantise": done})
    write_quantised_card(folder, run, outcome, options)


def write_quantised_card(folder: Path, run: SavedRun, outcome: Outcome, options: Options) -> None:
    """Write `README.md` of a quantised model into `folder`."""
    from sftcore.train.record.card import TAGS, is_hub_id, made_by, public_name, save_card

    base = run.base.name or ""
    merged = " with an adapter merged into it," if run.adapter else ""
    origin = (
        f"`{public_name(base)}`{merged} quantised to {options.bits} bits in groups of {outcome.group_size} "
        f"({options.method}) by {made_by()}.\n\n"
        "transformers loads it where the package `compressed-tensors` is installed."
    )
    before, after, rows = outcome.before, outcome.after, len(outcome.calibration.held_out)
    facts = [
        f"Calibrated on {len(outcome.calibration.rows):,} rows, {outcome.calibration.num_tokens:,} tokens",
        f"Perplexity on {rows} rows, supervised tokens: {before.supervised:.3f} before, {after.supervised:.3f} after",
        f"Perplexity on {rows} rows, all tokens: {before.every:.3f} before, {after.every:.3f} after",
    ]
    relation = {"base_model_relation": "quantized"} if is_hub_id(base) else {}
    tags = [*TAGS, options.method]
    save_card(folder, name=outcome.folder.name, base=base, origin=origin, facts=facts, tags=tags, **relation)
