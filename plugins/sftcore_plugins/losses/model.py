"""The loss that a model computes itself."""

from __future__ import annotations

from collections.abc import Iterable

from sftcore import LoadedModel, LossFunction, Plan, Probe, Problem, hookimpl, plugin
from sftcore.plugin_api import OwnLoss


@plugin
class OfModel:
    """The loss of the model's own forward: its `loss_function`, and whatever its class adds.

    The forward builds all logits. It is given labels and `num_items_in_batch`, as by transformers' Trainer.
    """

    @hookimpl
    def claims(self) -> Iterable[str]:
        return ["loss.cross_entropy"]

    @hookimpl
    def check(self, plan: Plan, probe: Probe) -> Iterable[Problem]:
        where = "loss: model"
        if plan.settings.get("label_smoothing_factor"):
            yield Problem("label_smoothing_factor replaces the model's own loss.", where, "Drop one of the two.")
        if plan.settings.get("router_aux_loss_coef") is not None:
            yield Problem(
                "the model adds its experts' auxiliary loss itself, by the coefficient of its own configuration.",
                where,
                "Drop router_aux_loss_coef, and set it in model_init_kwargs.",
            )
        if "weights" in (probe.columns or ()):
            yield Problem("the rows have weights, which a model's own loss does not take.", where, "Drop the column.")

    @hookimpl
    def make_loss(self, loaded: LoadedModel, plan: Plan) -> LossFunction:
        return OwnLoss()
