"""Errors of libraries and of plugins' code, which a user meets as one of ours."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

from sftcore.core.errors import FaultyPluginError, SFTCoreError, said_by
from sftcore.core.hookspecs import PROJECT
from sftcore.core.registry import Bound

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


@contextmanager
def naming_plugins(plugins: Iterable[Bound]) -> Iterator[None]:
    """Around the steps of a run: an error in the code of another's plugin names it, wherever it is called from.

    Kernels, attentions and adapters put functions into the model that nobody calls through the registry.

    Raises:
        FaultyPluginError: the innermost code of a plugin that the error passed through.
    """
    try:
        yield
    except SFTCoreError as error:
        if _IN_WORKER in error.what:  # torch makes a worker's error anew, with its traceback as the message
            *_, last = error.what.rstrip().splitlines()
            error.what = last.partition(": ")[2] or last
            error.args = (error.what,)
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or type(error).__module__.startswith(PROJECT):  # a signal
            raise
        if not out_of_memory(error) and (fault := _fault_of(error, [one for one in plugins if not one.entry.is_own])):
            raise fault from error
        raise


_IN_WORKER = " in DataLoader worker process "


def _fault_of(error: BaseException, plugins: Sequence[Bound]) -> FaultyPluginError | None:
    found = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__", ""))
        for one in plugins:
            if module.partition(".")[0] == type(one.plugin).__module__.partition(".")[0]:
                found = one, f"{frame.f_code.co_filename}:{line}"
                break
    if found is None:
        return None
    one, at = found
    return FaultyPluginError(
        f"{one.entry.label} {one.entry.version}: its code ({at}) raised {said_by(error)}.",
        fix=f"Update or remove {one.entry.distribution}, or report this to its authors (--traceback shows the way).",
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether a device's memory ended, which callers look for by its own class."""
    return type(error).__name__ in ("OutOfMemoryError", "AcceleratorError")


def _by_libraries_alone(passed: TracebackType | None, until: str) -> bool:
    """Whether no line of another module stands between this call and the error, and none of that function."""
    while passed is not None:
        package = str(passed.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        ours = package in LIBRARIES or package.startswith("sftcore")
        if not ours or passed.tb_frame.f_code.co_name == until:
            return False
        passed = passed.tb_next
    return True
