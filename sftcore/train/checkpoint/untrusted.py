"""A checkpoint may be someone else's: what it could do when it is read, and that it cannot."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sftcore.core.errors import CheckpointError

_RESUME = "resume_from_checkpoint"


@contextmanager
def reading(folder: str | None) -> Iterator[None]:
    """While a checkpoint is read: optimizer, scheduler and random state are tensors and numbers, and nothing else.

    transformers reads them with `weights_only=True`, so that a pickle which would run code is refused by torch.

    Raises:
        CheckpointError: a file leads out of the folder, or holds something else.
    """
    if folder is not None:
        _refuse_links_out(Path(folder))
    try:
        yield
    except pickle.UnpicklingError as error:
        if folder is None:
            raise
        first = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"{folder} holds more than tensors and numbers, and reading it could run code ({first}).",
            where=_RESUME,
            fix="Go on from a checkpoint of your own.",
        ) from error


def _refuse_links_out(folder: Path) -> None:
    inside = folder.resolve()
    for file in folder.rglob("*"):
        if file.is_symlink() and not file.resolve().is_relative_to(inside):
            raise CheckpointError(
                f"{file} is a link that leads out of the checkpoint, to {file.resolve()}.",
                where=_RESUME,
                fix="Copy the file in its place, if you know what it is.",
            )
