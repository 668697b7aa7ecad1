"""Compare the run's own step in two processes, each with every second row, with the reference in one process.

`python -m sftcore.selftest.two_processes SPEC` is one of the two processes; `compare_two_processes` starts both as
torchrun would.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftcore.selftest.equivalence import Gap, Line, Measured, Row, gap_between, judge
from sftcore.util.plain import plain

if TYPE_CHECKING:
    from sftcore.train.checked import Checked

WHAT = "2 processes, each with half of the rows"
TIMEOUT_S = 900
_MARK = "sftcore-selftest: "
"""Marks the line with the error in the output of a process that failed."""


def compare_two_processes(checked: Checked, rows: Sequence[Row], wanted: Measured, tolerance: float) -> Line:
    """The line for two processes, which need two GPUs, or communicate through gloo on a CPU."""
    if why := _why_not_applicable(checked):
        return Line(WHAT, "not applicable", why=why)
    with tempfile.TemporaryDirectory(prefix="sftcore-selftest-") as folder:
        spec = Path(folder) / "spec.json"
        out = Path(folder) / "gradients.safetensors"
        recipe = checked.recipe
        raw = plain(dict(recipe.raw))
        given = {"raw": raw, "place": recipe.place, "block": list(recipe.block), "rows": rows}
        spec.write_text(json.dumps({**given, "out": str(out)}, default=json_number), encoding="utf-8")
        error = _run(spec)
        if error is not None:
            return Line(WHAT, "FAILED", why=error)
        gap: Gap = gap_between(read_measured(out, list(wanted.gradients)), wanted)
    return judge(WHAT, gap, tolerance)


def _why_not_applicable(checked: Checked) -> str:
    import torch

    from sftcore.selftest.trainers import SHARDED

    settings = checked.setup.plan.settings
    if sharded := next((name for name in SHARDED if settings.get(name)), None):
        return f"the run is sharded by {sharded}, which has to be set up by its own launcher"
    if not torch.distributed.is_available():
        return "this build of torch has no distributed package"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return "the self-test is already running in several processes"
    on_gpu = torch.cuda.is_available() and not settings.get("use_cpu")
    if on_gpu and torch.cuda.device_count() < 2:
        return "it needs two GPUs, and there is only one"
    return ""


def _run(spec: Path) -> str | None:
    """Run both processes, and return the error of the first one that failed, or None."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    # if each process had a thread for every core, they would slow each other down
    shared["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 2) // 2)))
    started: list[subprocess.Popen[str]] = []
    try:
        for rank in ("0", "1"):
            environment = {**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank, "PYTHONWARNINGS": "ignore"}
            command = [sys.executable, "-m", __spec__.name, str(spec)]
            log = (spec.parent / f"{rank}.log").open("w", encoding="utf-8")
            with log:
                started.append(
                    subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True)
                )
        return _wait(started, spec.parent)
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
            process.wait()


def _wait(started: list[subprocess.Popen[str]], folder: Path) -> str | None:
    import time

    deadline = time.monotonic() + TIMEOUT_S
    while any(process.poll() is None for process in started):
        # if one fails, the other waits for it in vain
        if any(process.poll() for process in started):
            break
        if time.monotonic() > deadline:
            return f"they were not finished after {TIMEOUT_S} s"
        time.sleep(0.2)
    for rank, process in enumerate(started):
        if process.poll():
            return reported_error(
                (folder / f"{rank}.log").read_text(encoding="utf-8", errors="replace"), process.returncode
            )
    return None


def reported_error(log: str, code: int) -> str:
    """The error in a failed process's output, or else its exit code and its last line."""
    lines = [line for line in log.splitlines() if line.strip()]
    marked = [line.removeprefix(_MARK) for line in lines if line.startswith(_MARK)]
    return marked[-1] if marked else f"a process ended with exit code {code}: {lines[-1] if lines else 'no output'}"


def write_measured(out: Path, found: Measured) -> None:
    """Write a loss and gradients to a file, for `read_measured`."""
    import torch
    from safetensors.torch import save_file

    tensors = {name: one.float().cpu().contiguous() for name, one in found.gradients.items() if one is not None}
    save_file({**tensors, "loss": torch.tensor(found.loss)}, out)


def read_measured(out: Path, names: Iterable[str]) -> Measured:
    """Read what `write_measured` wrote, for the parameters with these names."""
    from safetensors.torch import load_file

    found: dict[str, Any] = load_file(out)
    return Measured(float(found["loss"]), {name: found.get(name) for name in names})


def json_number(value: Any) -> int | float:
    """A NumPy number, as rows may contain them, as a number for JSON."""
    found: int | float = value.item()
    return found


# --- Inside each process --------------------------------------------------------------------------------------------
def _one_process(spec: dict[str, Any]) -> None:
    from sftcore.config.recipe import parse_recipe
    from sftcore.train.run import check_recipe

    checked = check_recipe(parse_recipe(spec["raw"], place=spec["place"], block=spec["block"]))
    checked.setup.plugins.all("prepare", plan=checked.setup.plan)
    with tempfile.TemporaryDirectory(prefix="sftcore-selftest-") as folder:
        _measure(checked, spec, folder)


def _measure(checked: Checked, spec: dict[str, Any], folder: str) -> None:
    from contextlib import nullcontext

    import torch

    from sftcore.selftest.equivalence import without_dropout
    from sftcore.selftest.trainers import Step, StepMeter, checkpoints, run_batches, run_trainer

    trainer = run_trainer(checked, len(spec["rows"]), folder)
    settings = checked.setup.plan.settings
    accelerator, own = trainer.accelerator, trainer.accelerator.process_index
    meter = StepMeter.of(trainer)
    rows = spec["rows"][own :: accelerator.num_processes]
    batches, shared = run_batches(trainer.data_collator, rows, settings, lambda _: trainer.shared_rows)
    checkpointing = meter.checkpointing() if checkpoints(settings) else nullcontext()
    with without_dropout(trainer.model), trainer.kernels.running(), checkpointing:
        found = meter.measure(Step(batches, shared), accelerator.prepare(trainer.model))
    loss = accelerator.gather(torch.tensor([found.loss], device=accelerator.device)).mean()
    if accelerator.is_main_process:
        write_measured(Path(spec["out"]), Measured(float(loss), found.gradients))
    accelerator.wait_for_everyone()
    accelerator.end_training()


def main() -> None:
    """Run one of the two processes."""
    from sftcore.core.errors import SFTCoreError

    try:
        _one_process(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    except SFTCoreError as error:
        print(f"{_MARK}{error.what.splitlines()[0] if error.what else error}")
        sys.exit(1)


if __name__ == "__main__":
    main()
