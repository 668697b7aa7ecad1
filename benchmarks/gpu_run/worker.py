"""Tasks, one after the other in a process of their own; what each came to is written down before the next begins."""

from __future__ import annotations

import functools
import gc
import importlib
import inspect
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attrs import field, frozen

ROOT = Path(__file__).parents[2]
MODULES = Path(__file__).parents[1]


class NotRun(Exception):
    """A task cannot be done here; the message says why."""


@frozen
class Task:
    """A function ("module:name") with its keyword arguments.

    What it returns is its result; if it is a generator, so is the list of what it yields, as far as it gets.
    """

    name: str
    function: str
    arguments: dict[str, Any] = field(factory=dict)


# --- In the process that waits ----------------------------------------------------------------------------------------
def run(
    tasks: Sequence[Task], seconds: float, *, standin: bool, told: Callable[[dict[str, Any]], None]
) -> dict[str, dict[str, Any]]:
    """Do all tasks in at most so many seconds.

    A process that a task ends, as a fault of a kernel does, is followed by another one for the tasks that are left.

    Args:
        tasks: with names of their own.
        seconds: after which the task in progress is ended.
        standin: whether the stand-in is the device.
        told: called with the results so far as often as they grow.

    Returns:
        For each task's name a mapping with `state` (done, failed, not run, cut off), `seconds` where it ran, `result`,
        and `error` where there is one.
    """
    end, found = time.monotonic() + seconds, dict[str, dict[str, Any]]()
    while left := [task for task in tasks if task.name not in found]:
        if time.monotonic() >= end:
            break
        errors = _process(left, end, found, standin=standin, told=told)
        late = time.monotonic() >= end
        begun = [name for name, one in found.items() if one["state"] == "begun"]
        for name in begun:
            found[name].update(
                state="cut off" if late else "failed", error=f"after {seconds:.0f} s" if late else errors
            )
        if not begun and not late and left == [task for task in tasks if task.name not in found]:
            found[left[0].name] = {"state": "failed", "error": errors}
    for task in left:
        found[task.name] = {"state": "not run", "error": f"no time was left of {seconds:.0f} s"}
    told(found)
    return found


def _process(
    tasks: Sequence[Task],
    end: float,
    found: dict[str, dict[str, Any]],
    *,
    standin: bool,
    told: Callable[[dict[str, Any]], None],
) -> str:
    """One process, from which what is written is read until it ends or its time is over; returns its last errors."""
    with tempfile.TemporaryDirectory() as folder:
        spec, out, errors = (Path(folder) / name for name in ("spec.json", "out.jsonl", "errors.txt"))
        listed = [{"name": one.name, "function": one.function, "arguments": one.arguments} for one in tasks]
        spec.write_text(json.dumps({"tasks": listed, "standin": standin}))
        out.touch()
        start = "from gpu_run.worker import main; main()"  # not as __main__, whose NotRun would be another class
        command = [sys.executable, "-W", "ignore", "-c", start, str(spec), str(out)]
        with errors.open("w") as stderr, out.open() as lines:
            process = subprocess.Popen(
                command, cwd=folder, env=environment(folder, standin=standin), stdout=stderr, stderr=stderr
            )
            try:
                over = False
                while not over:
                    over = process.poll() is not None or time.monotonic() >= end
                    if _read(lines, found):
                        told(found)
                    if not over:
                        time.sleep(0.2)
            finally:
                process.kill()
                process.wait()
            _read(lines, found)
        return f"the process ended with {process.returncode}:\n{errors.read_text()[-2000:]}"


def environment(folder: str, *, standin: bool) -> dict[str, str]:
    """Variables of a process that imports this checkout, and all else as this process does, and downloads nothing."""
    paths = [str(MODULES), str(ROOT), str(ROOT / "plugins"), *(one for one in sys.path if one)]
    own = {
        "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error",
        "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false", "SFTCORE_CACHE": str(Path(folder) / "cache"),
        "TMPDIR": folder,
    }  # fmt: skip
    inherited = {name: value for name, value in os.environ.items() if name != "ACCELERATE_TORCH_DEVICE"}
    return {**inherited, **own, **({"ACCELERATE_TORCH_DEVICE": "standin:0"} if standin else {})}


def _read(lines: Any, found: dict[str, dict[str, Any]]) -> bool:
    """Take in the lines that are whole; returns whether there were any."""
    at, any_new = lines.tell(), False
    while (line := lines.readline()).endswith("\n"):
        at, any_new = lines.tell(), True
        new = json.loads(line)
        one = found.setdefault(new.pop("name"), {})
        if "partial" in new:
            one.setdefault("result", []).append(new.pop("partial"))
        one.update(new)
    lines.seek(at)
    return any_new


# --- In the process that works ----------------------------------------------------------------------------------------
def main() -> None:
    """Do the tasks of the first argument's file, and add what they come to to that of the second one."""
    spec, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    if spec["standin"]:
        from sftcore.testing.libraries import spare_libraries
        from sftcore.testing.standin import device as standin
        from sftcore.testing.standin.process import tell_transformers

        standin.install()
        tell_transformers()
    with out.open("a") as file:

        def write(name: str, **what: Any) -> None:
            file.write(json.dumps({"name": name, **what}) + "\n")
            file.flush()

        for task in spec["tasks"]:
            tell = functools.partial(write, task["name"])
            tell(state="begun")
            tell(**_done(task, tell))
            _clear()
            if spec["standin"]:
                spare_libraries()


def _done(task: dict[str, Any], tell: Callable[..., None]) -> dict[str, Any]:
    module, _, name = task["function"].partition(":")
    began, found = time.monotonic(), dict[str, Any]()
    try:
        result = getattr(importlib.import_module(module), name)(**task["arguments"])
        if inspect.isgenerator(result):
            for one in result:
                tell(partial=one)
        else:
            found["result"] = result
        found["state"] = "done"
    except NotRun as reason:
        found.update(state="not run", error=str(reason))
    except Exception as error:  # the caller judges
        found.update(state="failed", error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
    return {**found, "seconds": round(time.monotonic() - began, 1)}


def _clear() -> None:
    """Free the device's memory; end the process where a fault has made the device unusable for it."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(3)
        torch.cuda.empty_cache()
