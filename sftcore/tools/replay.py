"""Repeat a run from its manifest, and compare the weights bit by bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from sftcore.config.recipe import overridden, parse_recipe
from sftcore.core.errors import ModelError, RecipeError
from sftcore.train.record.manifest import SCHEMA, weights_sha256
from sftcore.util.secrets import NOT_WRITTEN
from sftcore.util.versions import versions

if TYPE_CHECKING:
    from rich.console import Console

    from sftcore.train.checked import Checked
    from sftcore.train.trainer import SFTTrainer

_ELSEWHERE = ("model", "data")
"""Settings whose paths may be different in the replay."""
_TRUST = ("trust_remote_code", "allow_pickle")
"""Settings that let a model run code. A manifest may be someone else's, so whoever replays it must repeat them."""
_LEFT_OUT = ("output_dir", "resume_from_checkpoint", "push_to_hub", "report_to")
_SHAPES = {
    **dict.fromkeys(("versions", "environment", "data_files_sha256", "sources_sha256", "weights_sha256", "data"), dict),
    **dict.fromkeys(("steps", "max_steps"), int),
}
_CURVE = ("loss", "grad_norm")


@frozen
class Recorded:
    """A manifest that contains enough to repeat its run."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """The folder with the run's weights and its log."""
        return self.path.parent


@frozen
class Verdict:
    """The result of a replay: a sentence on the weights, one on the loss curve, and whether both are bit-identical."""

    weights: str
    curve: str
    equal: bool


