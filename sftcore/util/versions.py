"""Versions of the libraries that can change a result, and of the transformers that was tested."""

from __future__ import annotations

import importlib.metadata
import platform
import warnings

from packaging.version import Version

LIBRARIES = (
    "sftcore",
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "accelerate",
    "peft",
    "safetensors",
    "pluggy",
)
TESTED = ("5.17", "5.24")
"""The oldest and the newest transformers that the tests run with."""


def versions() -> dict[str, str]:
    """Python, the platform, and every library that can change a result."""
    found = {name: version for name in LIBRARIES if (version := _version(name))}
    return {"python": platform.python_version(), "platform": platform.platform(), **found}


def warn_if_untested(version: str | None = None) -> None:
    """Say at the start of a run that its transformers is newer than those that were tested."""
    found = version or importlib.metadata.version("transformers")
    if Version(found).release[:2] > Version(TESTED[1]).release:
        warnings.warn(
            f"transformers {found} is newer than {TESTED[1]}, the newest that sftcore was tested with, and may have "
            "changed what sftcore relies on.",
            stacklevel=3,
        )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
