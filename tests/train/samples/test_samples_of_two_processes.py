"""With two processes the first one asks, the other waits, and both train on as without."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.train.samples.test_samples import TURNS

pytestmark = pytest.mark.slow


def test_two_processes_write_each_sample_once_and_train_as_without(tmp_path, model_folder, write):
    rows = write("rows.jsonl", "".join(json.dumps({"messages": turns}) + "\n" for turns in TURNS))
    losses = {}
    for name, words in (("without", []), ("with", ["sample_prompts=2", "sample_max_new_tokens=4"])):
        settings = {
            "model": model_folder, "data.train": rows, "data.eval": rows, "output_dir": tmp_path / name,
            "use_cpu": "true", "logging_steps": 1, "per_device_train_batch_size": 2, "num_train_epochs": 2,
            "save_strategy": "no",
        }  # fmt: skip
        words = [*(f"{key}={value}" for key, value in settings.items()), *words]
        command = [sys.executable, "-m", "sftcore", "train", *words, "--nproc", "2"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        log = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses[name] = [one["loss"] for one in log if "loss" in one]
    assert losses["with"] == losses["without"]
    found = [json.loads(line) for line in (tmp_path / "with" / "samples.jsonl").read_text().splitlines()]
    assert [(one["step"], one["prompt"]) for one in found] == [(2, "say 0"), (2, "say 1"), (4, "say 0"), (4, "say 1")]
    assert done.stderr.count("sample 1 of 2, step 4: ") == 1
