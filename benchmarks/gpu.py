"""Check sftcore on a GPU, then measure LoRA training against TRL: one command of less than ten minutes, no network.

python benchmarks/gpu.py [--wheels wheels] [--json gpu.json] [--seconds 570] [--standin]

1. Correctness: every installed attention with float32 weights under autocast and with bfloat16 weights, in padded,
   padding-free and packed batches, against sdpa; Liger's kernels and loss, and cut cross-entropy, against the plain
   path; steps in which nothing makes the host wait; activation offloading; NF4; gradients of each attention.
2. Choices, on a Llama of 1B: the speed and memory of each attention, and of the head with chunks of several sizes.
3. Speed of LoRA in bfloat16, of Llamas of 1B and 8B with random weights: sftcore's default configuration, its best one
   by what the choices were, and TRL, each with batches that are doubled until memory is full.

Each part has a limit in seconds, and what did not fit is listed as not run. The results are written again whenever
there are more of them, so that a run that is cut off leaves what it had.

MFU is what the model needs (docs/benchmarks.md) by the GPU's dense bfloat16 peak, from NVIDIA's data sheets.

--standin runs everything on tiny shapes on the stand-in accelerator of the tests. No speed is measured then: it shows
that the run comes to its end.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gpu_run import machine, plan, report
from gpu_run.worker import Task, run


def main() -> None:
    given = parse()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{folder}/compiled")  # by all processes of the run
        if given.wheels:
            machine.install(given.wheels, Path(folder))
        if lacking := machine.missing():
            sys.exit("This machine lacks what the run needs:\n  " + "\n  ".join(lacking))
        results = measure(given, began + given.seconds)
    print(report.table(results))
    if report.failed(results):
        sys.exit(1)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, help="a folder of wheels, which are installed for this run alone")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="where the results go (default: gpu.json)")
    parser.add_argument("--seconds", type=float, default=570, help="for everything together (default: 570)")
    parser.add_argument("--standin", action="store_true", help="try the run without a GPU")
    return parser.parse_args()


def measure(given: argparse.Namespace, end: float) -> dict[str, Any]:
    """All parts, one after the other; each may depend on the results of those before."""
    results: dict[str, Any] = {
        "device": {"name": "stand-in"} if given.standin else machine.device(),
        "versions": machine.versions(),
        "left_out": machine.left_out(),
        "standin": given.standin,
        "parts": {},
    }
    if not results["device"]:
        sys.exit("nvidia-smi shows no GPU. To try the run on a CPU: python benchmarks/gpu.py --standin")

    def keep() -> None:
        given.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")

    def told(name: str, found: dict[str, Any]) -> None:
        results["parts"][name] = found
        keep()

    def done(name: str, tasks: list[Task], seconds: float) -> dict[str, Any]:
        limit = min(seconds, end - time.monotonic())
        return run(tasks, limit, standin=given.standin, told=lambda found: told(name, found))

    for part in plan.parts(standin=given.standin):
        began = time.monotonic()
        found = done(part.name, part.tasks(results["parts"]), part.seconds)
        print(report.line(part.name, found, time.monotonic() - began), flush=True)
        if found.get(plan.FIRST, {}).get("state") == "failed":
            break  # nothing of what follows could be right
    return results


if __name__ == "__main__":
    main()
