"""Chooses the format for a report: the run's own, or if the run would find none, the mapping that a format offers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
from attrs import frozen

from sftcore.config.setup import Setup
from sftcore.core.registry import Bound
from sftcore.core.types import Row
from sftcore.data.format import UnreadColumnsError, choose_format
from sftcore.data.source.tokenizers import has_chat_template


@frozen
class FormatChoice:
    """A setup with its format.

    If a run would find no format, `line` is the line that the recipe needs, and `reason` is the run's error.
    """

    setup: Setup
    bound: Bound
    line: str = ""
    reason: str = ""

    @property
    def label(self) -> str:
        """The format as a recipe spells it: its name, or its name with options."""
        return self.line.removeprefix("format: ") or self.bound.entry.name


def format_for(
    setup: Setup,
    columns: Sequence[str],
    where: str,
    rows: Callable[[], Sequence[Row]] = tuple,
) -> FormatChoice:
    """The format that a run with this setup uses, or else the first mapping that a format offers for these columns.

    Raises:
        DataError: no format reads these columns or offers a mapping.
        ConflictError: several formats read them.
    """
    try:
        bound = choose_format(
            setup,
            columns,
            where,
            rows=rows,
            has_template=has_chat_template(setup.plan),
        )
        return FormatChoice(setup, bound)
    except UnreadColumnsError as error:
        if not error.suggestions:
            raise
        first = error.suggestions[0]
        plugins = setup.plugins.having(first.bound)
        return FormatChoice(attrs.evolve(setup, plugins=plugins), first.bound, first.line, error.what)
