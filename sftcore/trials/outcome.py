"""What a trial found, and the error that names the plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from sftcore.core.errors import BrokenPluginError

if TYPE_CHECKING:
    from sftcore.core.registry import Bound


@frozen
class Outcome:
    """The result of one trial.

    fault: what is wrong, with the figure and its bound; empty where the claim holds. fix: how to mend it. notes: what a
    run should say of the plugin although nothing is wrong, such as a difference that it declares.
    """

    fault: str = ""
    fix: str = ""
    notes: tuple[str, ...] = ()


PASSED = Outcome()


def spelled(one: Bound) -> str:
    """The plugin with where it comes from: `loss "focal" (acme-losses 1.2)`."""
    entry = one.entry
    return f'{entry.kind} "{entry.name}" ({entry.distribution} {entry.version})'


def refused(one: Bound, outcome: Outcome) -> BrokenPluginError:
    """The error for a plugin that failed its trial."""
    fix = outcome.fix or f"Update or remove {one.entry.distribution}, or report this to its authors."
    return BrokenPluginError(f"{spelled(one)} failed its trial: {outcome.fault}.", where=one.selection.path, fix=fix)
