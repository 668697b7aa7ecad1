"""Choose rows of the run's own data to calibrate a quantisation on, and other rows to measure it on."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from sftcore.core.errors import DataError, quoted
from sftcore.data.source.files import local_files
from sftcore.tools.quantization.outcome import Calibration, Options
from sftcore.tools.saved import SavedRun
from sftcore.tools.saved_rows import rows_of_run

HELD_OUT = 64
"""How many rows the perplexity is measured on."""
_ROW_SETTINGS = (
    "assistant_only_loss", "completion_only_loss", "dataset_text_field", "mask_style", "max_length", "truncation_mode",
)  # fmt: skip
"""Settings that decide how rows are read, for a manifest without a recipe."""


def calibration_rows(run: SavedRun, tokenizer: Any, options: Options) -> Calibration:
    """Up to `options.samples` rows of the run's training set in random order, and HELD_OUT rows of its evaluation set.

    Without an evaluation set, rows of the training set that are not used for calibration are held out.

    Rows are cut to `options.max_length`, or to the run's own max_length if that is smaller.

    Raises:
        DataError: the run's data are not known or can no longer be read, or there are fewer than two rows.
    """
    run = _with_data(run, options.data)
    samples, seed = options.samples, options.seed
    recipe, settings = run.manifest["recipe"], run.manifest.get("settings") or {}
    max_length = min(options.max_length, recipe.get("max_length", settings.get("max_length")) or options.max_length)
    entry = recipe["data"] if isinstance(recipe["data"], Mapping) else {}
    if any(entry.get(key) is not None for key in ("eval", "eval_fraction", "eval_rows")):
        train = rows_of_run(run, tokenizer, samples, max_length=max_length, seed=seed)
        held = rows_of_run(run, tokenizer, HELD_OUT, max_length=max_length, part="eval", seed=seed)
        part = "held back by the run" if entry.get("eval_fraction") or entry.get("eval_rows") else "the evaluation set"
        return Calibration(train.rows, held.rows, train.label, f"{held.label}, {part}")
    found = rows_of_run(run, tokenizer, samples + HELD_OUT, max_length=max_length, seed=seed)
    total = len(found.rows)
    if total < 2:
        raise DataError(
            f"{found.label} has only one usable row, but one is needed for calibration and another for measuring.",
            where=run.place,
            fix="Give more rows: --data FILE.",
        )
    count = min(samples, total - min(HELD_OUT, max(1, total // 5)))
    held_out = f"{found.label}, training rows that were not used for calibration"
    return Calibration(found.rows[:count], found.rows[count:], found.label, held_out)


# --- Where the data are ---------------------------------------------------------------------------------------------
def _with_data(run: SavedRun, data: str | None) -> SavedRun:
    """The run with a recipe whose paths lead to the data from the current folder."""
    recipe = dict(run.manifest.get("recipe") or {})
    if data is not None:
        local_files(data)  # so that a wrong path is reported before anything is loaded
    elif not recipe:
        what = (
            "the run was started from Python, so its manifest.json does not say where its rows are"
            if run.manifest
            else "without a manifest.json it is not known which rows the model was trained on"
        )
        raise DataError(f"{what}.", where=run.place, fix="Give the rows: --data FILE.")
    if not recipe:
        recipe = _recipe_of_python_run(run)
    recipe["data"] = data if data is not None else _located(recipe["data"], _folders(run), run.place)
    return attrs.evolve(run, manifest={**run.manifest, "recipe": recipe})


def _recipe_of_python_run(run: SavedRun) -> dict[str, Any]:
    """A recipe made of the settings in a manifest without one; for a model without a manifest, the defaults."""
    settings = run.manifest.get("settings") or {}
    recipe = {key: settings[key] for key in _ROW_SETTINGS if settings.get(key) is not None}
    formats = (run.manifest.get("data") or {}).get("formats") or {}
    chosen = formats.get("train_dataset")
    if chosen and not chosen["default"]:
        recipe["format"] = {f"{chosen['name']}@{chosen['distribution']}": chosen["options"]}
    return {"model": run.base.name or run.name, **recipe}


def _located(entry: Any, folders: tuple[Path, ...], where: str) -> Any:
    """A recipe's data entry with every path as it is found now; hub ids are unchanged."""
    if isinstance(entry, Mapping):
        return {
            key: _located(value, folders, where) if key in ("train", "eval") and value is not None else value
            for key, value in entry.items()
        }
    if isinstance(entry, (list, tuple)):
        return [_located(one, folders, where) for one in entry]
    paths = [folder / Path(entry).expanduser() for folder in folders]
    for path in paths:
        if path.exists() or (glob.has_magic(str(path)) and glob.glob(str(path), recursive=True)):
            return str(path)
    try:
        local_files(entry)
    except DataError as error:
        raise DataError(
            f'the run\'s data "{entry}" cannot be found; looked for {quoted(dict.fromkeys(paths))}.',
            where=where,
            fix="Give the rows: --data FILE.",
        ) from error
    return entry


def _folders(run: SavedRun) -> tuple[Path, ...]:
    """Folders to which the run's relative paths may refer: the current one, and the one the run was started in."""
    output = Path((run.manifest.get("settings") or {}).get("output_dir") or ".")
    found = [Path.cwd()]
    if run.folder is not None and not output.is_absolute() and output.parts:
        whole = run.folder.resolve()
        for folder in (whole, whole.parent):  # a checkpoint is one level deeper
            if folder.parts[-len(output.parts) :] == output.parts:
                found.append(Path(*folder.parts[: -len(output.parts)]))
    return tuple(dict.fromkeys(found))
