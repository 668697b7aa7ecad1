"""The checkpoints of a run as folders: put in their place at once, chosen by what is in them, and rotated.

What is being written lies in a hidden `.tmp-…` folder; a name without that prefix is a save that was completed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from sftcore.config.recipe import AUTO, LAST
from sftcore.core.errors import CheckpointError, ConflictError
from sftcore.core.visible import visible
from sftcore.train.checkpoint.checksums import SEAL, fault, is_sealed
from sftcore.util.disk import sync, writing

PREFIX = ".tmp-"
_REPLACED = PREFIX + "replaced-"
_MODEL_CONFIGS = ("config.json", "adapter_config.json")
_STATE = "trainer_state.json"
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
_RESUME = "resume_from_checkpoint"


@frozen
class Chosen:
    """The checkpoint to resume from, None to begin; and those that were passed over, each with the reason."""

    folder: Path | None
    step: int = 0
    passed_over: tuple[str, ...] = ()
    sealed: bool = True


def choose(wanted: str | bool | os.PathLike[str], output_dir: Path) -> Chosen:
    """The checkpoint that a run resumes from.

    Args:
        wanted: `"auto"`: the newest in `output_dir` that is whole, or none; `"last"` or True: the same, and there has
            to be one; anything else is a checkpoint's folder.

    Raises:
        CheckpointError: it is not there, or damaged; with the file's name.
    """
    if wanted == AUTO:
        return newest(output_dir)
    if wanted is True or wanted == LAST:
        chosen = newest(output_dir)
        if chosen.folder is None:
            seen = f" Passed over: {'; '.join(chosen.passed_over)}." if chosen.passed_over else ""
            raise CheckpointError(
                f"there is no checkpoint in {output_dir} to resume from.{seen}",
                where=_RESUME,
                fix=f'Use "{AUTO}", which then starts from scratch.',
            )
        return chosen
    folder = Path(str(wanted))
    if not (folder / _STATE).is_file() and not is_sealed(folder):
        raise CheckpointError(
            f"{folder} is not a checkpoint: it has no {_STATE}.",
            where=_RESUME,
            fix=f'Name a folder such as {output_dir / "checkpoint-10"}, or use "{AUTO}" or "{LAST}".',
        )
    if is_sealed(folder) and (found := fault(folder)):
        raise CheckpointError(
            f"{folder} is damaged: {found}.",
            where=_RESUME,
            fix=f'Use "{AUTO}", which takes the newest checkpoint that is whole.',
        )
    return Chosen(folder, _step(folder) or 0, sealed=is_sealed(folder))


def newest(output_dir: Path) -> Chosen:
    """The checkpoint of the highest step whose files are all as they were written.

    The step is the one recorded in the checkpoint: a folder may have been renamed or copied.
    """
    found = [(_step(folder), folder) for folder in _folders(output_dir)]
    passed_over = [f"{folder.name}: {_STATE} cannot be read" for step, folder in found if step is None]
    for step, folder in sorted(((step, folder) for step, folder in found if step is not None), reverse=True):
        why = _unfit(folder)
        if why is None:
            return Chosen(folder, step, tuple(passed_over))
        passed_over.append(f"{folder.name}: {why}")
    return Chosen(None, passed_over=tuple(passed_over))


def _folders(output_dir: Path) -> list[Path]:
    if not output_dir.is_dir():
        return []
    return sorted(
        folder
        for folder in output_dir.iterdir()
        if folder.is_dir()
        and not folder.name.startswith(".")
        and (folder.name.startswith("checkpoint-") or (is_sealed(folder) and (folder / _STATE).is_file()))
    )


def _unfit(folder: Path) -> str | None:
    if not is_sealed(folder):
        return f"it has no {SEAL}: another program wrote it; name its folder to resume from it"
    if found := fault(folder):
        return found
    if not any(folder.glob("rng_state*")):
        return "it holds the model alone (save_only_model)"
    return None


def _step(folder: Path) -> int | None:
    try:
        step = json.loads((folder / _STATE).read_bytes())["global_step"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return step if isinstance(step, int) else None


def held_run(folder: Path) -> list[Path]:
    """What another run has left in a folder, and a new one would replace or leave beside its own: models, checkpoints.

    A run that ended before its first save leaves nothing that counts.
    """
    if not folder.is_dir():
        return []
    return [path for path in sorted(folder.iterdir()) if _is_checkpoint(path) or _is_of_model(path)]


def _is_checkpoint(path: Path) -> bool:
    return path.name.startswith("checkpoint-") and (path / _STATE).is_file()


def _is_of_model(path: Path) -> bool:
    return path.is_file() and (path.suffix == ".safetensors" or path.name in ("pytorch_model.bin", "adapter_model.bin"))


def remove_run(folder: Path) -> list[Path]:
    """Remove what `held_run` finds, and the configurations without which no model is loaded; what was removed."""
    gone = held_run(folder)
    for path in [*gone, *(folder / name for name in _MODEL_CONFIGS)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return gone


def refuse_other_run(folder: Path, resume: Any, *, overwrite: bool) -> None:
    """Refuse an output folder that holds the model or the checkpoints of another run, which a new one would replace.

    Args:
        folder: output_dir.
        resume: what the run resumes from: a folder, "last", "auto" or None.
        overwrite: whether the other run may be replaced.

    Raises:
        ConflictError: it holds one, and the run neither continues it nor may replace it.
    """
    if overwrite or _continues(folder, resume) or not (held := held_run(folder)):
        return
    names = [path.name for path in held]
    others = f" and {len(names) - 3} more" if len(names) > 3 else ""
    raise ConflictError(
        f"the folder holds another run: {', '.join(names[:3])}{others}.",
        where=f"output_dir {folder}",
        fix=f"Name another output_dir, continue with {_RESUME}={AUTO}, or replace it with overwrite_output_dir=true.",
    )


def make_room(folder: Path, resume: Any, *, overwrite: bool, starts_from: Sequence[str | None]) -> None:
    """Remove the run that a new one may replace, and say so; never what the new one starts from.

    Raises:
        WriteError: it cannot be removed.
    """
    if not overwrite or _continues(folder, resume):
        return
    needed = [Path(name).resolve() for name in (*starts_from, resume) if name]
    if any(folder.resolve() in (path, *path.parents) for path in needed):
        return
    with writing("the new run", folder):
        gone = remove_run(folder)
    if gone:
        print(visible(f"output     {folder}: removed {', '.join(path.name for path in gone)}"), file=sys.stderr)


def _continues(folder: Path, resume: Any) -> bool:
    """Whether a run continues the one in its folder."""
    return resume in (AUTO, LAST, True) or (bool(resume) and folder.resolve() in Path(str(resume)).resolve().parents)


def final_place(folder: Path) -> Path:
    """Where what is being written into `folder` will be in the end."""
    return Path(*(part for part in folder.parts if not part.startswith(PREFIX)))


def place(written: Path, final: Path) -> None:
    """Give a sealed folder its name, in one move; what has that name already goes once it has been replaced.

    Raises:
        OSError: nothing has changed then.
    """
    old = final.with_name(_REPLACED + final.name)
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    try:
        written.rename(final)
    except OSError:
        with contextlib.suppress(OSError):
            old.rename(final)
        raise
    sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def place_model(written: Path, folder: Path) -> None:
    """Move the files of a saved model to their place, those first without which it is not loaded.

    An old model's configuration goes before and the new one comes last: a save that is cut off looks like no model.

    Raises:
        OSError: what the disk said.
    """
    names = [path.relative_to(written) for path in sorted(written.rglob("*")) if path.is_file()]
    for name in names:
        sync(written / name)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    configs = [name for name in names if name.name in _MODEL_CONFIGS]
    for name in configs:
        (folder / name).unlink(missing_ok=True)
    sync(folder)
    if any(_WEIGHTS.fullmatch(str(name)) for name in names):
        for path in folder.iterdir():
            if _WEIGHTS.fullmatch(path.name) and Path(path.name) not in names:
                path.unlink()  # shards of a model that was cut in another way
    for name in (*(name for name in names if name not in configs), *configs):
        if name in configs:
            sync(folder)
        os.replace(written / name, folder / name)
    sync(folder)
    shutil.rmtree(written, ignore_errors=True)


def clear_leftovers(run_dir: Path) -> None:
    """Remove what killed saves left; a checkpoint that was to be replaced, and was not, comes back."""
    for left in run_dir.glob(f"{PREFIX}*"):
        if left.name.startswith(_REPLACED) and not (kept := run_dir / left.name.removeprefix(_REPLACED)).exists():
            with contextlib.suppress(OSError):
                left.rename(kept)
                continue
        shutil.rmtree(left, ignore_errors=True)


def rotate(run_dir: Path, limit: int | None, *, written: Path, best: str | None) -> None:
    """Remove checkpoints until `limit` are left; never the one just written, nor the best.

    Damaged ones go first, then those of later steps, which a run that started again or went back has left behind.
    """
    if limit is None or limit <= 0:
        return
    kept = {written.resolve(), *([Path(best).resolve()] if best else [])}
    now = _step(written) or 0
    every = [folder for folder in _folders(run_dir) if folder.name.startswith("checkpoint-")]
    steps = {folder: _step(folder) for folder in every}

    def value(folder: Path) -> tuple[bool, bool, int]:
        step = steps[folder]
        return (step is not None and is_sealed(folder), step is not None and step <= now, step or 0)

    free = sorted((folder for folder in every if folder.resolve() not in kept), key=value)
    for folder in free[: max(0, len(every) - limit)]:
        # Half removed it must not have a checkpoint's name
        doomed = folder.with_name(f"{PREFIX}old-{folder.name}")
        with contextlib.suppress(OSError):
            folder.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
