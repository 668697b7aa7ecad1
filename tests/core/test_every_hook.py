"""Every hook is asked through pluggy: arguments may be left out, wrappers wrap, and each answer has its plugin."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from sftcore.config.setup import check
from sftcore.core.errors import BrokenPluginError, CheckError
from sftcore.core.hookspecs import LIFECYCLE
from sftcore.core.registry import ActivePlugins
from sftcore.core.types import Probe
from sftcore.data.format import choose_format, reader_for

ROOT = Path(__file__).parents[2]
HEAD = "from sftcore import Problem, hookimpl, plugin\nSEEN = []\n"


@pytest.fixture
def kernels(write_distribution):
    """Install kernel plugins, each given as the methods of its class, under the names a, b, … of one distribution."""

    def write(module: str, *bodies: str) -> None:
        names = "abcdef"[: len(bodies)]
        code = HEAD + "".join(
            f'@plugin\nclass {name.upper()}:\n    """Kernel {name}."""\n{_indented(body)}\n'
            for name, body in zip(names, bodies, strict=True)
        )
        entries = "".join(f"{name} = {module}:{name.upper()}\n" for name in names)
        write_distribution(module, code, entry_points=f"[sftcore.kernel]\n{entries}".encode())

    return write


def _indented(body: str) -> str:
    return "".join(f"    {line}\n" for line in body.strip("\n").splitlines())


def seen(setup) -> list:
    """What the kernels' module noted."""
    kernel = next(one.plugin for one in setup.plugins.bound if one.entry.kind == "kernel")
    return sys.modules[type(kernel).__module__].SEEN


def kernels_alone(setup) -> ActivePlugins:
    """The run's kernels without its other plugins, of which some have the same hooks."""
    return ActivePlugins([one for one in setup.plugins.bound if one.entry.kind == "kernel"])


# --- Arguments that an implementation leaves out --------------------------------------------------------------------
@pytest.mark.parametrize("arguments", ["self", "self, plan", "self, probe", "self, probe, plan"])
def test_check_takes_the_arguments_it_needs(kernels, set_up, arguments):
    module = f"hooks_check_{len(arguments)}"
    kernels(module, f"@hookimpl\ndef check({arguments}):\n    yield Problem('no norm.')")
    setup = set_up(kernel="a")
    assert [str(one) for one in setup.plugins.problems(setup.plan, Probe())] == ['kernel "a": no norm.']


def test_prepare_takes_the_arguments_it_needs(kernels, set_up):
    kernels(
        "hooks_prepare",
        "@hookimpl\ndef prepare(self):\n    SEEN.append('a')",
        "@hookimpl\ndef prepare(self, plan):\n    SEEN.append(plan)",
    )
    setup = set_up(kernel=["a", "b"])
    setup.plugins.all("prepare", plan=setup.plan)
    assert seen(setup) == ["a", setup.plan]


# --- Wrappers -------------------------------------------------------------------------------------------------------
def test_a_wrapper_of_check_sees_each_answer_and_may_change_it(kernels, set_up):
    kernels(
        "hooks_wrapped_check",
        "@hookimpl(wrapper=True)\ndef check(self):\n    found = [list(one) for one in (yield)]\n"
        "    SEEN.append(len(found))\n    return [[Problem(p.what.upper(), p.where) for p in one] for one in found]",
        "@hookimpl\ndef check(self):\n    yield Problem('one.')",
        "@hookimpl\ndef check(self, plan):\n    return [Problem('two.', 'here')]",
    )
    setup = set_up(kernel=["a", "b", "c"])
    seen(setup).clear()  # it is asked while the attention is chosen, too
    found = kernels_alone(setup).problems(setup.plan, Probe())
    assert [str(one) for one in found] == ['kernel "b": ONE.', "here: TWO."]
    assert seen(setup) == [1, 1]


def test_a_wrapper_is_entered_where_nobody_answers(kernels, set_up):
    kernels(
        "hooks_lonely_wrapper",
        "@hookimpl(wrapper=True)\ndef check(self):\n    return [*(yield), [Problem('nobody looked.')]]",
    )
    setup = set_up(kernel="a")
    found = kernels_alone(setup).problems(setup.plan, Probe())
    assert [str(one) for one in found] == ['kernel "a": nobody looked.']


