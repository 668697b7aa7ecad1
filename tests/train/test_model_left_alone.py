"""A model is left as it was found, and copies of it compute with their own weights."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from sftcore_plugins.losses.nll import NLL
from transformers import TrainerCallback

from sftcore import SFTConfig, SFTTrainer
from sftcore.core.types import Plan
from sftcore.model.bound_loss import BoundLoss, bind_loss
from tests.asking import ask
from tests.conftest import alpaca_rows, make_llama

IDS = torch.arange(5, 21)[None]


def make_trainer(tmp_path, tokenizer, *, callbacks=(), peft_config=None, **fields):
    settings = {"max_steps": 3, "per_device_train_batch_size": 2, "save_strategy": "no", "use_cpu": True, **fields}
    rows = Dataset.from_list(alpaca_rows(12))
    return SFTTrainer(
        make_llama(tokenizer), SFTConfig(str(tmp_path), **settings), train_dataset=rows, eval_dataset=rows.select([0]),
        processing_class=tokenizer, callbacks=list(callbacks), peft_config=peft_config,
    )  # fmt: skip


def set_to_zero(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


@pytest.mark.parametrize("adapter", [None, LoraConfig(task_type="CAUSAL_LM", r=4)])
def test_training_and_evaluation_leave_the_forward_of_the_class(tmp_path, tokenizer, adapter):
    trainer = make_trainer(tmp_path, tokenizer, peft_config=adapter)
    causal = trainer.model.get_base_model() if adapter else trainer.model
    untouched = set(vars(make_llama(tokenizer)))

    def is_untouched() -> bool:
        return "forward" not in vars(causal) and not {name for name in vars(causal) if "sftcore" in name}

    assert is_untouched()
    trainer.evaluate()
    assert is_untouched()
    trainer.train()
    assert is_untouched()
    assert trainer.model.forward.__func__ is type(trainer.model).forward
    # what accelerate, transformers' checkpointing and PEFT leave on every model that they train
    others = {"model_tags", "_is_accelerate_prepared", "_require_grads_hook", "_require_grads_hooks", "peft_config"}
    assert set(vars(causal)) - untouched <= others


def test_a_copy_of_a_trained_model_has_its_own_logits(tmp_path, tokenizer):
    trainer = make_trainer(tmp_path, tokenizer)
    trainer.train()
    copied = set_to_zero(copy.deepcopy(trainer.model)).eval()
    assert not copied(IDS).logits.any()
    assert trainer.model.eval()(IDS).logits.any()


class CopiesInTraining(TrainerCallback):
    """What EMA callbacks and reference models do: copy the model while it trains."""

    def on_step_end(self, args, state, control, model=None, **_):
        self.copied = set_to_zero(copy.deepcopy(model)).eval()
        self.averaged = torch.optim.swa_utils.AveragedModel(model)


def test_copies_made_in_training_have_their_own_logits(tmp_path, tokenizer):
    copies = CopiesInTraining()
    trainer = make_trainer(tmp_path, tokenizer, callbacks=[copies])
    trainer.train()
    assert not copies.copied(IDS).logits.any()
    average = copies.averaged.module.eval()
    torch.testing.assert_close(average(IDS).logits, trainer.model.eval()(IDS).logits)
    with torch.no_grad():
        trainer.model.lm_head.weight.zero_()
    assert average(IDS).logits.any()


def test_a_copy_of_a_bound_model_computes_its_own_loss(tokenizer):
    """Also where the copy is made while the loss is bound, and where something has wrapped the forward before."""
    for wrapped in (False, True):
        model = make_llama(tokenizer).eval()
        if wrapped:
            model.forward = type(model).forward.__get__(model)
        loss = NLL().make_loss(loaded=None, plan=Plan(()))
        bind_loss(model, loss)
        copied = set_to_zero(copy.deepcopy(model))
        # all logits are zero, so that each token costs the logarithm of the vocabulary
        assert ask(copied, 15.0, input_ids=IDS, labels=IDS)["loss"].item() == pytest.approx(
            math.log(model.config.vocab_size)
        )
        assert not copied(IDS).logits.any()
        assert model(IDS).logits.any()


def test_what_was_bound_is_as_before_after_an_error(tokenizer):
    model = make_llama(tokenizer)
    own = model.forward = type(model).forward.__get__(model)
    bound = BoundLoss(NLL().make_loss(loaded=None, plan=Plan(())), reason="")
    with pytest.raises(KeyError), bound.on(model), bound.on(model):
        raise KeyError
    assert vars(model)["forward"] is own
    assert not {name for name in vars(model) if "sftcore" in name}


def test_the_constructor_calls_no_forward_pass(tmp_path, tokenizer, monkeypatch):
    calls = []
    forward = torch.nn.Embedding.forward

    def counted(self, *args, **kwargs):
        calls.append(1)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Embedding, "forward", counted)
    trainer = make_trainer(tmp_path, tokenizer, packing=True, max_length=64)
    assert not calls
    assert trainer.shared_rows.proof is None
    trainer.evaluate()
    assert calls
    assert trainer.shared_rows.proof is not None
    assert trainer.bound_loss.gathers
