"""Measure in other processes: the run's own step in two, each with every second row, or the reference in one.

A loader that replaces classes of transformers in this process would also change a reference that is computed here.
`python -m sftcore.selftest.processes SPEC` is one such process; torchrun starts the two of a run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftcore.core.errors import ModelError
from sftcore.model.precision import quantisation_of
from sftcore.model.unwrap import causal_model, is_peft_model
from sftcore.selftest.equivalence import Line, Row, first_line_of, judge, measure_reference
from sftcore.trials.measured import Measured, gap_between, with_attention, without_dropout
from sftcore.util.plain import plain

if TYPE_CHECKING:
    from sftcore.core.types import ModelRequest
    from sftcore.train.checked import Checked

WHAT = "2 processes, each with half of the rows"
TIMEOUT_S = 900
_MARK = "sftcore-selftest: "
"""Marks the line with the error in the output of a process that failed."""
_TORCHRUN = (
    "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0",
    "--local-addr=127.0.0.1", "-m",
)  # fmt: skip


def compare_two_processes(checked: Checked, rows: Sequence[Row], wanted: Measured, tolerance: float) -> Line:
    """The line for two processes, which need two GPUs, or communicate through gloo on a CPU."""
    if why := _why_not_applicable(checked):
        return Line(WHAT, "not applicable", why=why)
    recipe = checked.recipe
    given = {"raw": plain(dict(recipe.raw)), "place": recipe.place, "block": list(recipe.block), "rows": rows}
    try:
        found = _measured_elsewhere(given, wanted.gradients, _TORCHRUN)
    except ModelError as error:
        return Line(WHAT, "FAILED", why=error.what)
    return judge(WHAT, gap_between(found, wanted), tolerance)


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


def measure_reference_elsewhere(
    model: Any, request: ModelRequest, rows: Sequence[Row], implementation: str, autocast: str | None
) -> Measured:
    """The reference for the same weights, loaded with transformers alone, and the adapter with PEFT.

    Raises:
        ModelError: the reference cannot be computed, with the reason.
    """
    if quantised := quantisation_of(model):
        raise ModelError(f"its base is quantised in a way of the loader's own ({quantised})")
    causal = causal_model(model)
    given: dict[str, Any] = {
        "model": str(Path(request.name or "").expanduser()),
        "revision": request.revision,
        "trust_remote_code": request.trust_remote_code,
        "dtype": str(causal.dtype).removeprefix("torch."),
        "attention": implementation,
        "autocast": autocast,
        "device": causal.device.type,
        "rows": list(rows),
    }
    names = [name for name, one in model.named_parameters() if one.requires_grad]
    with tempfile.TemporaryDirectory(prefix="sftcore-selftest-") as folder:
        if is_peft_model(model):
            model.save_pretrained(folder)
            given["adapter"] = folder
        try:
            return _measured_elsewhere(given, names)
        except ModelError as error:
            raise ModelError(f"the reference failed: {error.what}") from error


def _measured_elsewhere(given: dict[str, Any], names: Iterable[str], launcher: Sequence[str] = ()) -> Measured:
    """What `main` measures for this specification, with the gradients of the parameters with these names.

    Raises:
        ModelError: a process failed, or was not finished after TIMEOUT_S.
    """
    from safetensors.torch import load_file

    # if each process had a thread for every core, they would slow each other down
    threads = max(1, (os.cpu_count() or 2) // (2 if launcher else 1))
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryDirectory(prefix="sftcore-selftest-") as folder:
        spec, out = Path(folder) / "spec.json", Path(folder) / "gradients.safetensors"
        # rows may contain NumPy's numbers
        spec.write_text(json.dumps({**given, "out": str(out)}, default=lambda number: number.item()), encoding="utf-8")
        with subprocess.Popen(
            [sys.executable, "-m", *launcher, __spec__.name, str(spec)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        ) as process:
            try:
                log, _ = process.communicate(timeout=TIMEOUT_S)
            except subprocess.TimeoutExpired as error:
                process.terminate()  # torchrun then ends its processes
                raise ModelError(f"not finished after {TIMEOUT_S} s") from error
        if process.returncode:
            raise ModelError(_reported_error(log, process.returncode))
        found: dict[str, Any] = load_file(out)
    return Measured(float(found["loss"]), {name: found.get(name) for name in names})


def _reported_error(log: str, code: int) -> str:
    """The first error that a process reported in the output, or else the exit code and the last line."""
    lines = [line for line in log.splitlines() if line.strip("= ")]
    marked = [line.removeprefix(_MARK) for line in lines if line.startswith(_MARK)]
    return marked[0] if marked else f"a process ended with exit code {code}: {lines[-1] if lines else 'no output'}"


# --- Inside each process --------------------------------------------------------------------------------------------
def _one_process(spec: dict[str, Any]) -> Measured | None:
    """The run's own step on this process's rows, with the mean loss of all processes; None except in the first."""
    import torch

    from sftcore.config.recipe import parse_recipe
    from sftcore.selftest.equivalence import fill_zero_parameters
    from sftcore.selftest.trainers import Step, checkpointing, checkpoints, measure_step, run_batches, run_trainer
    from sftcore.train.run import check_recipe

    checked = check_recipe(parse_recipe(spec["raw"], place=spec["place"], block=spec["block"]))
    checked.setup.plugins.all("prepare", plan=checked.setup.plan)
    settings = checked.setup.plan.settings
    with tempfile.TemporaryDirectory(prefix="sftcore-selftest-") as folder:
        trainer = run_trainer(checked, len(spec["rows"]), folder)
        accelerator = trainer.accelerator
        trainer.prove()
        fill_zero_parameters(trainer.model)
        rows = spec["rows"][accelerator.process_index :: accelerator.num_processes]
        step = Step(run_batches(trainer.data_collator, rows, settings), trainer.shared_rows)
        saving_memory = checkpointing(trainer) if checkpoints(settings) else nullcontext()
        with without_dropout(trainer.model), trainer.kernels.running(), saving_memory:
            found = measure_step(trainer, step, accelerator.prepare(trainer.model))
        loss = accelerator.gather(torch.tensor([found.loss], device=accelerator.device)).mean()
        accelerator.end_training()
    return Measured(float(loss), found.gradients) if accelerator.is_main_process else None


def _reference(spec: dict[str, Any]) -> Measured:
    """The reference, with the model loaded by transformers alone and the adapter by PEFT."""
    import torch
    from transformers import AutoModelForCausalLM

    known = {key: spec[key] for key in ("revision", "trust_remote_code", "dtype")}
    model = AutoModelForCausalLM.from_pretrained(spec["model"], **known)
    if "adapter" in spec:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, spec["adapter"], is_trainable=True)
    model.to(spec["device"]).train()
    autocast = spec["autocast"]
    mixed = torch.autocast(spec["device"], getattr(torch, autocast)) if autocast else nullcontext()
    with without_dropout(model), with_attention(model, spec["attention"]), mixed:
        return measure_reference(model, spec["rows"])


def main() -> None:
    """Measure in this process, and write the loss and the gradients to a file."""
    import torch
    from safetensors.torch import save_file

    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        found = _reference(spec) if "model" in spec else _one_process(spec)
    except Exception as error:
        print(f"{_MARK}{first_line_of(error)}", flush=True)
        raise
    if found is not None:
        tensors = {name: one.float().cpu().contiguous() for name, one in found.gradients.items() if one is not None}
        save_file({**tensors, "loss": torch.tensor(found.loss)}, spec["out"])


if __name__ == "__main__":
    main()
