"""The launcher of two processes is killed at any moment: both end, and the command started again at once goes on."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.faults import runs

pytestmark = pytest.mark.slow

MOMENTS = int(os.environ.get("SFTCORE_LAUNCHER_KILLS", "2"))
"""More of them: SFTCORE_LAUNCHER_KILLS=10 python -m pytest -s tests/faults/test_killed_launcher.py"""
MARK = "SFTCORE_TEST_LAUNCH"
"""A variable by which all processes of one launch are known, however deep below the launcher."""
SECONDS = 10
"""After so many no process of a launcher that was killed may be alive."""


class Launch:
    """One start of the command, of which everything is known by its mark."""

    def __init__(self, recipe: Path, folder: Path) -> None:
        self.out, self.mark, self.began = folder / "out", uuid.uuid4().hex, time.monotonic()
        words = ["sftcore", "train", str(recipe), f"output_dir={self.out}", "--nproc", "2"]
        own = {"OMP_NUM_THREADS": "1", "SFTCORE_CACHE": str(folder / "cache"), MARK: self.mark}
        folder.mkdir(exist_ok=True)
        self.log = folder / f"{self.mark}.txt"
        with self.log.open("w") as log:
            self._process = subprocess.Popen([sys.executable, "-m", *words], stdout=log, stderr=log,
                                             env={**os.environ, **own})  # fmt: skip

    def alive(self) -> list[psutil.Process]:
        found = []
        for one in psutil.process_iter():
            with suppress(psutil.Error):
                if one.environ().get(MARK) == self.mark and one.status() != psutil.STATUS_ZOMBIE:
                    found.append(one)
        return found

    def until_saved(self) -> float:
        """Wait for the first checkpoint, or the end; seconds since the start."""
        while self._process.poll() is None and not list(self.out.glob("checkpoint-*")):
            time.sleep(0.02)
        return time.monotonic() - self.began

    def kill(self) -> float:
        """Kill the launcher alone with signal 9; when that was."""
        self._process.kill()
        self._process.wait()
        return time.monotonic()

    def finish(self) -> float:
        """Wait for the end, which has to be a good one; seconds since the start."""
        assert self._process.wait(timeout=300) == 0, self.log.read_text()[-3000:]
        return time.monotonic() - self.began


@pytest.fixture
def recipe(tmp_path, model_folder, write):
    rows = [{"prompt": f"say {i}", "completion": f"The answer is {i}"} for i in range(60)]
    write("rows.jsonl", "".join(json.dumps(one) + "\n" for one in rows))
    return write(
        "run.yaml",
        f"model: {model_folder}\ndata: {tmp_path}/rows.jsonl\nuse_cpu: true\nmax_steps: 40\nsave_steps: 3\n"
        "per_device_train_batch_size: 2\nlearning_rate: 0.01\nreport_to: none\nlogging_steps: 1\n"
        "resume_from_checkpoint: auto\n",
    )


def test_no_process_survives_its_launcher_and_the_command_goes_on_to_the_same_weights(recipe, tmp_path):
    whole = Launch(recipe, tmp_path / "whole")
    starts, ends = whole.until_saved(), whole.finish()
    weights, drawn = runs.weights_of(whole.out), random.Random(MOMENTS)
    for number in range(MOMENTS):
        folder = tmp_path / str(number)
        first = Launch(recipe, folder)
        if number % 2:  # while it starts and prepares; the others while it trains and saves
            time.sleep(drawn.uniform(0, starts))
        else:
            first.until_saved()
            time.sleep(drawn.uniform(0, ends - starts))
        killed = first.kill()
        again = Launch(recipe, folder)
        while first.alive() and time.monotonic() < killed + SECONDS:
            time.sleep(0.1)
        left = first.alive()
        for one in left:
            one.kill()
        saved = [path.name for path in first.out.glob("checkpoint-*")]
        print(f"killed {killed - first.began:.1f} s after the start, with {len(saved)} checkpoints")
        again.finish()
        assert not left
        assert runs.weights_of(again.out) == weights
        assert not list(again.out.glob(".tmp-*"))
        assert not list(again.out.glob("_run.lock*"))
