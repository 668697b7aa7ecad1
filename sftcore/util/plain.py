"""Values as JSON can hold them, without secrets and without the folders of this machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

from sftcore.util.secrets import NOT_WRITTEN, hides, without_secrets

if TYPE_CHECKING:
    from sftcore.core.registry import Bound


def plain(value: Any) -> Any:
    """A value as JSON can hold it: secrets are left out, what has no plain form becomes its text."""
    if isinstance(value, Mapping):
        return {str(key): NOT_WRITTEN if hides(key, part) else plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(part) for part in value]
    if isinstance(value, Enum):
        return plain(value.value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return without_secrets(value)
    if callable(getattr(value, "to_dict", None)):
        return plain(value.to_dict())
    return without_secrets(str(value))


def public(value: Any) -> Any:
    """Plain values without the folders of this machine: of every absolute path only the last part is left.

    >>> public({"data": "/home/me/rows.jsonl", "note": "read from /data/a/b.json, twice"})
    {'data': 'rows.jsonl', 'note': 'read from b.json, twice'}
    """
    if isinstance(value, Mapping):
        return {public(key): public(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [public(part) for part in value]
    return _PATH.sub(lambda found: re.split(r"[/\\]", found[0])[-1], value) if isinstance(value, str) else value


_PATH = re.compile(r"(?<![\w:/.\\-])(?:~|[A-Za-z]:)?(?:[/\\][^\s\"',;:()/\\]+){2,}")
"""An absolute path of at least two parts inside a text; `1/2`, `owner/name` and addresses are none."""


def describe_plugin(one: Bound) -> dict[str, Any]:
    """Which plugin, from which version of which distribution, with which options."""
    return {
        "kind": one.entry.kind,
        "name": one.entry.name,
        "distribution": one.entry.distribution,
        "version": one.entry.version,
        "options": plain(dict(one.selection.options)),
        "default": one.selection.default,
    }
