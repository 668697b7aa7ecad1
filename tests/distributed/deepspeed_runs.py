"""DeepSpeed's cases of `ranked_runs`, for as many processes as are started: `deepspeed_runs.py MODEL FOLDER CASE...`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from tests.distributed import ranked_runs

SETTINGS = {
    "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
}  # fmt: skip
PACKED = {"packing": True, "max_length": 48, "eval_packing": False}
STOP = 5
"""The step, in the middle of the second of two epochs, in which runs are stopped; the packed ones have two an epoch."""


def case(stage: int, **fields) -> dict:
    return {"deepspeed": {**SETTINGS, "zero_optimization": {"stage": stage}}, **fields}


CASES = {
    f"zero{stage}{name}": case(stage, **fields)
    for stage in (2, 3)
    for name, fields in {
        "": {},
        "-lora": {"plugins": ranked_runs.DROPOUT, "gradient_accumulation_steps": 2},
    }.items()
}
CASES["zero3-packed"] = case(3, **PACKED)
ranked_runs.CASES |= CASES | {f"{name}-{part}": CASES[name] for name in CASES for part in ("stopped", "auto")}
ranked_runs.STOPPED |= dict.fromkeys(CASES, STOP) | {"zero3-packed": 3}

if __name__ == "__main__":
    os.environ["DS_ACCELERATOR"] = "cpu"
    model, folder, *cases = sys.argv[1:]
    torch.set_num_threads(1)
    for one in cases:
        ranked_runs.run(one, model, Path(folder))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
