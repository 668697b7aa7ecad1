"""Warnings that name the line of the user's script, however deep in sftcore they are found."""

from __future__ import annotations

import os
import sys
import warnings

from sftcore.core.discovery import PluginEntry
from sftcore.core.errors import BrokenPluginError, SFTCoreError, said_by

_PASSED_THROUGH = frozenset(
    {"transformers", "trl", "accelerate", "peft", "torch", "datasets", "pluggy", "contextlib", "functools"}
    | {"dataclasses", "copy"}
)
"""Packages that may stand between a user's line and what it leads to here."""


_said: list[str] = []


def count() -> int:
    """How many warnings this process has given so far, from which `said_since` counts."""
    return len(_said)


def said_since(number: int) -> list[str]:
    """The warnings given since there were so many, each once."""
    return list(dict.fromkeys(_said[number:]))


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the innermost line outside sftcore and the libraries that call it."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _is_passed_through(frame):
        frame, level = frame.f_back, level + 1
    _said.append(text)
    warnings.warn(text, category, stacklevel=level)


def is_strict() -> bool:
    """Whether warnings about plugins stop a run: SFTCORE_STRICT is set, as authors and CI do."""
    return os.environ.get("SFTCORE_STRICT", "").lower() not in ("", "0", "false", "no")


def warn_of_plugin(text: str, cause: BaseException | None = None) -> None:
    """Warn of a plugin with which a run goes on.

    Raises:
        BrokenPluginError: SFTCORE_STRICT is set.
    """
    if is_strict():
        raise BrokenPluginError(text, fix="SFTCORE_STRICT is set: without it, this is a warning.") from cause
    warn(text)


def warn_broken(entry: PluginEntry, error: Exception) -> None:
    """Say that a run goes on without a plugin that is broken, in one short line that is the same each time.

    Raises:
        BrokenPluginError: SFTCORE_STRICT is set.
    """
    why = error.what if isinstance(error, SFTCoreError) else said_by(error)
    why = " ".join(why.replace(f"{entry.label} {entry.version}:", "").replace(entry.label, "").split())
    warn_of_plugin(f"{entry.label} is broken and ignored: {why[:160]}", error)


def _is_passed_through(frame: object) -> bool:
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]  # type: ignore[attr-defined]
    code = frame.f_code  # type: ignore[attr-defined]
    # the constructor that `dataclass` writes for a user's subclass of SFTConfig has a user's module and no file
    is_ours = package.startswith("sftcore")
    return is_ours or package in _PASSED_THROUGH or (code.co_filename == "<string>" and code.co_name == "__init__")
