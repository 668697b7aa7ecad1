"""DeepSpeed's cases of `ranked_runs`: `deepspeed_runs.py MODEL FOLDER CASE...` runs some of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from sftcore.testing.libraries import spare_libraries
from tests.distributed import ranked_runs

SETTINGS = {
    "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
}  # fmt: skip
PACKED = {"packing": True, "max_length": 48, "eval_packing": False}


def case(stage: int, **fields) -> dict:
    named = f"zero{stage}" if not fields else {**SETTINGS, "zero_optimization": {"stage": stage}}
    return {"deepspeed": named, **fields}


CASES = {
    f"zero{stage}{name}": case(stage, **fields)
    for stage in (2, 3)
    for name, fields in {
        "": {},
        "-lora": {"plugins": ranked_runs.LORA, "gradient_accumulation_steps": 2},
    }.items()
}
CASES |= {"zero2-skip": case(2, on_nonfinite="skip"), "zero3-skip": case(3, on_nonfinite="skip")}
CASES["zero3-packed"] = case(3, **PACKED)
STOPPED = {"zero2": 5, "zero2-lora": 5, "zero3": 5, "zero3-lora": 5, "zero3-packed": 3}
"""The step in which each is stopped, in the second of two epochs."""
ranked_runs.CASES |= CASES | {f"{name}-{part}": CASES[name] for name in STOPPED for part in ("stopped", "auto")}

if __name__ == "__main__":
    os.environ["DS_ACCELERATOR"] = "cpu"
    model, folder, *cases = sys.argv[1:]
    torch.set_num_threads(1)
    ranked_runs.STOPPED |= STOPPED
    spare_libraries()
    for one in cases:
        ranked_runs.run(one, model, Path(folder))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
