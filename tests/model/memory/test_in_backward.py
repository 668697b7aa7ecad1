"""`optimizer_in_backward`: the weights of a run without it, with no gradient left when the step would come."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from sftcore import ConflictError, SFTConfig, SFTCoreError, SFTTrainer
from tests.conftest import make_llama, make_tokenizer

ROWS = Dataset.from_list([{"text": f"hello {i} world"} for i in range(6)])
NEEDED = {"max_grad_norm": 0, "on_nonfinite": "continue"}


class Held(TrainerCallback):
    """How many weights have a gradient when the optimizer would step."""

    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.seen.append(sum(weight.grad is not None for weight in model.parameters()))


def trainer_of(folder, **fields):
    tokenizer = make_tokenizer()
    defaults = {"use_cpu": True, "max_steps": 4, "per_device_train_batch_size": 2, "save_strategy": "no",
                "learning_rate": 1e-2, "weight_decay": 0.1, "report_to": "none", "warmup_steps": 2}  # fmt: skip
    args = SFTConfig(str(folder), **{**defaults, **NEEDED, **fields})
    held = Held()
    model = make_llama(tokenizer, tie_word_embeddings=fields.get("seed") == 7)
    trainer = SFTTrainer(model, args, train_dataset=ROWS, processing_class=tokenizer, callbacks=[held])
    return trainer, held


def weights_of(trainer):
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def same(one, other):
    return [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize(
    "fields",
    [{}, {"optim": "sgd"}, {"optim": "adafactor"}, {"seed": 7}, {"gradient_checkpointing": False},
     {"plugins": {"adapter": {"lora": {"r": 2}}}}],
    ids=["adamw", "sgd", "adafactor", "tied", "without checkpointing", "lora"],
)  # fmt: skip
def test_the_weights_are_those_of_a_run_without_it(tmp_path, fields):
    plain, held = trainer_of(tmp_path / "plain", **fields)
    start = weights_of(plain)
    plain.train()
    assert min(held.seen) > 0
    own, held = trainer_of(tmp_path / "own", optimizer_in_backward=True, **fields)
    assert same(start, weights_of(own))
    own.train()
    assert held.seen == [0] * 4
    assert not same(start, weights_of(own))
    assert same(weights_of(plain), weights_of(own))
    losses = [[entry.get("train_loss") for entry in one.state.log_history] for one in (plain, own)]
    assert losses[0] == losses[1]


def test_a_run_resumes_from_its_checkpoint_to_the_bit(tmp_path):
    fields = {"optimizer_in_backward": True, "save_strategy": "steps", "save_steps": 2}
    whole, _ = trainer_of(tmp_path, **fields)
    whole.train()
    again, _ = trainer_of(tmp_path, **fields)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same(weights_of(whole), weights_of(again))


def test_other_backward_passes_take_no_step(tmp_path):
    trainer, _ = trainer_of(tmp_path, optimizer_in_backward=True)
    trainer.train()
    before = weights_of(trainer)
    ids = torch.tensor([[5, 6, 7]])
    trainer.model(input_ids=ids, labels=ids).loss.backward()
    assert same(before, weights_of(trainer))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"gradient_accumulation_steps": 2}, "2 gradients cannot be accumulated"),
        ({"max_grad_norm": 1.0}, "max_grad_norm needs the norm"),
        ({"on_nonfinite": "stop"}, "on_nonfinite: stop looks at all of them"),
        ({"master_weights": True}, "master copies"),
        ({"optim": "schedule_free_adamw"}, "steps in its own way"),
        ({"gradient_checkpointing_kwargs": {"use_reentrant": True}}, "reentrant"),
        ({"max_grad_norm": 1.0, "on_nonfinite": "skip"}, "2 problems"),
    ],
)
def test_what_needs_all_gradients_is_refused_by_name(tmp_path, fields, said):
    with pytest.raises(SFTCoreError) as caught:
        SFTConfig(str(tmp_path), optimizer_in_backward=True, use_cpu=True, **{**NEEDED, **fields})
    assert said in str(caught.value)


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SFTCoreError, match="several processes"):
        SFTConfig(str(tmp_path), optimizer_in_backward=True, use_cpu=True, **NEEDED)


def test_master_copies_and_an_own_optimizer_are_refused(tmp_path):
    tokenizer = make_tokenizer()
    args = SFTConfig(str(tmp_path), optimizer_in_backward=True, use_cpu=True, max_steps=1, adapter_dtype="bfloat16",
                     plugins={"adapter": {"lora": {"r": 2}}}, **NEEDED)  # fmt: skip
    trainer = SFTTrainer(make_llama(tokenizer), args, train_dataset=ROWS, processing_class=tokenizer)
    with pytest.raises(ConflictError, match="master copies"):
        trainer.train()
    model = make_llama(tokenizer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConflictError, match="an optimizer of its own"):
        SFTTrainer(model, args, train_dataset=ROWS, processing_class=tokenizer, optimizers=(optimizer, None))


class OwnStep(SFTTrainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        loss.backward()
        return loss.detach()


def test_a_training_step_that_is_not_ours_is_refused_before_it_trains_nothing(tmp_path):
    tokenizer = make_tokenizer()
    args = SFTConfig(str(tmp_path), optimizer_in_backward=True, use_cpu=True, max_steps=1, **NEEDED)
    trainer = OwnStep(make_llama(tokenizer), args, train_dataset=ROWS, processing_class=tokenizer)
    with pytest.raises(ConflictError, match="no weight has stepped in the backward pass"):
        trainer.train()
