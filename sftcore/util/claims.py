"""The error of a plugin that does not keep what it claims, which names it with where it comes from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sftcore.core.discovery import normalized
from sftcore.core.errors import BrokenPluginError, ModelError
from sftcore.core.hookspecs import PROJECT

if TYPE_CHECKING:
    from sftcore.core.registry import Bound


def spelled(one: Bound) -> str:
    """The plugin with where it comes from and its version: `loss "focal@acme-losses" 1.2`."""
    return f"{one.entry.label} {one.entry.version}"


def refused(one: Bound, fault: str, fix: str = "") -> BrokenPluginError:
    """The error for a plugin with this fault, which has no full stop.

    Args:
        fault: what is wrong, with the figure and what is allowed.
        fix: how its author mends it; without one, what a user can do.
    """
    fix = fix or f"Update or remove {one.entry.distribution}, or report this to its authors."
    return BrokenPluginError(f"{spelled(one)} failed its trial: {fault}.", where=one.selection.path, fix=fix)


def third_parties(plugins: Iterable[Bound]) -> str:
    """Those of these plugins that take part in the loss and are not sftcore's own, in words; empty without any."""
    foreign = [
        one for one in plugins if normalized(one.entry.distribution) != PROJECT and one.entry.kind in _IN_THE_LOSS
    ]
    return ", ".join(map(spelled, foreign))


@contextmanager
def suspecting(plugins: Iterable[Bound]) -> Iterator[None]:
    """Around passes of a model: an error of the model says which plugins of others take part in it."""
    try:
        yield
    except ModelError as error:
        if others := third_parties(plugins):
            error.fix = f"{error.fix} Plugins of others that take part in it: {others}.".strip()
        raise


_IN_THE_LOSS = ("loader", "loss", "kernel", "attention", "noise", "adapter", "collator")
