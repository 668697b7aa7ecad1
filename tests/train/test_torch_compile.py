"""`torch_compile`, transformers' own option: the layers are compiled, and the curve is that of the run without it."""

from __future__ import annotations

import shutil

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch._dynamo.utils import counters
from transformers import TrainerCallback

from sftcore import CheckError, SFTConfig, SFTTrainer
from tests.conftest import make_llama

ROWS = Dataset.from_list([{"text": "say hello world " * (1 + count % 5)} for count in range(12)])
RUNS = {
    "padded": {},
    "packed, an adapter on it": {"packing": True, "max_length": 64, "adapted": True},
}


def curve(folder, tokenizer, fields) -> list[float]:
    """Losses of two steps, and of an evaluation after each."""
    fields = {"eval_strategy": "steps", "eval_steps": 1, "logging_steps": 1, "max_steps": 2, **fields}
    plain = LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, target_modules=["q_proj"])
    adapter = plain if fields.pop("adapted", False) else None
    args = SFTConfig(
        str(folder), use_cpu=True, per_device_train_batch_size=2, save_strategy="no", learning_rate=1e-2,
        disable_tqdm=True, gradient_checkpointing=False, **fields,
    )  # fmt: skip
    given = {"train_dataset": ROWS, "eval_dataset": ROWS.select(range(4)), "processing_class": tokenizer}
    trainer = SFTTrainer(make_llama(tokenizer, num_hidden_layers=1), args, peft_config=adapter, **given)
    trainer.train()
    history = trainer.state.log_history
    return [entry[name] for name in ("loss", "eval_loss") for entry in history if name in entry]


@pytest.fixture
def fresh():
    """Nothing compiled before, nor counted."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    counters.clear()


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_the_curve_is_that_of_the_run_without(tmp_path, tokenizer, name, fresh):
    compiled = curve(tmp_path, tokenizer, {**RUNS[name], "torch_compile": True, "torch_compile_backend": "eager"})
    assert counters["stats"]["unique_graphs"] > 0
    plain = curve(tmp_path, tokenizer, RUNS[name])
    assert len(plain) == 4
    assert compiled == pytest.approx(plain, rel=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor writes C++ for a CPU, and no compiler is installed")
def test_so_it_is_by_inductor(tmp_path, tokenizer, fresh):
    compiled = curve(tmp_path, tokenizer, {**RUNS["packed, an adapter on it"], "torch_compile": True})
    assert counters["stats"]["unique_graphs"] > 0
    plain = curve(tmp_path, tokenizer, RUNS["packed, an adapter on it"])
    assert compiled == pytest.approx(plain, rel=1e-4)


@pytest.mark.slow
def test_recompilations_are_counted_and_said(tmp_path, tokenizer, capsys, fresh):
    """Two steps of other lengths: what torch counts in all, and in the second step."""
    seen = []

    class Looks(TrainerCallback):
        def on_optimizer_step(self, *_, **__):
            seen.append(counters["stats"]["unique_graphs"])

    kernel = {"kernel": {"compile": {"backend": "eager", "dynamic": False}}}
    args = SFTConfig(
        str(tmp_path), use_cpu=True, per_device_train_batch_size=1, save_strategy="no", max_steps=3, disable_tqdm=True,
        gradient_checkpointing=False, plugins=kernel, train_sampling_strategy="sequential",
    )  # fmt: skip
    rows = Dataset.from_list([{"text": text} for text in ("hello", "say hello world", "say hello world")])
    model = make_llama(tokenizer, num_hidden_layers=1)
    trainer = SFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer, callbacks=[Looks()])
    trainer.train()
    first, second, third = seen
    assert 0 < first < second == third
    assert trainer.compilations.later == {2: second - first}
    said = f"compiled   {second} graphs, {first} of them in the first step and {second - first} again in step 2:"
    assert said in capsys.readouterr().err


def test_a_run_without_says_nothing_of_it(tmp_path, tokenizer, capsys, fresh):
    curve(tmp_path, tokenizer, {})
    assert "compiled   " not in capsys.readouterr().err


@pytest.mark.parametrize("value", ["1", "true"])
def test_accelerates_regional_compilation_is_refused_with_what_does_the_same(tmp_path, tokenizer, monkeypatch, value):
    monkeypatch.setenv("ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION", value)
    with pytest.raises(CheckError, match='Choose the kernel "compile"'):
        curve(tmp_path, tokenizer, {"torch_compile": True, "torch_compile_backend": "eager"})
    assert len(curve(tmp_path, tokenizer, {})) == 4


def test_without_a_compiler_inductor_is_refused_on_a_cpu(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(CheckError, match=r"no C\+\+ compiler is installed\. Install g\+\+"):
        curve(tmp_path, tokenizer, {"torch_compile": True})
