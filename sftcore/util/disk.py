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

from attrs import frozen

from sftcore.core.errors import RecipeError, SFTCoreError, WriteError
from sftcore.core.types import Problem
from sftcore.util.shown import shortened

_TORCH_FAILED = "torch could not write a file to its end"
_REMEDIES = {
    errno.ENOSPC: "Free space",
    errno.EDQUOT: "Free space: your quota is used up",
    errno.EFBIG: "Raise the limit on the size of a file (ulimit -f, or that of the file system)",
    errno.EROFS: "Mount the file system for writing",
    errno.EACCES: "Change who may write there",
    errno.EPERM: "Change who may write there",
    errno.ENOENT: "Make the folder again, which is missing",
    errno.ENOTDIR: "Move the file that stands where a folder has to be",
    errno.EEXIST: "Move the file that stands where a folder has to be",
    errno.EISDIR: "Move the folder that stands where a file has to be",
    errno.ENAMETOOLONG: "Shorten the name",
    errno.EIO: "Look for a fault of the disk in the system's log",
    errno.ESTALE: "Mount the file system again",
}
"""What mends a failed write, by what the operating system said of it."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def names_of_files() -> Iterator[None]:
    """Around a look for files by names that somebody gave, which may be whole texts.

    Raises:
        RecipeError: the operating system takes no name that long.
    """
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG or not isinstance(error.filename, str):
            raise
        raise RecipeError(
            f"a file was looked for by a name of {len(error.filename):,} characters, which is too long for one: "
            f"{shortened(error.filename)}.",
            fix="Give the name of a file or folder, or write the text into a file.",
        ) from error


@frozen
class DiskFailure:
    """A failed write: what the operating system said, and its number, where that is known."""

    said: str
    number: int | None

    @classmethod
    def of(cls, error: BaseException) -> DiskFailure | None:
        """The failed write that an error reports, which libraries wrap in errors of their own; None if it is none."""
        if isinstance(error, OSError):
            return cls(error.strerror or str(error), error.errno)
        text = str(error)
        if found := re.search(r"\(os error (\d+)\)", text):  # safetensors and tokenizers, written in Rust
            return cls(os.strerror(int(found[1])), int(found[1]))
        if "PytorchStreamWriter" in text or "file write failed" in text or "inline_container" in text:
            return cls(_TORCH_FAILED, None)
        return None

    @property
    def is_full(self) -> bool:
        """Whether space is what is missing; torch does not say why it could not write."""
        return self.said == _TORCH_FAILED if self.number is None else self.number in _FULL

    def told(self, place: str | os.PathLike[str]) -> str:
        """What was said, with the space that is left where the disk is full."""
        return f"{self.said}; {free_space(place)}" if self.is_full else self.said

    def remedy(self, otherwise: str) -> str:
        """How to mend it, followed by `otherwise`, such as "or choose another folder"."""
        first = "Free space" if self.is_full else _REMEDIES.get(self.number or 0, "")
        alone = otherwise.split(" ", 1)[1]
        return f"{first}, {otherwise}." if first else f"{alone[:1].upper()}{alone[1:]}."


def cache_folder() -> Path:
    """`$SFTCORE_CACHE`, or else `sftcore` in the user's cache folder."""
    if given := os.environ.get("SFTCORE_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sftcore"


@contextlib.contextmanager
def writing(
    what: str,
    place: str | os.PathLike[str],
    *,
    otherwise: str = "or choose another folder",
    reads_too: bool = False,
) -> Iterator[None]:
    """A context for code that writes `what` at or below `place`.

    `otherwise` ends the advice: "or" and what else can be done, or "then" and what comes next. With `reads_too`, only a
    full disk is reported; other errors may concern a file that is read.

    Raises:
        WriteError: the write failed.
    """
    try:
        yield
    except SFTCoreError:
        raise
    except Exception as error:
        failure = DiskFailure.of(error)
        if failure is None or (reads_too and not failure.is_full):
            raise
        text = f"{what} cannot be written: {failure.told(place)}."
        raise WriteError(text, where=str(place), fix=failure.remedy(otherwise)) from error


def make_output_dir(folder: str) -> None:
    """Make the folder of a run before there is anything to lose.

    Raises:
        WriteError: it cannot be made.
    """
    with writing("output_dir", folder):
        Path(folder).mkdir(parents=True, exist_ok=True)


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
