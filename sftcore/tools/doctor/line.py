"""One line of what the doctor found."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import attrs
from attrs import frozen


@frozen
class Line:
    """`area` is what was looked at, `fix` how to mend what is wrong; only "error" makes the exit code 1."""

    area: str
    status: Literal["ok", "warning", "error"]
    what: str
    fix: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return attrs.asdict(self)


def found_in(area: str, lines: Iterable[Line], otherwise: str) -> list[Line]:
    """The lines, or that all is well, in the words of `otherwise`."""
    return list(lines) or [Line(area, "ok", otherwise)]
