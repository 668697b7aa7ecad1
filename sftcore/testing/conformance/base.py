"""What plugins of all kinds have to pass."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Mapping
from typing import Any, ClassVar

import attrs
import yaml

from sftcore.core.errors import OptionTypeError, SFTCoreError, UnknownKeyError
from sftcore.core.hookspecs import LIFECYCLE
from sftcore.core.plugin_class import build, options, summary
from sftcore.core.types import Plan, Probe, Problem
from sftcore.testing.conformance.under_test import UnderTest, import_of, under_test

NEAR_IMPOSSIBLE = "no_such_option_of_any_plugin"


class PluginTests:
    """The tests of one plugin. A subclass says which one, and for some kinds what it is tried with.

    plugin: the class. options: those that it is tested with, as a recipe would give them. name: what a recipe calls it;
    the one under which it is installed, if none is given.
    """

    plugin: ClassVar[type]
    options: ClassVar[Mapping[str, Any]] = {}
    name: ClassVar[str] = ""

    kind: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    """Hooks that a plugin of this kind has to answer; one of them is enough."""

    covered: ClassVar[list[type]] = []
    """Plugins that some class of tests is about."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "plugin" in vars(cls):
            PluginTests.covered.append(cls.plugin)

    @property
    def tested(self) -> UnderTest:
        """The plugin as a run would have it."""
        __tracebackhide__ = True
        return under_test(self.kind, getattr(self, "plugin", None), self.options, self.name)

    def test_its_module_is_light_and_prints_nothing_when_imported(self) -> None:
        one = self.tested
        heavy, printed = import_of(one.plugin.__module__)
        one.require(
            not heavy,
            f"its module imports {', '.join(heavy)} at the top. Move that import into the hook that needs it: "
            "list-plugins and every check of a recipe import plugins.",
        )
        one.require(
            not printed.strip(),
            f"its module prints when it is imported: {printed.strip()[:80]!r}. Take that out: output that machines "
            "read would hold it.",
        )

    def test_its_docstring_says_in_a_line_what_it_is(self) -> None:
        one = self.tested
        said = summary(one.plugin)
        one.require(
            len(said.split()) > 1 and len(said) <= 120,
            f'the first line of its docstring is "{said}". Say in one line of up to 120 characters what the plugin '
            "does: list-plugins shows it.",
        )

    def test_its_options_come_back_from_a_recipe_as_they_are(self) -> None:
        one = self.tested
        with one.asked("its options"):
            made = one.made()
        values = {option.name.lstrip("_"): getattr(made, option.name) for option in options(one.plugin)}
        for name, value in values.items():
            try:
                written = yaml.safe_load(yaml.safe_dump(value))
            except yaml.YAMLError:
                one.require(
                    False, f"its option {name} has the value {value!r}, which a recipe cannot hold. Use plain values."
                )
            try:
                again = getattr(build(one.plugin, {name: written}, path=one.kind), name, None)
            except OptionTypeError as error:
                one.require(
                    False,
                    f"its option {name} refuses the value {value!r} that it has itself: {error.what} Mend its type or "
                    "its default.",
                )
            except SFTCoreError as error:
                one.require(False, f"its option {name} cannot be set alone: {error.what}")
            one.require(
                again == value or again != again,
                f"its option {name} is {value!r} and comes back from a recipe as {again!r}.",
            )

    def test_an_unknown_option_is_refused(self) -> None:
        one = self.tested
        try:
            one.made({NEAR_IMPOSSIBLE: 1})
        except UnknownKeyError:
            return
        one.require(False, "it takes an option that it does not have, so that a misspelt one would go unseen.")

    def test_it_can_be_pickled(self) -> None:
        one = self.tested
        with one.asked("pickling it, as for a worker process,"):
            again = pickle.loads(pickle.dumps(one.made()))
        fields = [option.name for option in options(one.plugin)]
        one.require(
            all(getattr(again, name) == getattr(one.made(), name) for name in fields),
            "its options are others after pickling.",
        )

    def test_its_methods_are_hooks(self) -> None:
        one = self.tested
        with one.asked("it does not fit the hooks"):
            (bound,) = one.alone().bound
        answered = [hook for hook in LIFECYCLE if bound.implements(hook)]
        one.require(
            any(hook in answered for hook in self.needs),
            f"a {self.kind} answers {' or '.join(self.needs)}, and this one "
            f"{'answers ' + ', '.join(answered) + ' alone' if answered else 'has no method marked @hookimpl'}. "
            f"Write a method {self.needs[0]} and mark it @hookimpl.",
        )
        forgotten = [
            hook for hook in LIFECYCLE if hook not in answered and inspect.isfunction(vars(one.plugin).get(hook))
        ]
        one.require(not forgotten, f"its method {', '.join(forgotten)} has the name of a hook. Mark it @hookimpl.")

    def test_its_check_finds_problems_and_leaves_nothing_behind(self) -> None:
        one = self.tested
        plugins = one.alone()
        if not plugins.answers("check"):
            return
        before = copy.deepcopy(attrs.asdict(plugins.bound[0].plugin, recurse=False))
        plan = Plan((plugins.bound[0].selection,), {"use_cpu": True})
        with one.asked("check"):
            found = [plugins.problems(plan, Probe()) for _ in range(2)]
        failed = [str(problem) for problem in found[0] if "its check failed" in problem.what]
        one.require(not failed, "".join(failed))
        one.require(
            all(isinstance(problem, Problem) for problem in found[0]), "its check gives something else than Problem."
        )
        one.require(found[0] == found[1], "its check says something else when it is asked a second time.")
        one.require(
            attrs.asdict(plugins.bound[0].plugin, recurse=False) == before,
            "its check changes the plugin. It is asked several times, also for runs that are only considered.",
        )
