"""From what the user asked for to a checked plan with its active plugins: all of it before torch is imported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
from attrs import frozen

from sftcore.config.automatic import Arranger, own_attention
from sftcore.config.installed import Installed
from sftcore.config.plugins.blocked import Blocklist
from sftcore.config.plugins.bound import resolve
from sftcore.config.plugins.fixed import Fixed
from sftcore.config.probe import core_problems, probe_run, reads_images
from sftcore.config.recipe import Recipe
from sftcore.config.selections import default_selections, selections_for
from sftcore.core.discovery import Catalog, discover
from sftcore.core.errors import CheckError, ConflictError
from sftcore.core.registry import ActivePlugins
from sftcore.core.types import AUTO, KINDS, ModelRequest, Plan, Problem, Selection
from sftcore.util.warned import is_strict, warn, warn_of_plugin


@frozen
class Setup:
    """A plan with the plugins that carry it out."""

    plan: Plan
    plugins: ActivePlugins
    catalog: Catalog
    blocked: Blocklist
    arrange: Arranger

    def settled(self, attention: Selection | None, *, flattened: bool) -> Setup:
        """The run once nothing is open: with one of the plan's candidates (None: what the model has) and a layout."""
        plan, plugins = self.arrange(attention, flattened=flattened)
        return attrs.evolve(self, plan=plan, plugins=plugins)


def set_up(
    chosen: Iterable[Selection],
    settings: Mapping[str, Any],
    model: ModelRequest,
    *,
    where: str,
    block: Iterable[str] = (),
    peft_config: Any = None,
    without: Iterable[str] = (),
    device: str | None = None,
    attention_of_model: str | None = None,
    by_row: str = "",
) -> Setup:
    """Select, resolve and register.

    Args:
        chosen: what the user names.
        settings: fields of SFTConfig.
        model: what is asked of `from_pretrained`.
        where: the place of settings in errors.
        block: plugins that must not be used.
        peft_config: a ready one, for the adapter.
        without: kinds that the run has from elsewhere.
        device: the kind of device, where it is known.
        attention_of_model: what a ready model has, which `attention: auto` leaves as it is unless somebody wrote it.
        by_row: what of the run reads its batches row by row, so that rows are padded where nobody asks for a layout.

    Raises:
        SFTCoreError: a plugin that cannot be had or used, a conflict; several at once as a CheckError.
    """
    settings = Fixed(settings)
    probe = probe_run(model)
    if model.vision is None:
        model = attrs.evolve(model, vision=reads_images(probe.model_config or {}) or None)
    installed = Installed(discover(), Blocklist.parse(block, where=f"{where}: block"))
    catalog, blocked, dropped = installed.catalog, installed.blocked, set(without)
    for text in blocked.without_effect(catalog.entries):
        warn_of_plugin(text)
    explicit = selections_for(chosen, settings, model, installed, where=where, peft_config=peft_config)
    selections = [one for one in explicit if one.kind not in dropped]
    taken = dropped | {one.kind for one in selections}
    selections += default_selections(model, installed, taken)
    open_attention = next((one for one in selections if one.kind == "attention" and one.name == AUTO), None)
    if open_attention is not None and open_attention.default and attention_of_model is not None:
        selections += own_attention(attention_of_model, model, installed)
        open_attention = None
    selections.sort(key=lambda one: KINDS.index(one.kind))
    open_format = tuple(one for one in selections if one.kind == "format" and one.name == AUTO)
    arrange = Arranger(
        resolve(selections, catalog, blocked, settings), open_format, settings, model, installed, where,
        open_collator="collator" not in taken, by_row=by_row,
    )  # fmt: skip
    plan, plugins = arrange() if open_attention is None else arrange.fastest(probe, device)
    _refuse_padding(plan, where)
    return Setup(plan, plugins, catalog, blocked, arrange)


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
    return set_up(recipe.chosen, recipe.settings, recipe.model, where=recipe.place, block=recipe.block)


def check(
    setup: Setup,
    *,
    columns: Sequence[str] | None = None,
    needs_tokenizer: bool = True,
    needs_weights: bool = True,
    also: Iterable[Problem] = (),
    module_names: tuple[str, ...] | None = None,
) -> None:
    """Ask the core and every plugin for problems; warnings are shown, errors stop the run, all at once.

    Without `needs_weights`, a folder that holds a tokenizer alone will do.
    `also` are problems that the caller has found, `module_names` those of the model where they are known.

    Raises:
        CheckError: with every problem found.
    """
    probe = attrs.evolve(probe_run(setup.plan.model, columns), module_names=module_names)
    own = core_problems(setup.plan, probe, needs_tokenizer=needs_tokenizer, needs_weights=needs_weights)
    of_plugins = setup.plugins.problems(setup.plan, probe)
    if is_strict():
        of_plugins = [attrs.evolve(problem, severity="error") for problem in of_plugins]
    problems = [*also, *own, *of_plugins]
    for problem in problems:
        if problem.severity == "warning":
            warn(str(problem))
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors:
        raise CheckError(errors)
