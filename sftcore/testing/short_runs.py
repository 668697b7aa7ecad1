"""A plugin tried on a tiny model, and in short runs: here on the CPU, or in a process with the stand-in accelerator.

Each task takes and returns JSON, so that it can be asked of another process, and says what it came to:
`refused` is an error of sftcore, `skipped` why it could not be tried; else what the task says.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from sftcore.core.errors import SFTCoreError
from sftcore.testing.claims import CLAIMS, Trial
from sftcore.testing.image_runs import model_with_rows
from sftcore.testing.isolated import isolated
from sftcore.testing.runs import ROWS, run_recipe

LAYOUTS: dict[str, dict[str, Any]] = {"padded": {"padding_free": False}, "packed": {"packing": True}}
"""How documents are laid out in the batches of a trial, as keys of a recipe."""


def train(plugins: Mapping[str, Mapping[str, str]], layout: str, **recipe: Any) -> dict[str, Any]:
    """Two steps of a tiny model.

    Args:
        plugins: for each kind the plugins to install, as "module:Class" by name; sftcore's own need not be named.
        layout: one of LAYOUTS.
        recipe: further keys of the recipe; `writer`, as in LoaderTests, and `reads_images`, as in CollatorTests.

    Returns:
        `losses` and `grad_norms` of each step, and `device`.
    """
    # plain SGD, because Adam divides by the size of a gradient: rounding errors of small ones would show
    keys = {**LAYOUTS[layout], "use_cpu": not on_standin(), "learning_rate": 0.1, "optim": "sgd", **recipe}
    writer = keys.pop("writer", "")
    with tempfile.TemporaryDirectory() as folder, isolated() as install:
        install(plugins)
        if keys.pop("reads_images", False):
            keys["model"], keys["data"] = model_with_rows(Path(folder))
        else:
            keys["model"] = written(writer, Path(folder) / "model") if writer else str(tiny_folder())
        trainer = run_recipe(Path(folder), keys.pop("data", ROWS), **keys).trainer
        logged = [one for one in trainer.state.log_history if "loss" in one]
        return {
            "losses": [one["loss"] for one in logged],
            "grad_norms": [one["grad_norm"] for one in logged],
            "device": str(next(trainer.model.parameters()).device),
        }


def claims(
    plugins: Mapping[str, Mapping[str, str]],
    layout: str,
    kind: str,
    name: str,
    options: Mapping[str, Any],
    writer: str = "",
    reads_images: bool = False,
    loader: str = "",
) -> dict[str, Any]:
    """What the trials that a run makes before its first step say of a plugin: `fault`, `fix` and `notes`."""
    with isolated() as install:
        install(plugins)
        device = "standin" if on_standin() else "cpu"
        with tempfile.TemporaryDirectory() as folder:
            saved = written(writer, Path(folder) / "model") if kind == "loader" or loader else ""
            packed = layout == "packed"
            trial = Trial.of(kind, name, options, packed=packed, device=device, saved=saved, loader=loader)
            return CLAIMS[kind](attrs.evolve(trial, reads_images=reads_images))


TASKS: dict[str, Callable[..., dict[str, Any]]] = {"train": train, "claims": claims}


def differences(got: Mapping[str, Any], wanted: Mapping[str, Any], tolerance: float) -> str:
    """Where the losses or gradients of two runs are further apart than a relative tolerance; empty if nowhere."""
    for what, name in (("losses", "loss"), ("grad_norms", "gradient norm")):
        for step, (one, other) in enumerate(zip(got[what], wanted[what], strict=True), start=1):
            if not math.isfinite(one) or abs(one - other) > tolerance * abs(other):
                return f"in step {step} the {name} is {one:.6g}, and {other:.6g}"
    return ""


# --- Each task once ---------------------------------------------------------------------------------------------------
_known: dict[tuple[str, str], dict[str, Any]] = {}


def run(task: str, **call: Any) -> dict[str, Any]:
    """A task, with what sftcore refuses as an answer."""
    with _quiet():
        try:
            return TASKS[task](**call)
        except SFTCoreError as error:
            return {"refused": str(error)}


def here(task: str, **call: Any) -> dict[str, Any]:
    """A task in this process, on the CPU; a second call is answered from the first."""
    key = "here", json.dumps([task, call], sort_keys=True)
    if key not in _known:
        _known[key] = run(task, **call)
    return _known[key]


def there(calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tasks in a process with the stand-in accelerator, one for all the calls that are new."""
    from sftcore.testing.standin.process import on_standin as in_process

    keys = [("there", json.dumps(call, sort_keys=True)) for call in calls]
    new = {key: call for key, call in zip(keys, calls, strict=True) if key not in _known}
    if new:
        found = in_process("sftcore.testing.short_runs:run", [*new.values()])
        _known.update(zip(new, found, strict=True))
    return [_known[key] for key in keys]


def standin_missing() -> str:
    """Why there is no stand-in here, or an empty text."""
    from packaging.version import Version

    version = Version(importlib.metadata.version("torch"))
    return "" if version.release >= (2, 10) else f"the stand-in accelerator needs torch 2.10, and this is {version}"


def on_standin() -> bool:
    """Whether this process has the stand-in."""
    return "ACCELERATE_TORCH_DEVICE" in os.environ


@functools.cache
def tiny_folder() -> Path:
    """The tiny model of this process, saved."""
    from sftcore.testing.tiny import save_tiny

    return save_tiny(Path(tempfile.mkdtemp(prefix="sftcore-tiny-")))


def written(writer: str, folder: Path) -> str:
    """The tiny model in a folder, by a function of a loader's tests or as `save_pretrained` writes it."""
    from sftcore.testing.tiny import make_llama, make_tokenizer, save_tiny

    if not writer:
        return str(save_tiny(folder))
    module, _, name = writer.partition(":")
    folder.mkdir(parents=True)
    tokenizer = make_tokenizer()
    return str(getattr(importlib.import_module(module), name)(make_llama(tokenizer), tokenizer, folder))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield
