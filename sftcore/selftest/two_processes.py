"""The run's own step in two processes, each with every second row, against the plain path of one.

`python -m sftcore.selftest.two_processes SPEC` is one of the two; `compared` starts them as torchrun would.
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

from sftcore.selftest.equivalence import Gap, Line, Measured, Row, gap_between, judged

if TYPE_CHECKING:
    from sftcore.train.checked import Checked

WHAT = "2 processes, each with half of the rows"
TIMEOUT_S = 900
_MARK = "sftcore-selftest: "
"""Before the error that a process tells the one that started it."""


def compared(checked: Checked, rows: Sequence[Row], wanted: Measured, tolerance: float) -> Line:
    """The line of the two processes. On a GPU it needs two of them; on a CPU the processes talk by gloo."""
    if why := _why_not(checked):
        return Line(WHAT, "not applicable", why=why)
    with tempfile.TemporaryDirectory(prefix="sftcore-selftest-") as folder:
        spec = Path(folder) / "spec.json"
        out = Path(folder) / "gradients.safetensors"
        recipe = checked.recipe
        given = {"raw": _plain(recipe.raw), "place": recipe.place, "block": list(recipe.block), "rows": rows}
        spec.write_text(json.dumps({**given, "out": str(out)}, default=number), encoding="utf-8")
        said = _run(spec)
        if said is not None:
            return Line(WHAT, "FAILED", why=said)
        gap: Gap = gap_between(read(out, list(wanted.gradients)), wanted)
    return judged(WHAT, gap, tolerance)


def _why_not(checked: Checked) -> str:
    import torch

    from sftcore.selftest.bench import SHARDED

    settings = checked.setup.plan.settings
    if sharded := next((name for name in SHARDED if settings.get(name)), None):
        return f"the run is sharded by {sharded}, which its own launcher sets up"
    if not torch.distributed.is_available():
        return "this torch has no distributed package"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return "the self-test runs in several processes already"
    on_gpu = torch.cuda.is_available() and not settings.get("use_cpu")
    if on_gpu and torch.cuda.device_count() < 2:
        return "there is one GPU, and it needs two"
    return ""


def _run(spec: Path) -> str | None:
    """Start both processes; what the first that failed says, or None."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    # with threads for each process and core, both would wait for the other's
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
        # one that failed leaves the other waiting for it
        if any(process.poll() for process in started):
            break
        if time.monotonic() > deadline:
            return f"they were not done after {TIMEOUT_S} s"
        time.sleep(0.2)
    for rank, process in enumerate(started):
        if process.poll():
            return error_of((folder / f"{rank}.log").read_text(encoding="utf-8", errors="replace"), process.returncode)
    return None


def error_of(log: str, code: int) -> str:
    lines = [line for line in log.splitlines() if line.strip()]
    told = [line.removeprefix(_MARK) for line in lines if line.startswith(_MARK)]
    return told[-1] if told else f"a process ended with {code}: {lines[-1] if lines else 'it said nothing'}"


def write(out: Path, found: Measured) -> None:
    """A loss and gradients into a file, which `read` reads."""
    import torch
    from safetensors.torch import save_file

    tensors = {name: one.float().cpu().contiguous() for name, one in found.gradients.items() if one is not None}
    save_file({**tensors, "loss": torch.tensor(found.loss)}, out)


def read(out: Path, names: Iterable[str]) -> Measured:
    """What `write` wrote, for the parameters of these names."""
    from safetensors.torch import load_file

    found: dict[str, Any] = load_file(out)
    return Measured(float(found["loss"]), {name: found.get(name) for name in names})


def _plain(raw: Any) -> Any:
    from sftcore.util.plain import plain

    return plain(dict(raw))


def number(value: Any) -> int | float:
    """NumPy's numbers, of which rows may be made, as JSON has them."""
    found: int | float = value.item()
    return found


# --- One of the two -------------------------------------------------------------------------------------------------
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

    from sftcore.selftest.bench import Bench, Step, checkpoints, run_batches, whole_trainer
    from sftcore.selftest.equivalence import without_dropout

    trainer = whole_trainer(checked, len(spec["rows"]), folder)
    settings = checked.setup.plan.settings
    accelerator, own = trainer.accelerator, trainer.accelerator.process_index
    bench = Bench.of(trainer)
    rows = spec["rows"][own :: accelerator.num_processes]
    batches, shared = run_batches(trainer.data_collator, rows, settings, lambda _: trainer.shared_rows)
    checkpointing = bench.checkpointing() if checkpoints(settings) else nullcontext()
    with without_dropout(trainer.model), trainer.kernels.running(), checkpointing:
        found = bench.measure(Step(batches, shared), accelerator.prepare(trainer.model))
    loss = accelerator.gather(torch.tensor([found.loss], device=accelerator.device)).mean()
    if accelerator.is_main_process:
        write(Path(spec["out"]), Measured(float(loss), found.gradients))
    accelerator.wait_for_everyone()
    accelerator.end_training()


def main() -> None:
    """One of the two processes."""
    from sftcore.core.errors import SFTCoreError

    try:
        _one_process(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    except SFTCoreError as error:
        print(f"{_MARK}{error.what.splitlines()[0] if error.what else error}")
        sys.exit(1)


if __name__ == "__main__":
    main()
