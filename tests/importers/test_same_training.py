"""One configuration of each tool trains the same thing: what is supervised, how many rows a step, which rates, which
weights, in which dtype. What is expected is written by hand from the tools' documentation."""

from __future__ import annotations

import math

import pytest
from rich.console import Console

from sftcore.train.run import check_recipe, run_recipe
from tests.importers.world import brought, make_world, recipe_of

ROWS = ["0 it is", "1 it is", "2 it is"]
END = "<|im_end|>"


class _ReadyError(Exception):
    """Stops a run where model and data are ready."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def prepared(world, monkeypatch):
    """The trainer that a configuration's recipe makes, before its first step."""
    monkeypatch.chdir(world)

    def prepare(file, *overrides):
        found = []

        def stop(trainer):
            found.append(trainer)
            raise _ReadyError

        recipe = recipe_of(brought(file, without_gpu=True).text, world, *overrides)
        with pytest.raises(_ReadyError):
            run_recipe(check_recipe(recipe), Console(quiet=True), before_training=stop)
        return found[0]

    return prepare


def supervised(trainer, rows=3):
    """What the loss is on, as text, of the first rows."""
    found = []
    for i in range(rows):
        row = trainer.train_dataset[i]
        labels = row.get("labels") or [
            token if keep else -100 for token, keep in zip(row["input_ids"], row["completion_mask"], strict=True)
        ]
        found.append(trainer.processing_class.decode([label for label in labels if label != -100]))
    return found


def rates(trainer, steps, at):
    """The learning rates of steps, counted from 0, of a run with so many."""
    trainer.create_optimizer_and_scheduler(num_training_steps=steps)
    shape = trainer.lr_scheduler.lr_lambdas[0] if hasattr(trainer.lr_scheduler, "lr_lambdas") else None
    return [trainer.args.learning_rate * shape(step) for step in at]


def effective_batch(trainer):
    return trainer.args.per_device_train_batch_size * trainer.args.gradient_accumulation_steps


def trained(trainer):
    return {name for name, one in trainer.model.named_parameters() if one.requires_grad}


def modules_with_lora(trainer):
    return {name.split(".lora_A")[0].rpartition(".")[2] for name in trained(trainer) if ".lora_A" in name}


def dtypes(trainer):
    """The dtype of the base's linear layers and of what is trained."""
    base = {str(one.dtype) for name, one in trainer.model.named_parameters() if "q_proj" in name and "lora" not in name}
    return base, {str(one.dtype) for one in trainer.model.parameters() if one.requires_grad}


def cosine(rate, step, warmup, steps):
    if step < warmup:
        return rate * step / warmup
    return rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_axolotl(prepared):
    """chat_template with roles_to_train: assistant, train_on_eos: turn; bf16: auto holds the base in bfloat16."""
    without = ["data.eval_fraction=null", "eval_strategy=no", "eval_on_start=false", "evals_per_epoch=null"]
    trainer = prepared("axolotl-chat.yml", *without)
    assert supervised(trainer) == [text + END for text in ROWS]
    assert effective_batch(trainer) == 4
    assert rates(trainer, 20, (0, 2, 11)) == pytest.approx([cosine(2e-4, step, 2, 20) for step in (0, 2, 11)])
    assert modules_with_lora(trainer) == LINEAR
    assert dtypes(trainer) == ({"torch.bfloat16"}, {"torch.float32"})
    adapter = trainer.model.peft_config["default"]
    assert (adapter.r, adapter.lora_alpha, adapter.lora_dropout) == (8, 16, 0.05)
    assert (trainer.args.num_train_epochs, trainer.args.weight_decay, trainer.args.optim) == (2, 0.0, "adamw_torch")


