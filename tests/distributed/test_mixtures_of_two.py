"""A recipe with several sources in two processes: the rows and the curve of one, and resumed in the middle."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from sftcore.config.recipe import load_recipe
from sftcore.train.run import check_recipe, run_recipe

pytestmark = pytest.mark.slow

RECIPE = """
model: {model}
data:
  train:
  - {{path: chat.jsonl, weight: 2}}
  - {{path: code.jsonl, name: code, format: {{alpaca: {{instruction: q, output: a}}}}, weight: 1}}
  - {{path: maths.jsonl, name: maths, weight: 1}}
  stop: all
  streaming: {streaming}
eval_strategy: 'no'
use_cpu: true
max_steps: 6
logging_steps: 1
save_steps: 3
learning_rate: 1e-2
lr_scheduler_type: constant
optim: adamw_torch
train_sampling_strategy: sequential
report_to: none
max_length: 64
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model_folder):
    """A recipe and its sources, one of which has rows that are left out."""
    folder = tmp_path_factory.mktemp("mixed")
    turns = [
        [{"role": "user", "content": f"maths {i}"}, {"role": "assistant", "content": "y " * (i % 4 + 1)}]
        for i in range(9)
    ]
    rows = {
        "chat.jsonl": [{"text": f"chat {i} " + "hello " * (i % 5)} for i in range(20)],
        "code.jsonl": [{"q": "long " * 100 if i in (1, 4) else f"code {i}", "a": "x " * (i % 3 + 1)} for i in range(9)],
        "maths.jsonl": [{"messages": one} for one in turns],
    }
    for name, some in rows.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in some))
    for streaming in ("true", "false"):
        (folder / f"streaming-{streaming}.yaml").write_text(RECIPE.format(model=model_folder, streaming=streaming))
    return folder


def in_two(folder, *words) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SFTCORE_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "sftcore", "train", *words, "per_device_train_batch_size=2", "--nproc", "2"]
    shown = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert shown.returncode == 0, shown.stderr[-4000:]
    return shown.stderr


def logged(out) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: one[key] for key in ("step", "loss", "num_tokens", "grad_norm")} for one in lines if "loss" in one]


def in_one(folder, recipe, out, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SFTCORE_CACHE", str(folder / "cache"))
    words = [f"output_dir={out}", "per_device_train_batch_size=4"]
    return run_recipe(check_recipe(load_recipe(recipe, words)), Console(quiet=True)).trainer


def test_a_mixture_in_two_processes_takes_the_steps_of_one_and_resumes_in_the_middle(folder, monkeypatch):
    recipe = "streaming-false.yaml"
    in_one(folder, recipe, "one", monkeypatch)
    said = in_two(folder, recipe, "output_dir=two")
    assert "2 rows dropped, no supervised token left after truncation" in said
    one, two = logged(folder / "one"), logged(folder / "two")
    assert len(one) == len(two) == 6
    for mine, theirs in zip(two, one, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)
    in_two(folder, recipe, "output_dir=halves", "max_steps=3")
    in_two(folder, recipe, "output_dir=halves", "resume_from_checkpoint=last")
    assert logged(folder / "halves") == two
    whole, halves = (load_file(folder / name / "model.safetensors") for name in ("two", "halves"))
    assert all(torch.equal(whole[key], halves[key]) for key in whole)


def test_a_mixed_stream_in_two_processes_is_counted_whole_and_resumes_in_the_middle(folder):
    recipe = "streaming-true.yaml"
    said = in_two(folder, recipe, "output_dir=stream")
    streams = {
        one["name"]: one for one in json.loads((folder / "stream" / "manifest.json").read_text())["data"]["streams"]
    }
    code = streams["train_dataset['code']"]
    assert (code["rows_read"] % 9, code["rows_kept"] % 7, code["first_dropped"]) == (0, 0, {})
    assert f"train_dataset['code']: {code['rows_read']} rows read of the stream, {code['rows_kept']} kept" in said
    in_two(folder, recipe, "output_dir=stream-halves", "max_steps=3")
    in_two(folder, recipe, "output_dir=stream-halves", "resume_from_checkpoint=last")
    assert logged(folder / "stream-halves") == logged(folder / "stream")
    whole, halves = (load_file(folder / name / "model.safetensors") for name in ("stream", "stream-halves"))
    assert all(torch.equal(whole[key], halves[key]) for key in whole)
