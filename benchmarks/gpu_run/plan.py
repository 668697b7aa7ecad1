"""The parts of the run, in their order, with their limits."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from attrs import frozen

from . import checks
from .steps import IMPLEMENTATIONS
from .worker import Task

Results = Mapping[str, Mapping[str, Mapping[str, Any]]]
FIRST = "TFLOPS of a product of two matrices"
"""The task without which no other makes sense."""
_FIRST = Task(FIRST, "gpu_run.speed:matmul_tflops")
ON_GPU = {"correctness": 220, "choices": 90, "sftcore 1B": 80, "trl 1B": 55, "sftcore 8B": 90, "trl 8B": 65}
ON_STANDIN = {"correctness": 900, "choices": 900, "sftcore tiny": 900, "trl tiny": 900}
"""Limits in seconds; a CPU computes the stand-in, and may be busy."""
CHUNKS = (256, 512, 1024, 2048, 4096)


@frozen
class Part:
    """Tasks of one process, which may depend on the results of the parts before, and their limit together."""

    name: str
    seconds: float
    tasks: Callable[[Results], list[Task]]


def parts(*, standin: bool) -> list[Part]:
    """Those of a GPU, or of the stand-in; together their limits are a little more than the run's."""
    limits = ON_STANDIN if standin else ON_GPU
    found = [
        Part("correctness", limits["correctness"], lambda _: [_FIRST, *checks.tasks(standin=standin)]),
        Part("choices", limits["choices"], lambda _: _choices(standin=standin)),
    ]
    for name, seconds in [*limits.items()][len(found) :]:
        library, _, model = name.partition(" ")
        tasks = _sftcore if library == "sftcore" else _trl
        found.append(Part(name, seconds, functools.partial(tasks, model)))
    return found


def _choices(*, standin: bool) -> list[Task]:
    fixed = {"side": "sftcore", "model": "1B", "batch": 16}
    if standin:
        fixed |= {"model": "tiny", "batch": 2, "lengths": "short"}
    names = [name for name in IMPLEMENTATIONS if name != "eager"] if not standin else ["varlen"]
    end_to_end = {"padding_free": True, "max_length": None}
    attentions = [_measured(f"attention {name}", attention=name, **end_to_end, **fixed) for name in names]
    return [
        *attentions,
        *(_measured(f"chunk {chunk}", chunk=chunk, **fixed) for chunk in (CHUNKS if not standin else CHUNKS[:1])),
    ]


def _measured(name: str, **arguments: Any) -> Task:
    return Task(name, "gpu_run.speed:measured", arguments)


def _sftcore(model: str, so_far: Results) -> list[Task]:
    best = {"attention": _fastest(so_far, "attention"), "padding_free": True, "max_length": None}
    chunk = _fastest(so_far, "chunk")
    return [
        _doubled("default", "sftcore", model),
        _doubled("best", "sftcore", model, chunk=int(chunk) if chunk else None, **best),
        _doubled("best, Liger's kernels and loss", "sftcore", model, use_liger_kernel=True, **best),
    ]


def _trl(model: str, _: Results) -> list[Task]:
    return [_doubled("trl", "trl", model), _doubled("trl, Liger", "trl", model, use_liger_kernel=True)]


def _doubled(name: str, side: str, model: str, **arguments: Any) -> Task:
    bounds = {"1B": (16, 128), "8B": (8, 64), "tiny": (1, 2)}[model]
    sizes = {"first": bounds[0], "most": bounds[1], "lengths": "short" if model == "tiny" else "usual"}
    return Task(name, "gpu_run.speed:doubled", {"side": side, "model": model, **sizes, **arguments})


def _fastest(so_far: Results, kind: str) -> str | None:
    """The choice of this kind with the most tokens a second; None where none was measured."""
    speeds = {
        name.partition(" ")[2]: one["result"]["tokens_per_second"]
        for name, one in so_far.get("choices", {}).items()
        if name.startswith(f"{kind} ") and one["state"] == "done"
    }
    measured = {name: speed for name, speed in speeds.items() if speed is not None}
    return max(measured, key=lambda name: measured[name], default=None)
