"""The model of a run: loaded, in line with its tokenizer, with kernels, loss and adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
from attrs import frozen

from sftcore.core.errors import ModelError
from sftcore.core.types import LoadedModel, LossFunction
from sftcore.data.images.expand import is_vision
from sftcore.data.images.processors import facts_of_processor
from sftcore.data.ranks import decided_by_first
from sftcore.model.build import adopt_model, finish_model, load_model, refuse_unsupported
from sftcore.model.embeddings import num_rows
from sftcore.model.experts import balance_experts
from sftcore.model.kernels import Kernels
from sftcore.model.memory.checkpointing import checkpoint_selectively, take_selective
from sftcore.model.memory.offload import ActivationOffloading, offloading_of
from sftcore.model.precision import running_dtype
from sftcore.model.skeleton import task_problems
from sftcore.model.tokens import fit_model, refuse_untrained, supervised_ids, untrained_tokens
from sftcore.model.unwrap import causal_model
from sftcore.model.verify.given_options import naming_others
from sftcore.model.vision import freeze_codes, freeze_vision
from sftcore.train.refusals import refuse_unsavable
from sftcore.util.warned import warn

if TYPE_CHECKING:
    from sftcore.config.setup import Setup
    from sftcore.config.sft_config import SFTConfig


@frozen
class ModelOfRun:
    """A model that is ready to train; its kernels are off, and on while the trainer runs it.

    `num_rows` are those of its embeddings before the run's tokens were added, `balance` the weight of the experts'
    auxiliary loss and whether there is one.
    """

    loaded: LoadedModel
    loss: LossFunction
    kernels: Kernels
    num_rows: int
    balance: tuple[float, bool]
    offloading: ActivationOffloading | None


def load_for_run(
    model: Any, processor: Any, setup: Setup, args: SFTConfig, tokenizer: Any, new_ids: list[int], rows: Any
) -> ModelOfRun:
    """Load a model by name, or take a ready one, and make it what the run trains. No forward pass is made.

    Args:
        model: a name, or a model object.
        processor: the tokenizer or processor that is saved with it.
        setup: plan and plugins.
        args: of the run; `selective` is taken out of its checkpointing options.
        tokenizer: with the run's chat template and tokens.
        new_ids: ids of tokens that came with the chat template.
        rows: the prepared training set, whose labels tell what ends an answer.

    Raises:
        ModelError: it cannot be loaded, trained or saved, or is not a causal language model.
        ConflictError: options of `from_pretrained` with two values; experts that it does not have.
    """
    plan, plugins = setup.plan, setup.plugins
    is_name = isinstance(model, str)
    with naming_others(plan, plugins):
        loaded = load_model(plan, plugins, processor) if is_name else adopt_model(model, processor, plan, plugins)
        for problem in task_problems(causal_model(loaded.model)):
            raise ModelError(problem.what, where=problem.where, fix=problem.fix)
    rows_as_loaded = num_rows(loaded.model)
    notes = fit_model(loaded.model, tokenizer, args, new_ids, rows)
    of_images = (facts_of_processor(processor).note,) if is_vision(processor) else ()
    frozen = (*freeze_codes(loaded.model), *freeze_vision(loaded.model, args.freeze_vision_tower))
    notes = (*loaded.notes, *notes, *of_images, *frozen)
    balance = balance_experts(loaded.model, args.router_aux_loss_coef)
    refuse_unsupported(plan, plugins, loaded.model, running_dtype(loaded.model, args), args.device.type)
    kernels = Kernels(plugins, plan)
    loaded, loss = finish_model(attrs.evolve(loaded, notes=notes), plan, plugins, kernels)
    kernels.off()
    added = [one for one in args.new_tokens or () if tokenizer.convert_tokens_to_ids(one) in new_ids]
    refuse_untrained(loaded.model, tokenizer, added)
    untrained = decided_by_first(lambda: untrained_tokens(loaded.model, tokenizer, new_ids, supervised_ids(rows)))
    if untrained is not None:
        warn(untrained)
        loaded = attrs.evolve(loaded, notes=(*loaded.notes, untrained))
    refuse_unsavable(loaded.model)
    if kept := take_selective(args):
        checkpoint_selectively(causal_model(loaded.model), kept)
    return ModelOfRun(loaded, loss, kernels, rows_as_loaded, balance, offloading_of(loaded.model, args))
