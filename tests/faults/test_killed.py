"""A run that is killed at any moment, and goes on with "auto", ends with the weights of the run that was not."""

from __future__ import annotations

import itertools
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests import commands
from tests.faults import runs

pytestmark = pytest.mark.slow

MOMENTS = int(os.environ.get("SFTCORE_KILLS", "10"))
"""More of them: SFTCORE_KILLS=500 python -m pytest -s tests/faults/test_killed.py"""
PHASES = ("preparation", "step", "save", "final save")
MUST = PHASES[:3]
"""In each of these a run has to be killed; the last one may be over before."""


def train_and_tell(folder: Path, tell) -> None:
    """One attempt: prepare, go on from what is there, save; says through `tell` which phase begins."""
    sys.stdout = sys.stderr = (folder.parent / "log.txt").open("a", buffering=1)
    os.environ["SFTCORE_CACHE"] = str(folder.parent / "cache")
    import torch
    from transformers import TrainerCallback

    torch.set_num_threads(1)

    class Teller(TrainerCallback):
        def on_step_begin(self, *_, **__):
            tell.send("step")

    tell.send("preparation")
    trainer = runs.trainer(folder, gradient_accumulation_steps=4)
    trainer.add_callback(Teller())
    save_checkpoint, save_model = trainer._save_checkpoint, trainer.save_model

    def told(*args, **kwargs):
        tell.send("save")
        save_checkpoint(*args, **kwargs)
        tell.send("between")

    trainer._save_checkpoint = told
    trainer.train(resume_from_checkpoint="auto")
    tell.send("final save")
    save_model()
    tell.send("done")


class Attempt:
    """A training process of its own, and the phases that it went through."""

    def __init__(self, folder: Path) -> None:
        context = commands.context()
        self.phases: list[tuple[str, float]] = []
        self._log = folder.parent / "log.txt"
        folder.parent.mkdir(exist_ok=True)
        self._said, tell = context.Pipe(duplex=False)
        self._process = context.Process(target=train_and_tell, args=(folder, tell))
        self._process.start()
        tell.close()

    def wait_for(self, phase: str, occurrence: int = 1) -> bool:
        """Until the phase has begun so many times; False where the run ended before."""
        while [name for name, _ in self.phases].count(phase) < occurrence:
            try:
                self.phases.append((self._said.recv(), time.monotonic()))
            except EOFError:
                return False
        return True

    def kill(self) -> str:
        """Kill with signal 9; the phase in which it was then."""
        self._process.kill()
        self.finish()
        return self.phases[-1][0]

    def finish(self) -> None:
        self.wait_for("nothing")
        self._process.join()
        assert self._process.exitcode in (0, -9), self._log.read_text()[-3000:]

    def durations(self) -> dict[str, float]:
        """The mean of each phase, in seconds."""
        found: dict[str, list[float]] = {}
        for (name, begin), (_, end) in itertools.pairwise(self.phases):
            found.setdefault(name, []).append(end - begin)
        return {name: sum(times) / len(times) for name, times in found.items()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The weights of the run that went through, and how long its phases take."""
    folder = tmp_path_factory.mktemp("whole") / "run" / "out"
    attempt = Attempt(folder)
    attempt.finish()
    return runs.weights_of(folder), attempt.durations()


def test_killed_at_any_moment_and_gone_on_with_auto_the_weights_are_the_same_to_the_bit(tmp_path, undisturbed):
    weights, durations = undisturbed
    drawn = random.Random(MOMENTS)
    hit: Counter[str] = Counter()
    seconds, compared = time.monotonic(), 0
    for number in itertools.count():
        folder = tmp_path / str(number) / "out"
        for _ in range(drawn.randint(2, 4)):
            phase = drawn.choices(PHASES, (3, 5, 5, 1))[0]
            attempt = Attempt(folder)
            if attempt.wait_for(phase, drawn.randint(1, 2 if phase == "step" else 1)):
                time.sleep(drawn.uniform(0, durations[phase]))
                hit[attempt.kill()] += 1
            else:
                attempt.finish()
        del hit["done"]  # the run was faster
        Attempt(folder).finish()
        assert runs.weights_of(folder) == weights
        assert not list(folder.glob(".tmp-*"))
        compared += 1
        if hit.total() >= MOMENTS and (min(hit[name] for name in MUST) > 0 or hit.total() >= 5 * MOMENTS):
            break
    print(f"killed {dict(hit)}, {compared} runs compared in {time.monotonic() - seconds:.0f} s")
    assert min(hit[name] for name in MUST) > 0
