"""The plugin API over time: each hook says since when it is there, and what will go warns at the line that uses it."""

from __future__ import annotations

import sys
import warnings

import pytest
from packaging.version import Version

import sftcore
import sftcore.plugin_api
from sftcore.core import deprecations, registry
from sftcore.core.deprecations import ARGUMENTS, HOOKS, NAMES, Deprecation, hookspec
from sftcore.core.hookspecs import LIFECYCLE, Hooks

SOON = Deprecation(since="0.3", gone_in="0.5", instead="Use readies.")
KERNEL = '''
from sftcore import hookimpl, plugin


@plugin
class Old:
    """Answers a hook that will go."""

    @hookimpl
    def prepare(self, plan):
        pass
'''


@pytest.mark.parametrize("hook", LIFECYCLE)
def test_a_hook_says_with_which_version_it_came(hook):
    assert Version("0.1") <= Version(getattr(Hooks, hook).added) <= Version(sftcore.__version__)


@pytest.fixture
def kernel(write_distribution, request):
    name = f"old_{request.node.name.partition('[')[0][-20:]}"
    write_distribution(name, KERNEL, entry_points=f"[sftcore.kernel]\nold = {name}:Old\n".encode())
    return "old"


def warned(set_up, kernel) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        set_up(kernel=kernel)
    # built-ins are registered too, to be asked what they declare
    return [one for one in seen if "old_" in one.filename and "is deprecated" in str(one.message)]


def test_nothing_is_said_of_what_stays(kernel, set_up):
    assert warned(set_up, kernel) == []


def test_who_implements_a_deprecated_hook_is_warned_at_its_line(kernel, set_up, monkeypatch):
    monkeypatch.setattr(deprecations, "HOOKS", {"prepare": SOON})
    again(monkeypatch)
    said = warned(set_up, kernel)
    assert {str(one.message) for one in said} == {
        'The hook "prepare" is deprecated since sftcore 0.3 and will be gone in 0.5. Use readies.'
    }
    assert {one.category for one in said} == {DeprecationWarning}
    source = KERNEL.splitlines().index("    @hookimpl") + 1
    assert {one.lineno for one in said} == {source}


def test_who_asks_for_a_deprecated_argument_is_warned_and_nobody_else(kernel, set_up, monkeypatch):
    monkeypatch.setattr(deprecations, "ARGUMENTS", {"prepare": {"plan": SOON}, "check": {"probe": SOON}})
    again(monkeypatch, "prepare", "check")
    said = {str(one.message) for one in warned(set_up, kernel)}
    assert {text.partition(" since ")[0] for text in said} == {
        'The argument "plan" of the hook "prepare" is deprecated'
    }


def again(monkeypatch, *hooks: str) -> None:
    """Mark specifications again, as they are when the package is imported with these deprecations."""
    for hook in hooks or ("prepare",):
        of = getattr(Hooks, hook)
        first = of.sftcore_spec["firstresult"]
        monkeypatch.setattr(of, "sftcore_spec", of.sftcore_spec)
        hookspec(of.added, firstresult=first)(of)
    assert registry.Hooks is Hooks


@pytest.mark.parametrize("package", [sftcore, sftcore.plugin_api])
def test_who_imports_a_deprecated_name_is_warned_each_time_and_gets_it(package, monkeypatch):
    monkeypatch.setattr(deprecations, "NAMES", {f"{package.__name__}.plugin": SOON, "sftcore.plugin_api.nearest": SOON})
    name = "plugin" if package is sftcore else "nearest"
    monkeypatch.delitem(vars(package), name, raising=False)
    for _ in range(2):
        with pytest.warns(DeprecationWarning, match=rf"^{package.__name__}\.{name} is deprecated .* Use rea") as said:
            found = getattr(package, name)
        assert callable(found)
        assert said[0].filename == __file__
    with pytest.warns(DeprecationWarning, match=name) as said:
        exec(f"from {package.__name__} import {name}", {"__name__": "script"})
    assert {one.filename for one in said} == {"<string>"}


def test_what_is_deprecated_is_there_and_goes_in_a_later_minor_version():
    for hook in (*HOOKS, *ARGUMENTS):
        assert hook in LIFECYCLE
    for hook, arguments in ARGUMENTS.items():
        code = getattr(Hooks, hook).__code__
        assert set(arguments) <= set(code.co_varnames[: code.co_argcount])
    for name in NAMES:
        package, _, one = name.rpartition(".")
        assert one in sys.modules[package].__all__
    arguments = [one for some in ARGUMENTS.values() for one in some.values()]
    for one in (SOON, *HOOKS.values(), *arguments, *NAMES.values()):
        since, gone_in = Version(one.since), Version(one.gone_in)
        assert since.release[:2] < gone_in.release[:2]
        assert Version(sftcore.__version__) < gone_in, f"{one} was promised to be gone"
