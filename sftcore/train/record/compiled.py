"""Counts what torch.compile compiles in a run, whoever asked for it: in its first step, and again later."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sftcore.core.types import Problem
from sftcore.train.parts.part import Part

REGIONAL = "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION"
"""What accelerate reads whether `torch_compile` is for a model's blocks, which its launcher sets too."""


class Compilations(Part):
    """The graphs that torch has compiled in each step of a training.

    A graph holds for the shapes that it was compiled for. Those of later steps are recompilations: for other shapes,
    another number of documents, or an evaluation.
    """

    def __init__(self) -> None:
        self._known = self._step = 0
        self.first = 0
        """Graphs of the first step."""
        self.later: dict[int, int] = {}
        """How many graphs were compiled in a later step, by the number of the step in this call of `train`."""

    @contextmanager
    def counting(self, *, says: bool) -> Iterator[None]:
        """Around a training; afterwards, where this process `says` anything, how many graphs there were."""
        self._known, self._step, self.first, self.later = graphs(), 0, 0, {}
        try:
            yield
        finally:
            if says and (text := self.said()):
                print(f"compiled   {text}", file=sys.stderr)

    def before_optimizer(self, norm: Any) -> None:
        """Count what was compiled since the step before."""
        new, self._step = max(graphs() - self._known, 0), self._step + 1
        self._known += new
        if self._step == 1:
            self.first = new
        elif new:
            self.later[self._step] = new

    def said(self) -> str:
        """One line; empty where nothing was compiled."""
        again = sum(self.later.values())
        if not self.first + again:
            return ""
        text = f"{self.first + again} graphs, {self.first} of them in the first step"
        if again:
            steps = ", ".join(map(str, list(self.later)[:5])) + (", …" if len(self.later) > 5 else "")
            when = f"step{'s' * (len(self.later) > 1)} {steps}"
            text += f" and {again} again in {when}: batches of other shapes, fewer with pad_to_multiple_of"
        return text


def graphs() -> int:
    """How many graphs torch has compiled in this process; it is not imported for this."""
    module = sys.modules.get("torch._dynamo.utils")
    return 0 if module is None else int(module.counters["stats"]["unique_graphs"])


def compile_problems(settings: Mapping[str, Any], device: str) -> Iterator[Problem]:
    """What `torch_compile` would stumble over in the first step.

    accelerate's regional compilation calls a copy of the model, which knows nothing of the run's loss.
    """
    if not settings.get("torch_compile"):
        return
    if os.environ.get(REGIONAL, "").lower() in ("1", "true", "yes", "y", "on", "t"):
        yield Problem(
            f"{REGIONAL} is set, and accelerate compiles the blocks of a copy of the model, which does not compute the "
            "run's loss.",
            "torch_compile",
            'Choose the kernel "compile", which compiles each layer (plugins={"kernel": "compile"}), in the place of '
            "torch_compile; or unset the variable.",
        )
    backend = settings.get("torch_compile_backend") or "inductor"
    names = [os.environ.get("CXX"), "g++", "clang++", "c++"]
    if device == "cpu" and backend == "inductor" and not any(map(shutil.which, filter(None, names))):
        yield Problem(
            "inductor writes C++ for a CPU, and no C++ compiler is installed.",
            "torch_compile",
            'Install g++ or clang++ (or name one in CXX), set torch_compile_backend to "aot_eager", or drop it.',
        )
