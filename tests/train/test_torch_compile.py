"""`torch_compile`, transformers' own option: the layers are compiled, and the curve is that of the run without it."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch._dynamo.utils import counters

from sftcore import SFTConfig, SFTTrainer
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


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_the_curve_is_that_of_the_run_without(tmp_path, tokenizer, name):
    torch._dynamo.reset()
    counters.clear()
    compiled = curve(tmp_path, tokenizer, {**RUNS[name], "torch_compile": True, "torch_compile_backend": "eager"})
    assert counters["stats"]["unique_graphs"] > 0
    plain = curve(tmp_path, tokenizer, RUNS[name])
    assert len(plain) == 4
    assert compiled == pytest.approx(plain, rel=1e-5)
