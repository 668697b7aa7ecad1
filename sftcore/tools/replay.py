"""A run done again from its manifest, and its weights compared bit by bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from sftcore.config.recipe import overridden, parse_recipe
from sftcore.core.errors import ModelError, RecipeError
from sftcore.train.record.manifest import SCHEMA, sha256_of_files, versions, weights_sha256
from sftcore.util.secrets import NOT_WRITTEN

if TYPE_CHECKING:
    from rich.console import Console

    from sftcore.train.checked import Checked
    from sftcore.train.trainer import SFTTrainer

_ELSEWHERE = ("model", "data")
"""What may lie at another place when the run is done again."""
_TRUST = ("trust_remote_code", "allow_pickle")
"""What lets a model run code: a manifest may be someone else's, so whoever replays it says this again."""
_LEFT_OUT = ("output_dir", "resume_from_checkpoint", "push_to_hub", "report_to")
_SHAPES = {
    **dict.fromkeys(("versions", "environment", "data_files_sha256", "sources_sha256", "weights_sha256", "data"), dict),
    **dict.fromkeys(("steps", "max_steps"), int),
}
_CURVE = ("loss", "eval_loss", "grad_norm")


@frozen
class Recorded:
    """A manifest that holds enough to run again."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """Where the run's weights and its log lie."""
        return self.path.parent


@frozen
class Verdict:
    """What a replay found: sentences on the weights and on the curve, and whether both are equal to the last bit."""

    weights: str
    curve: str
    equal: bool


