"""Groups of entry points whose names are almost those of plugins, so that nobody finds what they offer."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

from attrs import define, field, frozen

from sftcore.core.discovery import GROUP, discover, normalized
from sftcore.core.types import KINDS

GROUPS = tuple(f"{GROUP}{kind}" for kind in KINDS)


@frozen
class UnreadGroup:
    """A group that a distribution declares, what it offers there, and the group that is meant, "" if none is near."""

    group: str
    distribution: str
    version: str
    names: tuple[str, ...]
    near: str

    def __str__(self) -> str:
        meant = f'Did you mean "{self.near}"?' if self.near else f"Groups: {', '.join(GROUPS)}."
        return (
            f"{self.distribution} {self.version} offers {', '.join(self.names) or 'nothing'} in the group "
            f'"{self.group}" of entry points, which nobody reads. {meant}'
        )


@define
class UnreadGroups:
    """Those of the distributions that it is called with; see the `also` of `discover`."""

    _found: dict[tuple[str, str], UnreadGroup] = field(factory=dict)

    def __call__(self, text: str, distribution: Any) -> None:
        for group, names in _sections(text) if "core" in text.lower() or "sft" in text.lower() else ():
            if group not in GROUPS and (near := near_group(group)):
                name = normalized(distribution.metadata["Name"] or "?")
                meant = "" if near == GROUP else near
                self._found.setdefault((name, group), UnreadGroup(group, name, distribution.version, names, meant))

    def __iter__(self) -> Iterator[UnreadGroup]:
        return iter(self._found[key] for key in sorted(self._found))


def unread_groups() -> list[UnreadGroup]:
    """Those of all installed distributions, by their name; nothing is imported."""
    found = UnreadGroups()
    discover(also=found)
    return [*found]


def _sections(text: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The groups of an entry_points.txt, with the names in each."""
    heading = re.compile(r"^\s*\[(.*)\]\s*$", re.MULTILINE)
    _, *parts = heading.split(text)
    for group, body in zip(parts[::2], parts[1::2], strict=True):
        lines = (line.strip() for line in body.splitlines())
        yield (
            group.strip(),
            tuple(line.partition("=")[0].strip() for line in lines if "=" in line and line[0] not in "#;"),
        )


def near_group(group: str) -> str:
    """The group of plugins that a name is almost; "sftcore." where it is none of them, and "" for another's own group.

    >>> near_group("sftcore_formats"), near_group("sftcore.optimizer"), near_group("console_scripts")
    ('sftcore.format', 'sftcore.', '')
    >>> near_group("sftcore_acme.templates")
    ''
    """
    spelled = re.sub(r"[^a-z0-9]+", ".", group.lower()).strip(".").replace("sft.core", "sftcore", 1)
    if spelled == GROUP.strip(".") or spelled in (f"{GROUP}plugin", f"{GROUP}plugins"):
        return GROUP
    head, _, rest = spelled.partition(".")
    alike = difflib.get_close_matches(spelled, GROUPS, n=1, cutoff=0.85)
    if alike and abs(len(head) - len(GROUP.strip("."))) <= 1:  # a longer one is the name of another project
        return alike[0]
    if head != GROUP.strip("."):
        return ""
    parts = [one for part in rest.split(".") for one in difflib.get_close_matches(part, KINDS, n=1, cutoff=0.8)]
    if parts:
        return f"{GROUP}{parts[-1]}"
    return GROUP if group.lower().startswith(GROUP) else ""
