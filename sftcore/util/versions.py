"""Versions of the libraries that can change a result, and of the transformers that was tested."""

from __future__ import annotations

import functools
import importlib.metadata
import platform

from packaging.version import Version

from sftcore.util.warned import warn

LIBRARIES = (
    "sftcore", "torch", "transformers", "tokenizers", "datasets", "accelerate", "peft", "safetensors", "pluggy",
)  # fmt: skip
TESTED = ("5.17", "5.24")
"""The oldest and the newest transformers that the tests run with."""


def versions() -> dict[str, str]:
    """Python, the platform, and every library that can change a result."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    return found | {name: version for name in LIBRARIES if (version := version_of(name)) is not None}


@functools.cache
def version_of(distribution: str) -> str | None:
    """The version with which this process began, or None if the distribution is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def warn_if_untested(version: str | None = None) -> None:
    """Say at the start of a run that its transformers is newer than those that were tested."""
    found = version or importlib.metadata.version("transformers")
    if Version(found).release[:2] > Version(TESTED[1]).release:
        warn(
            f"transformers {found} is newer than {TESTED[1]}, the newest that sftcore was tested with, and may have "
            "changed what sftcore relies on."
        )
