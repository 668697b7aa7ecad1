"""Token counts hold at every evaluation, a resumed run's rates are the schedule's, and use_cache stays as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback

from sftcore import SFTConfig, SFTTrainer
from tests.conftest import make_llama

ROWS = Dataset.from_list([{"input_ids": [5 + i, *range(6, 9 + i % 3)], "labels": None} for i in range(12)])
ROWS = ROWS.map(lambda row: {"labels": [-100, *row["input_ids"][1:]]})
RATE = 1e-2


@pytest.fixture
def make(tmp_path, tokenizer):
    def trainer(model=None, callbacks=(), args=None, **fields):
        own = {
            "use_cpu": True, "max_steps": 4, "per_device_train_batch_size": 2, "save_strategy": "no", "report_to": [],
            "disable_tqdm": True, "gradient_checkpointing": False, "learning_rate": RATE, "logging_steps": 1,
            "train_sampling_strategy": "sequential",
        }  # fmt: skip
        args = args or SFTConfig(str(tmp_path), **{**own, **fields})
        model = model or make_llama(tokenizer, num_hidden_layers=1)
        given = {"train_dataset": ROWS, "eval_dataset": ROWS.select(range(3)), "processing_class": tokenizer}
        return SFTTrainer(model, args, callbacks=list(callbacks), **given)

    return trainer


def counted(rows: int) -> tuple[int, int]:
    """Tokens and supervised tokens of the first rows."""
    lengths = [len(ROWS[place]["input_ids"]) for place in range(rows)]
    return sum(lengths), sum(lengths) - rows


@pytest.mark.parametrize(("logging_steps", "accumulated"), [(2, 1), (100, 1), (100, 2)])
def test_every_evaluation_knows_what_was_trained_on_before_it(make, logging_steps, accumulated):
    fields = {"eval_strategy": "steps", "eval_steps": 1, "logging_steps": logging_steps, "max_steps": 3}
    trainer = make(**fields, gradient_accumulation_steps=accumulated)
    before = trainer.evaluate()
    assert before["eval_num_tokens"] == before["eval_num_supervised_tokens"] == 0
    trainer.train()
    found = [entry for entry in trainer.state.log_history if "eval_num_tokens" in entry and entry["step"]]
    names = "eval_num_tokens", "eval_num_supervised_tokens"
    wanted = [counted(2 * accumulated * step) for step in (1, 2, 3)]
    assert [tuple(entry[name] for name in names) for entry in found] == wanted
    trainer.evaluate()
    last = trainer.state.log_history[-1]
    assert tuple(last[name] for name in names) == wanted[-1]


class Evaluates(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        self.found = [*getattr(self, "found", []), self.trainer.evaluate()["eval_num_tokens"]]


def test_so_does_one_that_a_callback_makes(make):
    callback = Evaluates()
    trainer = make(callbacks=[callback], logging_steps=100)
    callback.trainer = trainer
    trainer.train()
    assert callback.found == [counted(2 * step)[0] for step in (1, 2, 3, 4)]
    trained = [entry for entry in trainer.state.log_history if "num_tokens" in entry]
    assert [entry["num_tokens"] for entry in trained] in ([], [counted(8)[0]])


def test_operations_are_those_of_transformers_and_parameters_are_counted_once(make, monkeypatch):
    counted_parameters, operations = [], []
    trainer = make(max_steps=3)
    plain = trainer.model.num_parameters
    monkeypatch.setattr(trainer.model, "num_parameters", lambda **how: counted_parameters.append(how) or plain(**how))
    own = trainer.floating_point_ops
    monkeypatch.setattr(
        trainer, "floating_point_ops", lambda inputs: operations.append((own(inputs), inputs)) or operations[-1][0]
    )
    trainer.train()
    assert len(operations) == 3
    assert len(counted_parameters) == 1
    wanted = [Trainer.floating_point_ops(trainer, inputs) for _, inputs in operations]
    assert [found for found, _ in operations] == wanted
    assert trainer.state.total_flos == sum(wanted) > 0


# --- Learning rates ---------------------------------------------------------------------------------------------------
SCHEDULES = {
    "linear": lambda step: 1 - step / 6,
    "constant_with_warmup": lambda step: min(1, step / 2),
    "linear, warmed up": lambda step: step / 3 if step < 3 else (6 - step) / 3,
}


@pytest.mark.parametrize(("name", "saved_at"), zip(SCHEDULES, (3, 1, 1), strict=True))
def test_a_resumed_run_logs_the_rates_of_its_schedule(make, name, saved_at):
    warmup = {"linear": 0, "constant_with_warmup": 2, "linear, warmed up": 3}[name]
    kind = name.partition(",")[0]
    fields = {"max_steps": 6, "save_strategy": "steps", "save_steps": saved_at, "save_total_limit": 9}
    first = make(lr_scheduler_type=kind, warmup_steps=warmup, **fields)
    first.train()
    # the same configuration object, as a notebook has it
    second = make(args=first.args)
    second.train(resume_from_checkpoint=f"{first.args.output_dir}/checkpoint-{saved_at}")
    for trainer, begins in ((first, 0), (second, saved_at)):
        rates = {entry["step"]: entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry}
        wanted = {step + 1: RATE * SCHEDULES[name](step) for step in range(6)}
        assert rates == pytest.approx(wanted), begins


# --- use_cache --------------------------------------------------------------------------------------------------------
class Looks(TrainerCallback):
    def on_step_end(self, args, state, control, model=None, **_):
        self.seen = model.config.use_cache


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("before", [True, False])
def test_use_cache_is_afterwards_as_it_was(make, tokenizer, before, adapted):
    model = make_llama(tokenizer, num_hidden_layers=1)
    model.config.use_cache = before
    if adapted:
        from peft import get_peft_model

        model = get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"]))
    looks = Looks()
    trainer = make(model, [looks], max_steps=1, save_strategy="steps", save_steps=1)
    assert model.config.use_cache is before
    trainer.train()
    assert looks.seen is False  # no cache is built where a user's own code calls the model
    assert model.config.use_cache is before
    trainer.evaluate()
    assert model.config.use_cache is before
    if not adapted:
        folder = Path(trainer.args.output_dir, "checkpoint-1")
        assert json.loads((folder / "config.json").read_text())["use_cache"] is before
        assert AutoModelForCausalLM.from_pretrained(folder).config.use_cache is before


def test_so_it_is_after_a_training_that_failed(make, tokenizer):
    class Fails(TrainerCallback):
        def on_step_end(self, *_, **__):
            raise ValueError("of the user's")

    model = make_llama(tokenizer, num_hidden_layers=1)
    trainer = make(model, [Fails()])
    with pytest.raises(ValueError, match="of the user's"):
        trainer.train()
    assert model.config.use_cache is True
