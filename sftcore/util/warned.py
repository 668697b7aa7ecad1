"""Warnings that name the line of the user's script, however deep in sftcore they are found."""

from __future__ import annotations

import sys
import warnings

_PASSED_THROUGH = frozenset(
    {"transformers", "trl", "accelerate", "peft", "torch", "datasets", "pluggy", "contextlib", "functools"}
    | {"dataclasses", "copy"}
)
"""Packages that may stand between a user's line and what it leads to here."""


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the innermost line outside sftcore and the libraries that call it."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _is_passed_through(frame):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, category, stacklevel=level)


def _is_passed_through(frame: object) -> bool:
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]  # type: ignore[attr-defined]
    code = frame.f_code  # type: ignore[attr-defined]
    # the constructor that `dataclass` writes for a user's subclass of SFTConfig has a user's module and no file
    is_ours = package.startswith("sftcore")
    return is_ours or package in _PASSED_THROUGH or (code.co_filename == "<string>" and code.co_name == "__init__")
