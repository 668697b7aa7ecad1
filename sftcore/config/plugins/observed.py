"""Plugins at work, watched: what they print where nothing should be, and, where it is asked for, each hook call."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import io
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from sftcore.core.discovery import PluginEntry
from sftcore.core.door import Origin
from sftcore.core.errors import BrokenPluginError
from sftcore.core.visible import visible
from sftcore.util.process_state import left_as_found
from sftcore.util.warned import warn_of_plugin

TRACE = "SFTCORE_TRACE_PLUGINS"
"""The variable of the environment by which each hook call is printed to standard error."""

QUESTIONS = ("loads", "options_from", "claims", "attention_backend", "flattens", "check", "detects", "suggest")
"""Hooks that only ask something of a plugin: they are asked of plugins that the run may not use, and several times."""

HEAVY = ("torch", "transformers", "datasets", "peft", "accelerate")
"""Libraries that a plugin's module must not import at its top: discovery and check have to stay light."""

_pulled: dict[str, str] = {}
"""Which module brought in which heavy library. A second load finds both imported, and must give the same verdict."""


@contextlib.contextmanager
def observed(origin: Origin) -> Iterator[None]:
    """Around one call of a hook."""
    start, outcome = time.perf_counter(), "raised an error"
    try:
        heard = _heard(origin.label, f"in {origin.hook}") if origin.hook in QUESTIONS else contextlib.nullcontext()
        with heard, left_as_found(f"{origin.label} in {origin.hook}"):
            yield
        outcome = "answered"
    finally:
        if os.environ.get(TRACE):
            spent = (time.perf_counter() - start) * 1e3
            print(
                visible(f"hook {origin.hook:<18} {origin.label} {outcome} in {spent:.1f} ms  {origin.at}"),
                file=sys.stderr,
            )


def loaded(entry: PluginEntry) -> type[Any]:
    """The plugin's class, imported; what its module prints is kept from standard output, and told.

    Raises:
        BrokenPluginError: it cannot be imported, imports a heavy library at its top, or is not a plugin class.
    """
    module = entry.value.partition(":")[0]
    if not entry.is_own and (needed := _newer_sftcore(entry.distribution)):
        warn_of_plugin(f"{entry.label} {entry.version} {needed}.")
    light = [name for name in HEAVY if name not in sys.modules]
    who = f"{entry.label} {entry.version}"
    with _heard(who, "when it is imported"), left_as_found(f"{who}, as it is imported,"):
        found = entry.load()
    if pulled := [name for name in light if name in sys.modules]:
        _pulled[module] = pulled[0]
    if module in _pulled:
        raise BrokenPluginError(
            f"{entry.label} imports {_pulled[module]} at the top of a module it loads ({entry.value}).",
            fix="Move that import into the hook that needs it.",
        )
    return found


@functools.cache
def _newer_sftcore(distribution: str) -> str:
    """What a distribution's metadata ask of sftcore that this version is not; empty where it is."""
    from packaging.requirements import InvalidRequirement, Requirement

    own = __name__.partition(".")[0]
    has = importlib.metadata.version(own)
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, InvalidRequirement):
        for text in importlib.metadata.distribution(distribution).requires or ():
            requirement = Requirement(text)
            if requirement.name == own and not requirement.specifier.contains(has, prereleases=True):
                return f"needs {own}{requirement.specifier}, and this is {has}: pip install -U {own}"
    return ""


@contextlib.contextmanager
def _heard(label: str, when: str) -> Iterator[None]:
    """Keep what is printed inside from standard output, where it would end up in what other programs read."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            yield
    finally:
        if text := " ".join(said.getvalue().split()):
            shown = f"{text[:60]}…" if len(text) > 60 else text
            warn_of_plugin(f'{label} prints {when}: "{shown}". Its author should log it, or take it out.')