# --- Reading ----------------------------------------------------------------------------------------------------------
def read_manifest(path: str) -> Recorded:
    """The manifest at `path`, or in that folder.

    Raises:
        RecipeError: there is none, it is no manifest, or it cannot be run again; with the reason.
    """
    file = Path(path).expanduser()
    file = file / "manifest.json" if file.is_dir() else file
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError("there is no manifest.", where=str(file), fix="Give a run's folder.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"the manifest cannot be read: {error}.", where=str(file)) from None
    if not isinstance(found, dict) or "versions" not in found:
        raise RecipeError("this is no manifest of a run.", where=str(file), fix="Give the manifest.json of a run.")
    recorded = Recorded(file, found)
    _refuse(recorded)
    return recorded


def _refuse(recorded: Recorded) -> None:
    manifest, where = recorded.manifest, str(recorded.path)
    if manifest.get("schema") != SCHEMA:
        raise RecipeError(f"the manifest has schema {manifest.get('schema')}, and {SCHEMA} is read.", where=where)
    for key, kind in _SHAPES.items():
        if not isinstance(manifest.get(key), (kind, type(None))):
            raise RecipeError(f'"{key}" is {type(manifest[key]).__name__}, not {kind.__name__}.', where=where)
    if not isinstance(manifest.get("recipe"), dict):
        raise RecipeError(
            "the run was started from Python: its model, data set and callbacks are objects that no manifest holds.",
            where=where,
            fix="Run your script again, or write the run as a recipe: sftcore train RECIPE.",
        )
    if not manifest.get("weights_sha256") and not any(recorded.folder.glob("*.safetensors")):
        raise RecipeError(
            "the run has saved no weights, so there is nothing to compare with.",
            where=where,
            fix="Give the manifest of a run that came to its end.",
        )


def checked_again(recorded: Recorded, output: str, overrides: Sequence[str] = ()) -> Checked:
    """The run's recipe for a fresh folder, checked as `sftcore train` does.

    Args:
        recorded: the manifest.
        output: a folder that does not exist, or is empty.
        overrides: `key=value` for the places of model and data, where these are not what they were.

    Raises:
        RecipeError: the folder is not fresh, an override is of something else, a secret is missing, or the manifest
            trusts a model and no override does.
    """
    from sftcore.train.run import check_recipe

    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecipeError("a replay needs a fresh folder.", where=output, fix="Give another one with --output.")
    for override in overrides:
        if override.partition("=")[0].strip().split(".")[0] not in (*_ELSEWHERE, *_TRUST):
            raise RecipeError(
                f'"{override}" would make it another run.',
                where="command line",
                fix="A replay takes only the places of files: model=…, data=…, data.train=…, data.eval=….",
            )
    raw = _without_secrets(recorded.manifest["recipe"])
    raw = {key: value for key, value in raw.items() if key not in _LEFT_OUT and not key.startswith("hub_")}
    trusts: set[str] = set()
    raw = _without_trust(raw, trusts)
    raw = overridden({**raw, "output_dir": output, "report_to": "none"}, overrides)
    for key in sorted(trusts - raw.keys()):
        raise RecipeError(
            f"the manifest sets {key}, with which a model can run code, and this is not taken over.",
            where=str(recorded.path),
            fix=f"If you trust the model, say so: sftcore replay {recorded.path} {key}=true.",
        )
    return check_recipe(parse_recipe(raw, place=str(recorded.path)))


def _without_secrets(value: Any) -> Any:
    """Without the keys whose values the manifest does not hold."""
    if isinstance(value, dict):
        return {key: _without_secrets(part) for key, part in value.items() if part != NOT_WRITTEN}
    return [_without_secrets(part) for part in value] if isinstance(value, list) else value


def _without_trust(value: Any, found: set[str]) -> Any:
    """Without the keys that trust a model, wherever they stand; those that did are added to `found`."""
    if isinstance(value, dict):
        found |= {key for key in _TRUST if value.get(key)}
        return {key: _without_trust(part, found) for key, part in value.items() if key not in _TRUST}
    return [_without_trust(part, found) for part in value] if isinstance(value, list) else value


# --- Differences ------------------------------------------------------------------------------------------------------
def differences(recorded: Recorded, checked: Checked) -> Iterator[str]:
    """What is not as it was, a sentence each: libraries, machine, data files, model files, source of plugins."""
    from sftcore.data.source.load import paths_of
    from sftcore.train.record.environment import environment, fingerprint, sources

    was = recorded.manifest
    yield from _differing("", was["versions"], versions())
    yield from _differing("", was.get("environment") or {}, environment())
    files = sha256_of_files(paths_of(checked.train, checked.eval))
    before = list((was.get("data_files_sha256") or {}).items())
    for (old, digest), (new, now) in zip(before, files.items(), strict=False):
        if digest != now:
            yield f"data file {new} is not what {old} was"
    if len(before) != len(files):
        yield f"data files: {len(before)} then, {len(files)} now"
    if was.get("model_sha256") != fingerprint(checked.recipe.model.name):
        yield f"model {checked.recipe.model.name} has other files"
    now_sources = sources(checked.setup.plugins.bound)
    for name, digest in (was.get("sources_sha256") or {}).items():
        if name in now_sources and now_sources[name] != digest:
            yield f"source of {name} has changed"
    for name in now_sources.keys() - (was.get("sources_sha256") or {}).keys():
        yield f"source of {name} was not recorded"


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
    """Train again, and compare. `say` is told what shows itself only once the data are prepared."""
    from sftcore.train.run import run_recipe

    def before_training(trainer: SFTTrainer) -> None:
        was = (recorded.manifest.get("data") or {}).get("train_rows_sha256")
        if was is not None and was != trainer.recorder.rows_hash():
            say("the prepared rows are not what they were")
        _stop_where_it_stopped(recorded, trainer)

    outcome = run_recipe(checked, console, before_training=before_training)
    return compare(recorded, outcome.folder)


def _stop_where_it_stopped(recorded: Recorded, trainer: SFTTrainer) -> None:
    """A run that was ended early is done again up to that step, on the schedule of the whole."""
    steps, planned = recorded.manifest.get("steps"), recorded.manifest.get("max_steps")
    if not steps or not planned or steps >= planned:
        return
    from sftcore.train.record.recorder import StopAt

    trainer.add_callback(StopAt(steps))


def compare(recorded: Recorded, again: Path) -> Verdict:
    """The weights and the logged curve of the run against those in `again`."""
    weights, same_weights = _weights(recorded, again)
    curve, same_curve = _curve(recorded.folder / "metrics.jsonl", again / "metrics.jsonl")
    return Verdict(weights, curve, same_weights and same_curve)


def _weights(recorded: Recorded, again: Path) -> tuple[str, bool]:
    known = recorded.manifest.get("weights_sha256") or {}
    now = weights_sha256(again)
    if known and known == now:
        return f"weights: identical to the last bit ({len(now)} file{'' if len(now) == 1 else 's'})", True
    if weights_sha256(recorded.folder).keys() != now.keys():
        if known:
            return "weights: they differ (those of the run are no longer beside its manifest)", False
        raise ModelError("the run's weights are in other files than the replay's.", where=str(recorded.folder))
    total, differing, largest = 0, 0, 0.0
    for name in now:
        for gap in _gaps(recorded.folder / name, again / name):
            total, differing = total + 1, differing + (gap is not None)
            largest = max(largest, gap or 0.0)
    if differing:
        return f"weights: {differing} of {total} tensors differ, by up to {largest:.3g}", False
    if known and known != weights_sha256(recorded.folder):
        return "weights: the files beside the manifest are no longer those that the run saved", False
    return f"weights: identical to the last bit ({total} tensors)", True


def _gaps(first: Path, second: Path) -> Iterator[float | None]:
    """For each tensor the largest difference, None where all bits are the same."""
    import torch
    from safetensors import safe_open

    with safe_open(first, "pt") as old, safe_open(second, "pt") as new:
        for name in sorted({*old.keys(), *new.keys()}):
            if name not in old.keys() or name not in new.keys():  # noqa: SIM118 - no mapping: it has keys() alone
                yield float("inf")
                continue
            one, other = old.get_tensor(name), new.get_tensor(name)
            if one.shape != other.shape or one.dtype != other.dtype:
                yield float("inf")
            elif torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8)):
                yield None
            else:
                yield float((one.double() - other.double()).abs().max())


def _curve(first: Path, second: Path) -> tuple[str, bool]:
    if not first.is_file():
        return "curve: not compared, the run's metrics.jsonl is not beside its manifest", True
    old, new = _logged(first), _logged(second)
    for step in sorted({*old, *new}):
        if old.get(step) != new.get(step):
            return f"curve: it differs from step {step} on: {old.get(step)} then, {new.get(step)} now", False
    return f"curve: identical at all {len(old)} logged steps", True


def _logged(path: Path) -> dict[int, dict[str, Any]]:
    """Step to what was logged there, without what depends on time; of a resumed run the last word on each step."""
    found: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # a line that was being written when the run was killed
            continue
        if not isinstance(entry, dict) or "step" not in entry:
            continue
        kept = {key: entry[key] for key in _CURVE if key in entry}
        if kept:
            found.setdefault(entry["step"], {}).update(kept)
    return found


def fresh_folder(recorded: Recorded) -> str:
    """A folder beside the run's that does not exist yet."""
    base = recorded.folder.resolve()
    names = (base.with_name(f"{base.name}-replay{f'-{number}' if number else ''}") for number in range(1000))
    return str(next(name for name in names if not name.exists()))
