"""Errors of libraries, which a user meets as one of ours."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from sftcore.core.errors import SFTCoreError

LIBRARIES = sys.stdlib_module_names | {
    "transformers", "accelerate", "peft", "torch", "datasets", "tokenizers", "deepspeed", "bitsandbytes", "numpy",
    "huggingface_hub", "hf_xet", "safetensors", "httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3",
    "pluggy",
}  # fmt: skip
"""Packages in whose code an error is not the user's own."""


@contextmanager
def in_our_words(
    what: str, kind: type[SFTCoreError], *, where: str = "", until: str = "", leaves: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Around a call of a library: its error becomes one of ours, unless it came from a user's code within it.

    Args:
        what: what could not be done.
        kind: our class of error.
        where: its place.
        until: a function of the library; what happens inside it is left as it is.
        leaves: errors that are left as they are.

    Raises:
        SFTCoreError: of this kind, with the first line of what the library says.
    """
    try:
        yield
    except Exception as error:
        ours = type(error).__module__.startswith("sftcore")
        if (
            ours
            or isinstance(error, leaves)
            or out_of_memory(error)
            or not _by_libraries_alone(error.__traceback__, until)
        ):
            raise
        said, _, more = str(error).strip().partition("\n")
        if said.endswith(":"):  # a heading, as huggingface_hub writes
            said = f"{said} {more.strip().partition(chr(10))[0]}".strip()
        raise kind(f"{what}: {type(error).__name__}: {said}", where=where) from error


def out_of_memory(error: BaseException) -> bool:
    """Whether a device's memory ended, which callers look for by its own class."""
    return type(error).__name__ in ("OutOfMemoryError", "AcceleratorError")


def _by_libraries_alone(traceback: TracebackType | None, until: str) -> bool:
    """Whether no line of another module stands between this call and the error, and none of that function."""
    while traceback is not None:
        package = str(traceback.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        ours = package in LIBRARIES or package.startswith("sftcore")
        if not ours or traceback.tb_frame.f_code.co_name == until:
            return False
        traceback = traceback.tb_next
    return True
