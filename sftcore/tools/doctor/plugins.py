"""Whether each installed plugin can be used, which is known once it has been imported."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from sftcore.config.plugins.bound import by_itself
from sftcore.core.discovery import discover
from sftcore.core.errors import SFTCoreError, said_by
from sftcore.tools.doctor.line import Line, found_in

AREA = "plugins"


def plugin_lines() -> list[Line]:
    """Broken plugins; those that lack what their extra brings are not wrong, and are listed."""
    entries = discover().entries
    lacking = [one for one in entries if one.missing]
    said = f"{len(entries) - len(lacking)} can be used"
    if lacking:
        named = ", ".join(dict.fromkeys(f"{one.kind} {one.name}" for one in lacking))
        said += f"; {len(lacking)} lack a package ({named}): sftcore list-plugins"
    return found_in(AREA, _broken(), said)


def _broken() -> Iterator[Line]:
    for entry in discover().entries:
        if entry.missing:
            continue
        try:
            with contextlib.redirect_stdout(sys.stderr):  # what a module prints must not stand in the JSON
                tuple(by_itself(entry).bound)
        except Exception as error:  # a third party's code may raise anything
            what = error.what if isinstance(error, SFTCoreError) else said_by(error)
            fix = error.fix if isinstance(error, SFTCoreError) else ""
            away = f"or use the rest without it: SFTCORE_BLOCK={entry.kind}:{entry.name}"
            yield Line(AREA, "error", f"{entry.label}: {what}", f"{fix} {away[0].upper()}{away[1:]}".strip())
