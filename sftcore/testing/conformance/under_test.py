"""The plugin that a class of tests is about, as a run would have it, and what its tests say when it fails."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import attrs
import pytest
from attrs import frozen

from sftcore.config.plugins.observed import HEAVY
from sftcore.config.setup import Setup, set_up
from sftcore.core.discovery import PluginEntry, discover
from sftcore.core.errors import SFTCoreError
from sftcore.core.plugin_class import build, is_plugin
from sftcore.core.registry import ActivePlugins, Bound
from sftcore.core.types import ModelRequest, Selection
from sftcore.testing.isolated import isolated

IMPORTS = f"""
import importlib, json, sys
found = {{}}
for name in sys.argv[2:]:
    before = set(sys.modules)
    importlib.import_module(name)
    found[name] = [heavy for heavy in {HEAVY!r} if heavy in sys.modules and heavy not in before]
json.dump(found, open(sys.argv[1], "w"))
"""


def fail(message: str) -> NoReturn:
    """End the test with a message and no traceback: the fault is in the plugin."""
    __tracebackhide__ = True
    pytest.fail(message, pytrace=False)


@frozen
class UnderTest:
    """A plugin class with the options that it is tested with; `name` is what a recipe calls it."""

    kind: str
    plugin: type
    options: Mapping[str, Any]
    name: str

    @property
    def label(self) -> str:
        """`kind "name"`."""
        return f'{self.kind} "{self.name}"'

    @property
    def entry(self) -> PluginEntry:
        """Its entry point, of the distribution that it is installed by, if there is one."""
        value = f"{self.plugin.__module__}:{self.plugin.__qualname__}"
        for one in discover().of_kind(self.kind):
            if one.value == value:
                return one
        return PluginEntry(self.kind, self.name, "under-test", "0", value)

    def made(self, options: Mapping[str, Any] | None = None) -> Any:
        """The plugin with its options, or with others, checked as those of a recipe are."""
        return build(self.plugin, self.options if options is None else options, path=f"{self.kind}.{self.name}")

    def alone(self) -> ActivePlugins:
        """The plugin in a run without any other."""
        return ActivePlugins([Bound(Selection(self.kind, self.name, self.options), self.entry, self.made())])

    @contextlib.contextmanager
    def in_a_run(self, chosen: Iterable[Selection] = (), **settings: Any) -> Iterator[Setup]:
        """A run with it and the defaults, on a CPU, before any weight is read."""
        with isolated() as plugins:
            if not any(one.value == self.entry.value for one in discover().of_kind(self.kind)):
                plugins({self.kind: {self.name: self.plugin}})
            selection = Selection(self.kind, self.name, self.options, path="the test")
            fields = {"seed": 0, "use_cpu": True, **settings}
            yield set_up([selection, *chosen], fields, ModelRequest(), where="the test", without=["loader"])

    @contextlib.contextmanager
    def asked(self, what: str) -> Iterator[None]:
        """Whatever is raised inside fails the test with the plugin's name, and with where it was raised."""
        __tracebackhide__ = True
        try:
            yield
            return
        except SFTCoreError as error:
            message = f"{what}: {error}"
        except Exception as error:  # a plugin may raise anything
            message = f"{what} raised {type(error).__name__}: {error}{_place(error, self.plugin)}"
        fail(f"{self.label}: {message}")

    def require(self, condition: object, message: str) -> None:
        """Fail the test with the plugin's name and the message, unless the condition holds."""
        __tracebackhide__ = True
        if not condition:
            fail(f"{self.label}: {message}")


def _place(error: BaseException, plugin: type) -> str:
    """Where in the plugin's own file it was raised."""
    file, line, trace = inspect.getsourcefile(plugin), 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" ({file}:{line})" if line else ""


def under_test(kind: str, plugin: Any, options: Mapping[str, Any], name: str) -> UnderTest:
    """The plugin of a class of tests, whose attributes these are."""
    if not is_plugin(plugin):
        fail(f"`plugin` has to be a class made by @sftcore.plugin, and is {plugin!r}.")
    found = UnderTest(kind, plugin, dict(options), name or plugin.__name__.lower())
    return found if name else attrs.evolve(found, name=found.entry.name)


# --- Importing --------------------------------------------------------------------------------------------------------
_imported: dict[str, tuple[list[str], str]] = {}


def import_of(module: str, *others: str) -> tuple[list[str], str]:
    """Which heavy libraries a module imports in a fresh process, and what is printed there; others are tried along."""
    if module not in _imported:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        names = [module, *(one for one in others if one != module)]
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "found.json"
            done = subprocess.run(
                [sys.executable, "-c", IMPORTS, str(out), *names], env=environment, capture_output=True, text=True
            )
            if done.returncode:
                last = done.stderr.strip().splitlines()[-1:]
                fail(f"{module} cannot be imported in a fresh Python: {''.join(last)}")
            found = json.loads(out.read_text())
        _imported.update({name: (heavy, done.stdout + done.stderr) for name, heavy in found.items()})
    return _imported[module]
