"""Chooses the format for a report: the run's own, or if the run would find none, the mapping that a format offers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
from attrs import frozen

from sftcore.config.plugins.bound import bind
from sftcore.config.setup import Setup
from sftcore.core.errors import DataError, SFTCoreError
from sftcore.core.registry import Bound
from sftcore.core.types import Selection
from sftcore.data.format import choose_format


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


def format_for(setup: Setup, columns: Sequence[str], where: str) -> FormatChoice:
    """The format that a run with this setup uses, or else the first mapping that a format offers for these columns.

    Raises:
        DataError: no format reads these columns or offers a mapping.
        ConflictError: several formats read them.
    """
    try:
        bound = choose_format(setup.plan, setup.plugins, setup.catalog, setup.blocked, columns, where)
        return FormatChoice(setup, bound)
    except DataError as error:
        offered = _offered(setup, tuple(columns))
        if offered is None:
            raise
        options = ", ".join(f"{key}: {value}" for key, value in offered.selection.options.items())
        plugins = setup.plugins.having(offered)
        line = f"format: {{{offered.entry.name}: {{{options}}}}}"
        return FormatChoice(attrs.evolve(setup, plugins=plugins), offered, line, error.what)


def _offered(setup: Setup, columns: tuple[str, ...]) -> Bound | None:
    """The first format that offers a mapping, bound with that mapping."""
    for entry in setup.catalog.of_kind("format"):
        selection = Selection("format", entry.name, {}, entry.distribution, "suggested")
        try:
            one = bind(selection, setup.catalog, setup.blocked)
            options = setup.plugins.having(one).ask(one, "suggest", columns=columns)
            if options and isinstance(options[0], Mapping):
                return bind(attrs.evolve(selection, options=dict(options[0])), setup.catalog, setup.blocked)
        except SFTCoreError:
            continue  # choose_format has already warned of a broken plugin
    return None
