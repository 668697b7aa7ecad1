"""The checkpoints of a run as folders: put in their place at once, chosen by what is in them, and rotated.

What is being written lies in a hidden `.tmp-…` folder; a name without that prefix is a save that was completed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from pathlib import Path

from attrs import frozen

from sftcore.config.recipe import AUTO, LAST
from sftcore.core.errors import CheckpointError
from sftcore.train.checkpoint.checksums import SEAL, Compared, compared, is_sealed
from sftcore.util.disk import sync

PREFIX = ".tmp-"
_REPLACED = PREFIX + "replaced-"
MODEL_CONFIGS = ("config.json", "adapter_config.json")
STATE = "trainer_state.json"
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
RESUME = "resume_from_checkpoint"


@frozen
class Chosen:
    """The checkpoint to resume from, None to begin; and those that were passed over, each with the reason.

    rewritten: what of its files was written again since, none of which matters.
    offer: where weights stand all the same, and how to resume from them; empty where there are none.
    """

    folder: Path | None
    step: int = 0
    passed_over: tuple[str, ...] = ()
    sealed: bool = True
    rewritten: tuple[str, ...] = ()
    offer: str = ""


def choose(wanted: str | bool | os.PathLike[str], output_dir: Path, *, anyway: bool = False) -> Chosen:
    """The checkpoint that a run resumes from.

    Args:
        wanted: `"auto"`: the newest in `output_dir` that is whole, or none; `"last"` or True: the same, and there has
            to be one; anything else is a checkpoint's folder.
        anyway: take a folder that is named also if its weights were written again since, as long as they can be read.

    Raises:
        CheckpointError: it is not there, or damaged; with the file's name.
    """
    if wanted == AUTO:
        return newest(output_dir)
    if wanted is True or wanted == LAST:
        chosen = newest(output_dir)
        if chosen.folder is None:
            raise _none_to_resume(output_dir, chosen)
        return chosen
    folder = Path(str(wanted))
    refuse_absent(folder, output_dir)
    if not is_sealed(folder):
        return Chosen(folder, _step(folder) or 0, sealed=False)
    found = compared(folder)
    if found.fault and not (anyway and found.weights):
        own = "If you have written it yourself, resume from it with resume_changed: true. " if found.weights else ""
        raise CheckpointError(
            f"{folder} is damaged: {found.fault}.",
            where=RESUME,
            fix=f'{own}Use "{AUTO}", which takes the newest checkpoint that is whole.',
        )
    return Chosen(folder, _step(folder) or 0, rewritten=(*([found.fault] if found.fault else []), *found.rewritten))


def refuse_absent(wanted: str | bool | os.PathLike[str] | None, output_dir: Path) -> None:
    """Refuse a checkpoint that is none, by the names of its files alone, so before anything heavy is loaded.

    Args:
        wanted: as `choose` takes it, or None where a run does not resume.
        output_dir: of the run.

    Raises:
        CheckpointError: the folder is no checkpoint, or there has to be one in `output_dir` and none is.
    """
    if wanted is None or wanted == AUTO:
        return
    if wanted is True or wanted == LAST:
        if not _folders(output_dir):
            raise _none_to_resume(output_dir, Chosen(None))
        return
    folder = Path(str(wanted))
    if not (folder / STATE).is_file() and not is_sealed(folder):
        raise CheckpointError(
            f"{folder} is not a checkpoint: it has no {STATE}.",
            where=RESUME,
            fix=f'Name a folder such as {output_dir / "checkpoint-10"}, or use "{AUTO}" or "{LAST}".',
        )


def _none_to_resume(output_dir: Path, chosen: Chosen) -> CheckpointError:
    seen = f" Passed over: {'; '.join(chosen.passed_over)}." if chosen.passed_over else ""
    return CheckpointError(
        f"there is no checkpoint in {output_dir} to resume from.{seen}",
        where=RESUME,
        fix=f'{chosen.offer} Use "{AUTO}", which then starts from scratch.'.lstrip(),
    )


def newest(output_dir: Path) -> Chosen:
    """The checkpoint of the highest step whose files are all as they were written.

    The step is the one recorded in the checkpoint: a folder may have been renamed or copied.
    """
    found = [(_step(folder), folder) for folder in _folders(output_dir)]
    passed_over = [f"{folder.name}: {STATE} cannot be read" for step, folder in found if step is None]
    offer = ""
    for step, folder in sorted(((step, folder) for step, folder in found if step is not None), reverse=True):
        beside = compared(folder) if is_sealed(folder) else Compared(None)
        why = _unfit(folder, beside)
        if why is None:
            return Chosen(folder, step, tuple(passed_over), rewritten=beside.rewritten)
        passed_over.append(f"{folder.name}: {why}")
        offer = offer or _offer(folder, step, beside)
    return Chosen(None, passed_over=tuple(passed_over), offer=offer)


def _folders(output_dir: Path) -> list[Path]:
    if not output_dir.is_dir():
        return []
    return sorted(
        folder
        for folder in output_dir.iterdir()
        if folder.is_dir()
        and not folder.name.startswith(".")
        and (folder.name.startswith("checkpoint-") or (is_sealed(folder) and (folder / STATE).is_file()))
    )


def can_be_resumed(output_dir: Path) -> bool:
    """Whether a checkpoint of ours is there that held a whole run when it was written; what it holds is not read."""
    return any(is_sealed(folder) and any(folder.glob("rng_state*")) for folder in _folders(output_dir))


def _unfit(folder: Path, beside: Compared) -> str | None:
    if not is_sealed(folder):
        return f"it has no {SEAL}: another program wrote it; name its folder to resume from it"
    if beside.fault:
        return beside.fault
    if not any(folder.glob("rng_state*")):
        return "it holds the model alone (save_only_model)"
    return None


def _offer(folder: Path, step: int, beside: Compared) -> str:
    """How to resume from weights that no run takes by itself; empty where there are none that are whole."""
    if not any(folder.glob("*.safetensors")) or (beside.fault and not beside.weights):
        return ""
    anyway, but = "", ""
    if beside.weights:
        anyway, but = " and resume_changed: true", f", whole but for {', '.join(beside.weights)}"
    return f"Weights stand in {folder} (step {step}{but}): to resume from them, set {RESUME}: {folder}{anyway}."


def _step(folder: Path) -> int | None:
    try:
        step = json.loads((folder / STATE).read_bytes())["global_step"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return step if isinstance(step, int) else None


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
    configs = [name for name in names if name.name in MODEL_CONFIGS]
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
