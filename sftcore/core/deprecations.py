"""The plugin API over time: since when each hook is there, and everything that will be taken away, in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import pluggy
from attrs import frozen

PROJECT = "sftcore"
_Hook = TypeVar("_Hook", bound=Callable[..., Any])


@frozen
class Deprecation:
    """`since` and `gone_in` are versions of sftcore; `instead` is a sentence that says what to write."""

    since: str
    gone_in: str
    instead: str

    def warning(self, what: str) -> DeprecationWarning:
        """What to warn with, such as `The hook "loads" is deprecated since sftcore 0.3 …`."""
        return DeprecationWarning(
            f"{what} is deprecated since sftcore {self.since} and will be gone in {self.gone_in}. {self.instead}"
        )


HOOKS: Mapping[str, Deprecation] = {}
"""By hook: whoever implements it is warned."""

ARGUMENTS: Mapping[str, Mapping[str, Deprecation]] = {}
"""By hook and argument: whoever asks for it is warned."""

NAMES: Mapping[str, Deprecation] = {}
"""By full name, such as `sftcore.plugin_api.pad_rows`: whoever imports it is warned."""


def hookspec(added: str, *, firstresult: bool = False) -> Callable[[_Hook], _Hook]:
    """Mark a specification of a hook that came with the version `added`; pluggy warns of what is deprecated in it."""

    def mark(function: _Hook) -> _Hook:
        name = function.__name__
        whole, arguments = HOOKS.get(name), ARGUMENTS.get(name, {})
        function.added = added  # type: ignore[attr-defined]
        return pluggy.HookspecMarker(PROJECT)(
            function,
            firstresult=firstresult,
            warn_on_impl=whole.warning(f'The hook "{name}"') if whole else None,
            warn_on_impl_args={
                argument: one.warning(f'The argument "{argument}" of the hook "{name}"')
                for argument, one in arguments.items()
            },
        )

    return mark
