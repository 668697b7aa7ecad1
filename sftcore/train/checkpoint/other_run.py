"""What an output folder holds before a run: refused where it is needed, replaced where that is asked for."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attrs import frozen

from sftcore.config.recipe import AUTO, LAST
from sftcore.core.errors import ConflictError
from sftcore.train.checkpoint.folders import MODEL_CONFIGS, RESUME, STATE, can_be_resumed
from sftcore.train.checkpoint.owner import refuse_owned

_OF_MODEL = ("tasks.json",)
"""What is said of the model in the folder alone: its scores, which `sftcore evaluate --tasks` writes there."""


@frozen
class OutputFolder:
    """The folder that a run writes to.

    Attributes:
        path: output_dir.
        resume: what the run resumes from: a folder, "last", "auto" or None.
        overwrite: whether the run in it may be replaced.
        model: what the run starts from: a folder, a file or a hub id; None where no model is named.
    """

    path: Path
    resume: Any
    overwrite: bool
    model: str | None

    def refuse(self) -> None:
        """Refuse the folder of the model that is trained, and one that another run writes to or has written to.

        What is in it may be replaced where that was asked for.

        Raises:
            ConflictError: it is one of these.
        """
        where = f"output_dir {self.path}"
        refuse_owned(self.path)
        if self.model and Path(self.model).expanduser().resolve() == self.path.resolve() and self.path.is_dir():
            raise ConflictError(
                "this is the folder of the model that is trained, which the run would replace.",
                where=where,
                fix="Name another output_dir.",
            )
        if self.overwrite or self._continues() or not (held := held_run(self.path)):
            return
        names = [path.name for path in held]
        others = f" and {len(names) - 3} more" if len(names) > 3 else ""
        continued = f", continue with {RESUME}={AUTO}" if can_be_resumed(self.path) else ""
        raise ConflictError(
            f"the folder holds another run: {', '.join(names[:3])}{others}.",
            where=where,
            fix=f"Name another output_dir{continued}, or replace it with overwrite_output_dir=true.",
        )

    def replaced(self) -> list[Path]:
        """What of another run goes when this one begins; nothing where this one starts from something in the folder."""
        if not self.overwrite or self._continues():
            return []
        needed = [Path(name).expanduser().resolve() for name in (*_starts_from(self.model), self.resume) if name]
        if any(self.path.resolve() in (path, *path.parents) for path in needed):
            return []
        return held_run(self.path)

    def _continues(self) -> bool:
        """Whether the run continues the one in the folder."""
        if self.resume == AUTO:
            return can_be_resumed(self.path)
        if self.resume in (LAST, True):
            return True
        return bool(self.resume) and self.path.resolve() in Path(str(self.resume)).expanduser().resolve().parents


def held_run(folder: Path) -> list[Path]:
    """What another run has left in a folder, and a new one would replace or leave beside its own: models, checkpoints.

    A run that ended before its first save leaves nothing that counts.
    """
    if not folder.is_dir():
        return []
    return [path for path in sorted(folder.iterdir()) if _is_checkpoint(path) or _is_of_model(path)]


def held_model(folder: Path) -> bool:
    """Whether a whole model or adapter is in the folder itself."""
    return folder.is_dir() and any(_is_of_model(path) for path in folder.iterdir())


def remove_run(folder: Path) -> None:
    """Remove what `held_run` finds, the configurations without which no model is loaded, and what it scored.

    Raises:
        OSError: what the disk said.
    """
    for path in [*held_run(folder), *(folder / name for name in (*MODEL_CONFIGS, *_OF_MODEL))]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _is_checkpoint(path: Path) -> bool:
    return path.name.startswith("checkpoint-") and (path / STATE).is_file()


def _is_of_model(path: Path) -> bool:
    return path.is_file() and (path.suffix == ".safetensors" or path.name in ("pytorch_model.bin", "adapter_model.bin"))


def _starts_from(model: str | None) -> Iterator[str]:
    """The model that a run starts from and, where that is an adapter in a folder, the model below it."""
    if not model:
        return
    yield model
    try:
        text = (Path(model).expanduser() / "adapter_config.json").read_text(encoding="utf-8")
        below = json.loads(text)["base_model_name_or_path"]
    except (OSError, ValueError, LookupError, TypeError):
        return
    if isinstance(below, (str, os.PathLike)):
        yield str(below)
