"""A loss that the model computes itself: used where it is chosen, and never replaced without a word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from accelerate.utils import extract_model_from_parallel, gather_object

from sftcore.core.errors import ConflictError, ModelError
from sftcore.core.types import IGNORED
from sftcore.model.unwrap import causal_model
from sftcore.trials.own_loss import own_loss_of, takes_num_items

if TYPE_CHECKING:
    from sftcore.model.bound_loss import LossRequest


def compare_own_loss(trainer: Any) -> list[str]:
    """Compare the model's own loss with cross-entropy: what the run has to say, where it replaces it.

    A loss that differs and that nobody chose to replace is kept in `bound_loss.replaces`, for the first batch whose
    loss is the plugin's: a trainer whose own `compute_loss` asks the model itself may go on.
    """
    bound, causal = trainer.bound_loss, causal_model(trainer.loaded.model)
    bound.replaces = None
    if trainer.compute_loss_func is not None or trainer.label_smoother is not None or bound.of_model:
        return []
    found = own_loss_of(trainer.model, causal, trainer.args.device)
    said, name = "", type(causal).__name__
    # the decoders of some of transformers' encoder-decoder models take labels that are shifted already
    meant = found is not None and found.of_transformers
    if found is not None and found.differs:
        by = f" (loss_function {found.function})" if found.function else ""
        said = (
            f"{name} computes a loss of its own{by}: {found.own:.4g} where the cross-entropy of its logits is "
            f"{found.cross_entropy:.4g}"
        )
    if trainer.args.world_size > 1:
        said = next(filter(None, gather_object([said])), "")
    selected = trainer.setup.plan.selected("loss")
    if said and not meant and all(one.default for one in selected):
        bound.replaces = ConflictError(
            f"{said}.",
            where="loss",
            fix='Choose loss: model to train with it (SFTConfig(loss_type="model")), or loss: nll '
            '(SFTConfig(plugins={"loss": "nll"})) to replace it.',
        )
    elif said:
        return [f"{said}; {selected[0].label} replaces it"]
    elif found is not None and found.function:
        return [f"the run's loss replaces the model's loss_function {found.function}; both are equal on a few tokens"]
    return []


def own_arguments(model: Any, request: LossRequest) -> dict[str, Any]:
    """What a model is given beside its inputs to compute its own loss, as by transformers' Trainer.

    Raises:
        ConflictError: the batch has weights.
    """
    if request.weights is not None:
        raise ConflictError(
            "the rows have weights, which a model's own loss does not take.",
            where="loss: model",
            fix="Drop the column.",
        )
    divisor = {"num_items_in_batch": request.num_items} if takes_num_items(_causal(model)) else {}
    return {"labels": request.labels, **divisor}


def own_loss(model: Any, request: LossRequest, outputs: Any) -> Any:
    """The loss in a model's outputs, a scalar; one that is a mean counts by the supervised tokens of its batch.

    Raises:
        ModelError: there is none, or there are no logits.
    """
    is_mapping = isinstance(outputs, Mapping)
    parts = [outputs.get(name) if is_mapping else getattr(outputs, name, None) for name in ("loss", "logits")]
    if any(one is None for one in parts):
        raise ModelError(
            f"{type(_causal(model)).__name__} returns no {'loss' if parts[0] is None else 'logits'} where it is given "
            "labels.",
            where="loss: model",
            fix="Choose another loss.",
        )
    if takes_num_items(_causal(model)):
        return parts[0]
    own = (request.labels[:, 1:] != IGNORED).sum()
    return parts[0] * (own / request.num_items)


def _causal(model: Any) -> Any:
    return causal_model(extract_model_from_parallel(model))
