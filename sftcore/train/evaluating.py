"""The part of the trainer that evaluates and predicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from sftcore.data.sets import PREDICTED, DataPreparation
from sftcore.train.arguments import as_given
from sftcore.train.parts.noise import TrainingNoise
from sftcore.train.reporting.default import closing
from sftcore.train.reporting.tracking import tracked
from sftcore.train.settled import OpenLayout

if TYPE_CHECKING:
    from sftcore.config.setup import Setup
    from sftcore.model.kernels import Kernels


class EvaluatingTrainer(OpenLayout):
    """A trainer whose evaluations run without noise, on raw rows too, and build logits only where asked."""

    data: DataPreparation
    setup: Setup
    noise: TrainingNoise
    kernels: Kernels
    _skip_prepare: bool

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate without noise; a raw data set is prepared as those of the constructor were."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = self._prepared_for_evaluation(eval_dataset)
        with self.noise.paused(), tracked(self.args), closing(self):
            metrics: dict[str, float] = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        return metrics

    def predict(self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test") -> Any:
        """Logits and labels of a data set, raw or prepared; raw rows each by themselves, in the order given."""
        test_dataset = self._prepared_for_evaluation(test_dataset, PREDICTED)
        with self.noise.paused(), closing(self):
            return super().predict(test_dataset, ignore_keys, metric_key_prefix)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The loop of `evaluate` and `predict`, with the run's kernels on."""
        with self.kernels.running():
            return super().evaluation_loop(*args, **kwargs)

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Any, Any, Any]:
        """One batch of an evaluation: logits are built only where something asks for them."""
        inputs = self.to_device(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            if prediction_loss_only:
                loss, outputs = self.compute_loss(model, inputs), None
            else:
                loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        self.evaluation.gave(loss, inputs["labels"])
        if outputs is None:
            return loss.detach(), None, None
        return loss.detach(), outputs.logits.detach(), inputs["labels"]

    def _prepared_for_evaluation(self, dataset: Any, name: str = "eval_dataset") -> Any:
        if isinstance(dataset, Mapping) and name != PREDICTED:
            return {key: self._prepared_for_evaluation(one) for key, one in dataset.items()}
        known = self.eval_dataset.values() if isinstance(self.eval_dataset, Mapping) else [self.eval_dataset]
        if dataset is not None and any(dataset is one for one in (*known, self.train_dataset)):
            return dataset
        if self._skip_prepare and dataset is not None:
            return as_given(dataset, name, self.setup.plan)
        return self.data.prepare(dataset, name)
