"""Samples of a run: asked at its evaluations or saves, answered as the saved model answers, and without a trace."""

from __future__ import annotations

import json

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback

from sftcore import SFTConfig, SFTTrainer
from tests.conftest import make_llama, make_tokenizer

TURNS = [[{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": f"hello {i}"}] for i in range(8)]
ROWS = Dataset.from_list([{"messages": turns} for turns in TURNS])
HOSTILE = "\x1b[31mred</script><b>\u202e"


FEW = ROWS.select(range(3))


def trainer_of(folder, rows=ROWS, evaluated=FEW, callbacks=None, **fields):
    tokenizer = make_tokenizer()
    model = make_llama(tokenizer)
    model.config.attention_dropout = 0.1
    defaults = {"use_cpu": True, "per_device_train_batch_size": 2, "max_steps": 4, "logging_steps": 1, "save_steps": 2,
                "eval_strategy": "steps" if evaluated is not None else "no", "eval_steps": 2, "report_to": "none",
                "learning_rate": 1e-2, "sample_max_new_tokens": 6, "report_html": False}  # fmt: skip
    args = SFTConfig(str(folder / "out"), **{**defaults, **fields})
    return SFTTrainer(
        model, args, train_dataset=rows, eval_dataset=evaluated, processing_class=tokenizer, callbacks=callbacks
    )


def samples(folder):
    path = folder / "out" / "samples.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def test_answers_are_those_of_the_model_at_that_step(tmp_path, capsys):
    trainer = trainer_of(tmp_path, sample_prompts=["say 1", [{"role": "user", "content": "say 2"}]])
    trainer.train()
    found = samples(tmp_path)
    assert [(one["step"], one["prompt"]) for one in found] == [
        (2, "say 1"), (2, "say 2"), (4, "say 1"), (4, "say 2")
    ]  # fmt: skip
    tokenizer = trainer.processing_class
    for entry in found:
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / f"checkpoint-{entry['step']}")
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": entry["prompt"]}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        ids = model.generate(**prompt, max_new_tokens=6, do_sample=False)[0, prompt["input_ids"].shape[1] :].tolist()
        assert entry["answer"] == tokenizer.decode(ids, skip_special_tokens=True)
        assert entry["tokens"] == len(ids)
        assert entry["ended"] == (ids[-1] == tokenizer.eos_token_id)
    said = capsys.readouterr().err
    assert said.count("sample 1 of 2, step 2: ") == 1
    assert "  asked     say 2\n  answered  " in said


class Looks(TrainerCallback):
    """Notes what a step begins with."""

    def __init__(self):
        self.found = []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        flags = [one.training for one in model.modules()]
        kept = [getattr(one, "gradient_checkpointing", None) for one in model.modules()]
        self.found.append((flags, kept, model.config.use_cache, torch.get_rng_state().tolist()))


@pytest.mark.parametrize("evaluated", [FEW, None], ids=["evaluated", "saved"])
def test_a_run_with_samples_trains_bit_by_bit_as_one_without(tmp_path, evaluated):
    runs = {}
    for name, asked in (("without", {}), ("with", {"sample_prompts": ["say 1"], "sample_temperature": 0.7})):
        looks = Looks()
        trainer = trainer_of(
            tmp_path / name, evaluated=evaluated, callbacks=[looks], neftune_noise_alpha=5.0,
            gradient_checkpointing=True, max_steps=5, **asked,
        )  # fmt: skip
        trainer.train()
        losses = [one["loss"] for one in trainer.state.log_history if "loss" in one]
        weights = [one.detach().clone() for one in trainer.model.parameters()]
        runs[name] = losses, looks.found, weights
    assert len(samples(tmp_path / "with")) == 3
    assert runs["with"][0] == runs["without"][0]
    assert runs["with"][1] == runs["without"][1]
    assert all(map(torch.equal, runs["with"][2], runs["without"][2]))


def test_without_evaluations_the_model_is_asked_at_saves_and_at_the_end(tmp_path):
    trainer_of(tmp_path, evaluated=None, max_steps=5, sample_prompts=["say 1"]).train()
    assert [one["step"] for one in samples(tmp_path)] == [2, 4, 5]


def test_of_several_sets_the_first_rows_of_each_are_asked_once_a_step(tmp_path):
    sets = {"a": ROWS.select([0, 1, 2]), "b": ROWS.select([5, 6])}
    trainer_of(tmp_path, evaluated=sets, sample_prompts=2).train()
    found = samples(tmp_path)
    assert [(one["step"], one["row"], one["prompt"]) for one in found] == [
        (step, row, prompt)
        for step in (2, 4)
        for row, prompt in (("a row 0", "say 0"), ("a row 1", "say 1"), ("b row 0", "say 5"), ("b row 1", "say 6"))
    ]
