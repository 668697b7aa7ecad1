"""From what the user asked for to a checked plan with its active plugins: all of it before torch is imported."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
from attrs import frozen

from sftcore.config.probe import core_problems, probe_run
from sftcore.config.recipe import Recipe
from sftcore.config.selections import selections_for
from sftcore.core.discovery import Catalog, discover
from sftcore.core.errors import CheckError
from sftcore.core.registry import ActivePlugins, Blocklist, resolve
from sftcore.core.types import ModelRequest, Plan, Selection


@frozen
class Setup:
    """A plan with the plugins that carry it out."""

    plan: Plan
    plugins: ActivePlugins
    catalog: Catalog
    blocked: Blocklist


def set_up(
    chosen: Iterable[Selection],
    settings: Mapping[str, Any],
    model: ModelRequest,
    *,
    where: str,
    block: Iterable[str] = (),
    peft_config: Any = None,
    without: Iterable[str] = (),
) -> Setup:
    """Select, resolve and register.

    Raises:
        SFTCoreError: a plugin that cannot be had or used, a conflict; several at once as a CheckError.
    """
    if model.vision is None:
        model = attrs.evolve(model, vision="vision_config" in (probe_run(model).model_config or {}) or None)
    blocked = Blocklist.parse(block, where=f"{where}: block")
    catalog = discover()
    selections = selections_for(chosen, settings, model, where=where, peft_config=peft_config, without=without)
    plugins = resolve(selections, catalog, blocked)
    gone = [default for default, _ in plugins.yielded]
    kept = tuple(selection for selection in selections if selection not in gone)
    return Setup(Plan(kept, settings, model, plugins.yielded), plugins, catalog, blocked)


def set_up_recipe(recipe: Recipe) -> Setup:
    """The setup of a recipe."""
    return set_up(recipe.chosen, recipe.training, recipe.model, where=recipe.place, block=recipe.block)


def check(setup: Setup, *, columns: Sequence[str] | None = None, needs_tokenizer: bool = True) -> None:
    """Ask the core and every plugin for problems; warnings are shown, errors stop the run, all at once.

    Raises:
        CheckError: with every problem found.
    """
    probe = probe_run(setup.plan.model, columns)
    problems = core_problems(setup.plan, probe, needs_tokenizer=needs_tokenizer) + setup.plugins.problems(
        setup.plan, probe
    )
    for problem in problems:
        if problem.severity == "warning":
            warnings.warn(str(problem), stacklevel=2)
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors:
        raise CheckError(errors)
