"""From what the user asked for to a checked plan with its active plugins: all of it before torch is imported."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
from attrs import frozen

from sftcore.config.installed import Installed
from sftcore.config.probe import core_problems, probe_run
from sftcore.config.recipe import Recipe
from sftcore.config.selections import default_collator, default_selections, selections_for
from sftcore.core.discovery import Catalog, discover
from sftcore.core.errors import CheckError, ConflictError
from sftcore.core.registry import AUTO, ActivePlugins, Blocklist, bind, resolve
from sftcore.core.types import KINDS, AttentionBackend, ModelRequest, Plan, Selection


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
    installed = Installed(discover(), Blocklist.parse(block, where=f"{where}: block"))
    catalog, blocked, dropped = installed.catalog, installed.blocked, set(without)
    explicit = selections_for(chosen, settings, model, installed, where=where, peft_config=peft_config)
    selections = [one for one in explicit if one.kind not in dropped]
    taken = dropped | {one.kind for one in selections}
    selections += default_selections(model, installed, taken)
    selections.sort(key=lambda one: KINDS.index(one.kind))
    plugins = resolve(selections, catalog, blocked, settings)
    attention: AttentionBackend | None = plugins.declared("attention_backend", request=model)
    if "collator" not in taken:
        # the last one: it depends on what the run's attention declares
        collator = default_collator(settings, model, attention, where=where)
        plugins = plugins.having(bind(collator, catalog, blocked, settings))
    open_format = [one for one in selections if one.kind == "format" and one.name == AUTO]
    kept = (*open_format, *(one.selection for one in plugins.bound))
    plan = Plan(kept, settings, model, plugins.yielded, attention)
    plan = attrs.evolve(plan, flattened=plugins.declared("flattens", plan=plan))
    _refuse_padding(plan, where)
    return Setup(plan, plugins, catalog, blocked)


def _refuse_padding(plan: Plan, where: str) -> None:
    """Refuse `padding_free` beside a collator that was chosen and does not say that it does without padding."""
    if plan.settings.get("padding_free") and not plan.flattened and (chosen := plan.selected("collator")):
        raise ConflictError(
            f"{where}.padding_free asks for documents end to end in one row, and {chosen[0].label} does not say that "
            "it lays them out so.",
            fix="Drop padding_free or the collator, or let the collator answer the hook flattens.",
        )


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