def test_llamafactory(prepared):
    """alpaca rows, the answers alone; the alpha is twice the rank, and there is no dropout."""
    trainer = prepared("llamafactory-lora.yaml")
    assert supervised(trainer) == [text + END for text in ROWS]
    assert len(trainer.train_dataset) == 8 + 20
    assert effective_batch(trainer) == 8
    assert rates(trainer, 12, (0, 2, 7)) == pytest.approx([cosine(1e-4, step, 2, 12) for step in (0, 2, 7)])
    assert modules_with_lora(trainer) == LINEAR
    assert dtypes(trainer) == ({"torch.bfloat16"}, {"torch.float32"})
    adapter = trainer.model.peft_config["default"]
    assert (adapter.r, adapter.lora_alpha, adapter.lora_dropout) == (8, 16, 0.0)


def test_swift(prepared):
    """Conversations, the answers alone; weight decay and Adam's beta2 are ms-swift's."""
    trainer = prepared("swift-lora.sh")
    assert supervised(trainer) == [text + END for text in ROWS]
    assert len(trainer.train_dataset) == 30
    assert effective_batch(trainer) == 8
    assert rates(trainer, 40, (1, 2, 21)) == pytest.approx([cosine(1e-4, step, 2, 40) for step in (1, 2, 21)])
    assert modules_with_lora(trainer) == LINEAR
    assert dtypes(trainer) == ({"torch.bfloat16"}, {"torch.float32"})
    adapter = trainer.model.peft_config["default"]
    assert (adapter.r, adapter.lora_alpha, adapter.lora_dropout) == (4, 32, 0.05)
    assert (trainer.args.weight_decay, trainer.args.adam_beta2) == (0.1, 0.95)


def test_torchtune(prepared):
    """chat_dataset trains the assistant's turns; base and adapter are bfloat16, and nothing is clipped."""
    trainer = prepared("torchtune-lora.yaml")
    assert supervised(trainer) == [text + END for text in ROWS]
    assert effective_batch(trainer) == 8
    assert rates(trainer, 9, (1, 3, 6)) == pytest.approx([cosine(3e-4, step, 3, 9) for step in (1, 3, 6)])
    assert modules_with_lora(trainer) == LINEAR - {"k_proj"}
    assert dtypes(trainer) == ({"torch.bfloat16"}, {"torch.bfloat16"})
    assert (trainer.args.max_grad_norm, trainer.args.weight_decay, trainer.args.bf16) == (0.0, 0.01, False)
    assert trainer.args.dataloader_drop_last


def test_trl(prepared):
    """A Python script: conversations in packed rows, all weights in the dtype of from_pretrained."""
    trainer = prepared("trl-full.py", "packing=false")
    assert supervised(trainer) == [text + END for text in ROWS]
    assert len(trainer.train_dataset) == 24
    assert effective_batch(trainer) == 4
    assert rates(trainer, 20, (1, 2, 11)) == pytest.approx([cosine(2e-5, step, 2, 20) for step in (1, 2, 11)])
    assert len(trained(trainer)) == len(list(trainer.model.parameters()))
    assert dtypes(trainer) == ({"torch.bfloat16"}, {"torch.bfloat16"})
    assert prepared("trl-full.py").args.packing


def test_unsloth(prepared):
    """train_on_responses_only on conversations; TrainingArguments of transformers, linear after five steps."""
    trainer = prepared("unsloth-chat.py")
    assert supervised(trainer) == [text + END for text in ROWS]
    assert effective_batch(trainer) == 8
    assert rates(trainer, 12, (1, 5, 8)) == pytest.approx([2e-4 / 5, 2e-4, 2e-4 * 4 / 7])
    assert modules_with_lora(trainer) == LINEAR
    assert dtypes(trainer) == ({"torch.bfloat16"}, {"torch.float32"})
    adapter = trainer.model.peft_config["default"]
    assert (adapter.r, adapter.lora_alpha, adapter.lora_dropout) == (16, 16, 0.0)
    assert (trainer.args.max_steps, trainer.args.seed, trainer.args.weight_decay) == (12, 3407, 0.01)