# --- Reading ----------------------------------------------------------------------------------------------------------
def read_manifest(path: str) -> Recorded:
    """Read the manifest at `path`, or in the folder `path`.

    Raises:
        RecipeError: there is no manifest, it cannot be read, or its run cannot be repeated.
    """
    file = Path(path).expanduser()
    file = file / "manifest.json" if file.is_dir() else file
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError("there is no manifest here.", where=str(file), fix="Give the folder of a run.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"the manifest cannot be read: {error}.", where=str(file)) from None
    if not isinstance(found, dict) or "versions" not in found:
        raise RecipeError("this is not the manifest of a run.", where=str(file), fix="Give the manifest.json of a run.")
    recorded = Recorded(file, found)
    _refuse(recorded)
    return recorded


def _refuse(recorded: Recorded) -> None:
    manifest, where = recorded.manifest, str(recorded.path)
    if manifest.get("schema") != SCHEMA:
        raise RecipeError(
            f"the manifest has schema {manifest.get('schema')}, but this version reads schema {SCHEMA}.", where=where
        )
    for key, kind in _SHAPES.items():
        if not isinstance(manifest.get(key), (kind, type(None))):
            raise RecipeError(f'"{key}" is {type(manifest[key]).__name__}, not {kind.__name__}.', where=where)
    if not isinstance(manifest.get("recipe"), dict):
        raise RecipeError(
            "the run was started from Python, and a manifest cannot store its model, data set and callbacks.",
            where=where,
            fix="Run your script again, or write the run as a recipe for sftcore train.",
        )
    if not manifest.get("weights_sha256") and not any(recorded.folder.glob("*.safetensors")):
        raise RecipeError(
            "the run saved no weights, so there is nothing to compare with.",
            where=where,
            fix="Give the manifest of a run that was completed.",
        )


def checked_again(recorded: Recorded, output: str, overrides: Sequence[str] = ()) -> Checked:
    """The run's recipe with a new output folder, checked as `sftcore train` checks it.

    Args:
        recorded: the manifest.
        output: a folder that does not exist, or is empty.
        overrides: `key=value` for the paths of the model and the data, if they have changed.

    Raises:
        RecipeError: the folder is not empty, an override changes something else, a secret is missing, or the manifest
            trusts a model but no override does.
    """
    from sftcore.train.run import check_recipe

    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecipeError(
            "a replay needs a new or empty output folder.", where=output, fix="Name another one with --output."
        )
    for override in overrides:
        if override.partition("=")[0].strip().split(".")[0] not in (*_ELSEWHERE, *_TRUST):
            raise RecipeError(
                f'"{override}" would change the run.',
                where="command line",
                fix="A replay accepts only new paths: model=…, data=…, data.train=…, data.eval=….",
            )
    trusts: set[str] = set()
    raw = _without_secrets_and_trust(recorded.manifest["recipe"], trusts)
    raw = {key: value for key, value in raw.items() if key not in _LEFT_OUT and not key.startswith("hub_")}
    raw = overridden({**raw, "output_dir": output, "report_to": "none"}, overrides)
    for key in sorted(trusts - raw.keys()):
        raise RecipeError(
            f"the manifest sets {key}, which lets a model run code, so it is not adopted automatically.",
            where=str(recorded.path),
            fix=f"If you trust the model, repeat the setting: sftcore replay {recorded.path} {key}=true.",
        )
    return check_recipe(parse_recipe(raw, place=str(recorded.path)))


def _without_secrets_and_trust(value: Any, trusts: set[str]) -> Any:
    """The value without secrets, which the manifest marks, and without the settings in _TRUST, at any depth.

    Those of the settings that were switched on are added to `trusts`.
    """
    if isinstance(value, dict):
        trusts |= {key for key in _TRUST if value.get(key)}
        left_out = {key for key, part in value.items() if key in _TRUST or part == NOT_WRITTEN}
        return {key: _without_secrets_and_trust(part, trusts) for key, part in value.items() if key not in left_out}
    return [_without_secrets_and_trust(part, trusts) for part in value] if isinstance(value, list) else value


# --- Differences ------------------------------------------------------------------------------------------------------
def differences(recorded: Recorded, checked: Checked) -> Iterator[str]:
    """A line for each difference from the original run: libraries, machine, data, model files, source of plugins."""
    from sftcore.train.record.environment import environment, fingerprint, sources
    from sftcore.train.run import data_digests

    was = recorded.manifest
    yield from _differing("", was["versions"], versions())
    yield from _differing("", was.get("environment") or {}, environment())
    files = data_digests(checked)
    before = list((was.get("data_files_sha256") or {}).items())
    for (old, sha256), (new, now) in zip(before, files.items(), strict=False):
        if sha256 != now:
            yield f"the contents of data file {new} are not those of {old} in the run"
    if len(before) != len(files):
        yield f"number of data files: {len(before)} then, {len(files)} now"
    if was.get("model_sha256") != fingerprint(checked.recipe.model.name):
        yield f"the files of model {checked.recipe.model.name} have changed"
    now_sources = sources(checked.setup.plugins.bound)
    for name, sha256 in (was.get("sources_sha256") or {}).items():
        if name in now_sources and now_sources[name] != sha256:
            yield f"the source of {name} has changed"
    for name in now_sources.keys() - (was.get("sources_sha256") or {}).keys():
        yield f"the source of {name} was not recorded"


def _differing(place: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for key in dict.fromkeys([*then, *now]):
        old, new = then.get(key), now.get(key)
        if isinstance(old, dict) or isinstance(new, dict):
            inside = (one if isinstance(one, dict) else {} for one in (old, new))
            yield from _differing(f"{place}{key} ", *inside)
        elif old != new:
            yield f"{place}{key}: {old if old is not None else 'none'} then, {new if new is not None else 'none'} now"


# --- Running ----------------------------------------------------------------------------------------------------------
def replay(recorded: Recorded, checked: Checked, console: Console, say: Callable[[str], None]) -> Verdict:
    """Train again, and compare the results; `say` is called with differences that show only in the prepared data."""
    from sftcore.train.record.recorder import StopAt
    from sftcore.train.run import run_recipe

    def before_training(trainer: SFTTrainer) -> None:
        was = (recorded.manifest.get("data") or {}).get("train_rows_sha256")
        if was is not None and was != trainer.recorder.rows_hash():
            say("the prepared rows are not those of the run")
        steps, planned = recorded.manifest.get("steps"), recorded.manifest.get("max_steps")
        if steps and planned and steps < planned:  # it ended early, with the learning rates of the full schedule
            trainer.add_callback(StopAt(steps))

    outcome = run_recipe(checked, console, before_training=before_training)
    return compare_runs(recorded, outcome.folder)


def compare_runs(recorded: Recorded, again: Path) -> Verdict:
    """Compare the weights and the logged curve of the run with those of its replay in the folder `again`."""
    weights, same_weights = _weights(recorded, again)
    curve, same_curve = _curve(recorded.folder / "metrics.jsonl", again / "metrics.jsonl")
    return Verdict(weights, curve, same_weights and same_curve)


def _weights(recorded: Recorded, again: Path) -> tuple[str, bool]:
    known = recorded.manifest.get("weights_sha256") or {}
    now = weights_sha256(again)
    if known and known == now:
        return f"weights: bit-identical ({len(now)} file{'' if len(now) == 1 else 's'})", True
    if weights_sha256(recorded.folder).keys() != now.keys():
        if known:
            return "weights: different; by how much is not known, as the run's own are no longer in its folder", False
        raise ModelError("the weight files of the run and of the replay do not match.", where=str(recorded.folder))
    total, differing, largest = 0, 0, 0.0
    for name in now:
        for gap in _gaps(recorded.folder / name, again / name):
            total, differing = total + 1, differing + (gap is not None)
            largest = max(largest, gap or 0.0)
    if differing:
        return f"weights: {differing} of {total} tensors differ, by up to {largest:.3g}", False
    if known and known != weights_sha256(recorded.folder):
        return "weights: the files next to the manifest are no longer those that the run saved", False
    return f"weights: bit-identical ({total} tensors)", True


def _gaps(first: Path, second: Path) -> Iterator[float | None]:
    """The largest difference in each tensor, or None if it is bit-identical."""
    import torch
    from safetensors.torch import load_file

    old, new = load_file(first), load_file(second)
    for name in sorted({*old, *new}):
        one, other = old.get(name), new.get(name)
        if one is None or other is None or one.shape != other.shape or one.dtype != other.dtype:
            yield float("inf")
        elif torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8)):
            yield None
        else:
            yield float((one.double() - other.double()).abs().max())


