"""Trackers that a run names and cannot use, found before its data are prepared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from sftcore.core.errors import said_by
from sftcore.core.types import Problem


def unusable_trackers(report_to: Iterable[str]) -> Iterator[Problem]:
    """Trackers that cannot be made, as transformers' trainer would make them once the data are prepared.

    Args:
        report_to: names that transformers knows.
    """
    for name in report_to:
        try:
            INTEGRATION_TO_CALLBACK[name]()
        except Exception as error:  # a library that is broken raises anything
            yield Problem(
                f'report_to "{name}" cannot be used: {said_by(error)}.',
                fix=f"Mend its installation, or take {name} out of report_to.",
            )
