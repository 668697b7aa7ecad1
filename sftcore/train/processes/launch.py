"""A run in several processes of this machine, started by accelerate's launcher (see `launcher`)."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from sftcore.config.processes import world_size
from sftcore.core.errors import ConflictError
from sftcore.core.visible import visible
from sftcore.util.launched import LAUNCHER
from sftcore.util.words import hidden


def launch(count: int, words: Sequence[str], settings: Mapping[str, Any]) -> NoReturn:
    """Become the launcher of `sftcore train` with these words in `count` processes, and say so.

    The launcher takes this process's place, so that signals reach it and its exit code is ours. Secrets stand in its
    environment, not in its words.

    Raises:
        ConflictError: there are fewer GPUs than processes, or this is one of several processes already.
    """
    if world_size() > 1:
        raise ConflictError(
            f"this is one of {world_size()} processes that a launcher has started.",
            where=f"--nproc {count}",
            fix="Use one of the two.",
        )
    gpus = 0 if settings.get("use_cpu") else _visible_gpus()
    if 0 < gpus < count:
        raise ConflictError(
            f"there are {gpus} GPU(s), and each process needs one.",
            where=f"--nproc {count}",
            fix=f"Use --nproc {gpus}, or use_cpu=true.",
        )
    shown, secrets = hidden(words)
    started = command(count, shown)
    threads = os.environ.get("OMP_NUM_THREADS") or str(_threads(count, gpus))
    environment = {**os.environ, **secrets, LAUNCHER: str(os.getpid()), "OMP_NUM_THREADS": threads}
    where = f"a GPU each ({gpus} visible)" if gpus else f"{threads} CPU thread(s) each"
    line = visible(shlex.join(["python", *started[1:]]))
    print(f"launch     {count} processes, {where}: {line}", file=sys.stderr, flush=True)
    os.execve(started[0], started, environment)


def command(count: int, words: Sequence[str]) -> list[str]:
    """What starts `sftcore train WORDS` in `count` processes.

    >>> " ".join(command(2, ["run.yaml"])[1:])
    '-m sftcore.train.processes.launcher --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no \
--dynamo_backend no --main_process_port 0 -m sftcore train run.yaml'
    """
    # --multi_gpu is accelerate's word for several processes, on a CPU too; the rest would else come from the user's
    # default configuration, or be asked for: precision and compilation are the recipe's
    options = {"num_processes": count, "num_machines": 1, "mixed_precision": "no", "dynamo_backend": "no"}
    given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    launcher = [
        sys.executable,
        "-m",
        "sftcore.train.processes.launcher",
        "--multi_gpu",
        *given,
        "--main_process_port",
        "0",
    ]
    return [*launcher, "-m", "sftcore", "train", *words]


def _visible_gpus() -> int:
    import torch

    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def _num_cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows do not tell
        return os.cpu_count() or 1


def _threads(count: int, gpus: int) -> int:
    """Threads for the processes of a CPU: with all cores for each, every one would wait for the others'."""
    return 1 if gpus else max(1, _num_cores() // count)