def _curve(first: Path, second: Path) -> tuple[str, bool]:
    if not first.is_file():
        return "curve: not compared, as the run's metrics.jsonl is not next to its manifest", True
    old, new = _logged(first), _logged(second)
    for step in sorted({*old, *new}):
        if old.get(step) != new.get(step):
            return f"curve: different from step {step} onwards: {old.get(step)} then, {new.get(step)} now", False
    return f"curve: identical at all {len(old)} logged steps", True


def _logged(path: Path) -> dict[int, dict[str, Any]]:
    """What was logged at each step, without anything that depends on time; a resumed run's last entry counts."""
    found: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # a line that was being written when the run was killed
            continue
        if not isinstance(entry, dict) or "step" not in entry:
            continue
        kept = {key: value for key, value in entry.items() if key in _CURVE or _is_loss_of_set(key)}
        if kept:
            found.setdefault(entry["step"], {}).update(kept)
    return found


def _is_loss_of_set(key: str) -> bool:
    """Whether it is the loss of one of several evaluation sets, such as `eval_dev_loss`."""
    return key.startswith("eval_") and key.endswith("_loss")


def fresh_folder(recorded: Recorded) -> str:
    """The path of a new folder next to the run's."""
    base = recorded.folder.resolve()
    names = (base.with_name(f"{base.name}-replay{f'-{number}' if number else ''}") for number in range(1000))
    return str(next(name for name in names if not name.exists()))