def test_a_wrapper_of_claims_decides_about_conflicts(kernels, set_up):
    claim = "@hookimpl\ndef claims(self):\n    return ['kernel.rope']"
    kernels(
        "hooks_wrapped_claims",
        "@hookimpl(wrapper=True)\ndef claims(self):\n"
        "    return [[slot for slot in one if slot != 'kernel.rope'] for one in (yield)]",
        claim,
        claim,
    )
    setup = set_up(kernel=["a", "b", "c"])
    assert {tuple(slots) for one, slots in setup.plugins.all("claims") if one.entry.kind == "kernel"} == {()}


def test_a_wrapper_of_prepare_is_around_it(kernels, set_up):
    kernels(
        "hooks_wrapped_prepare",
        "@hookimpl(wrapper=True)\ndef prepare(self, plan):\n"
        "    SEEN.append('before')\n    yield\n    SEEN.append('after')",
        "@hookimpl\ndef prepare(self):\n    SEEN.append('b')",
    )
    setup = set_up(kernel=["a", "b"])
    assert setup.plugins.all("prepare", plan=setup.plan) == []
    assert seen(setup) == ["before", "b", "after"]


def test_a_wrapper_of_a_hook_with_one_answer_is_no_second_answer(kernels, set_up):
    kernels(
        "hooks_wrapped_loss",
        "@hookimpl(wrapper=True)\ndef make_loss(self):\n    loss = yield\n    return lambda *batch: ('wrapped', loss)",
    )
    setup = set_up(kernel="a")
    assert [one.entry.name for one in setup.plugins.answers("make_loss")] == ["nll"]
    loss = setup.plugins.one("make_loss", loaded=None, plan=setup.plan)
    assert loss.function()[0] == "wrapped"


def test_wrappers_of_the_run_are_around_the_formats_that_are_tried(kernels, set_up):
    kernels(
        "hooks_wrapped_formats",
        "@hookimpl(wrapper=True)\ndef detects(self, columns):\n"
        "    answers = yield\n    SEEN.append(columns)\n    return answers\n"
        "@hookimpl(wrapper=True)\ndef make_formatter(self):\n"
        "    read = yield\n    return lambda row: read({'text': row['text'].upper()})",
    )
    setup = set_up(kernel="a")
    bound = choose_format(setup, ["text"], "rows")
    assert bound.entry.name == "text"
    assert set(seen(setup)) == {("text",)}
    reader = reader_for(bound, ["text"], "rows", setup.plugins)
    assert reader.read({"text": "small"}, 0)[0].text == "SMALL"


# --- Whose answer it is ---------------------------------------------------------------------------------------------
def test_a_check_that_raises_late_is_named_and_the_others_are_asked(kernels, set_up):
    kernels(
        "hooks_late",
        "@hookimpl\ndef check(self):\n    yield Problem('first.')\n    raise ZeroDivisionError('late')",
        "@hookimpl\ndef check(self):\n    yield Problem('second.')",
        "@hookimpl\ndef check(self):\n    return ['no problem at all']",
    )
    setup = set_up(kernel=["a", "b", "c"])
    found = [str(one) for one in setup.plugins.problems(setup.plan, Probe())]
    assert found[0].startswith('recipe.yaml: kernel: kernel "a@hooks_late" 1.0: its check (')
    assert "hooks_late.py:9) raised ZeroDivisionError: late." in found[0]
    assert found[1] == 'kernel "b": second.'
    assert 'kernel "c@hooks_late" 1.0: its check (' in found[2]
    assert "returned list ['no problem at all']; expected Iterable[Problem] | None." in found[2]


def test_claims_that_raise_late_name_their_plugin(kernels, set_up):
    kernels(
        "hooks_late_claims",
        "@hookimpl\ndef claims(self):\n    yield 'kernel.rope'\n    raise ZeroDivisionError('late')",
    )
    with pytest.raises(BrokenPluginError, match=r'kernel "a@hooks_late_claims".*ZeroDivisionError: late'):
        set_up(kernel="a")


def test_problems_of_plugins_stop_the_run(kernels, set_up):
    kernels("hooks_stops", "@hookimpl\ndef check(self):\n    yield Problem('stop.')")
    with pytest.raises(CheckError, match=r'kernel "a": stop\.'):
        check(set_up(kernel="a"))


def test_nothing_calls_a_hook_of_a_plugin_directly():
    direct = re.compile(rf"\b(plugin|instance)\.({'|'.join(LIFECYCLE)})\(")
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in sorted((ROOT / "sftcore").rglob("*.py"))
        for match in direct.finditer(path.read_text(encoding="utf-8"))
    ]
    assert found == []
