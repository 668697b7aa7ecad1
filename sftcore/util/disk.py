"""Turns failed writes into one clear error that says what could not be written, where, and how much space is free."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sftcore.core.errors import SFTCoreError, WriteError
from sftcore.core.types import Problem

_TORCH_FAILED = "torch could not write a file to its end"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def disk_error(error: Exception) -> str | None:
    """The operating system's message for a failed write, which libraries wrap in errors of their own; or None."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    text = str(error)
    if found := re.search(r"\(os error (\d+)\)", text):  # safetensors and tokenizers, written in Rust
        return os.strerror(int(found[1]))
    if "PytorchStreamWriter" in text or "file write failed" in text or "inline_container" in text:
        return _TORCH_FAILED
    return None


@contextlib.contextmanager
def writing(
    what: str,
    place: str | os.PathLike[str],
    *,
    fix: str = "Free space, or choose another folder.",
    reads_too: bool = False,
) -> Iterator[None]:
    """A context for code that writes `what` at or below `place`.

    With `reads_too`, only a full disk is reported; other errors may concern a file that is read.

    Raises:
        WriteError: the write failed.
    """
    try:
        yield
    except SFTCoreError:
        raise
    except Exception as error:
        if (said := disk_error(error)) is None or (reads_too and not _is_full(error)):
            raise
        text = f"{what} cannot be written: {said}; {free_space(place)}."
        raise WriteError(text, where=str(place), fix=fix) from error


def make_output_dir(folder: str) -> None:
    """Make the folder of a run before there is anything to lose.

    Raises:
        WriteError: it cannot be made.
    """
    with writing("output_dir", folder):
        Path(folder).mkdir(parents=True, exist_ok=True)


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in _FULL
    return disk_error(error) in (_TORCH_FAILED, *map(os.strerror, _FULL))


def replace_text(path: Path, text: str) -> None:
    """Replace a text file in one step, so that readers see the old text or the new one, never a part.

    Raises:
        OSError: the write failed, and the old text is still there.
    """
    aside = path.with_name(f".tmp-{path.name}")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def free_space(place: str | os.PathLike[str]) -> str:
    """How much space is free, in words.

    >>> free_space(".").endswith("MiB are free there")
    True
    """
    return f"{shutil.disk_usage(_nearest(Path(place))).free / 2**20:,.1f} MiB are free there"


def output_problems(settings: Mapping[str, Any]) -> Iterator[Problem]:
    """Problems that keep output_dir from becoming a folder, found before the data are prepared."""
    wanted = settings.get("output_dir")
    if not wanted:
        return
    folder = Path(wanted).expanduser()
    nearest = _nearest(folder)
    if not nearest.is_dir():
        yield Problem(
            f"{nearest} is a file.", f"output_dir {wanted}", "Name a folder, or a path where one can be made."
        )
    elif not os.access(nearest, os.W_OK | os.X_OK):
        yield Problem(f"{nearest} is not writable.", f"output_dir {wanted}", "Choose a folder that you may write to.")


def _nearest(place: Path) -> Path:
    """The path itself, or the closest parent that exists."""
    place = place.expanduser().absolute()
    return next(one for one in (place, *place.parents) if os.path.lexists(one))
