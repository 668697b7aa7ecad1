"""Which versions of transformers the seams were tested with."""

from __future__ import annotations

import importlib.metadata
import warnings

from packaging.version import Version

TESTED = ("5.17", "5.24")
"""The oldest and the newest that the tests run with."""


def warn_if_untested(version: str | None = None) -> None:
    """Say at the start of a run that its transformers is newer than those that were tested."""
    found = version or importlib.metadata.version("transformers")
    if Version(found).release[:2] > Version(TESTED[1]).release:
        warnings.warn(
            f"transformers {found} is newer than {TESTED[1]}, the newest that sftcore was tested with, and may have "
            "changed what sftcore relies on.",
            stacklevel=3,
        )
