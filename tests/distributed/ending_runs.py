"""A process that ends while gloo holds a tensor: `ending_runs.py MODEL FOLDER`, started by `ranked_runs.start`."""

from __future__ import annotations

import sys
import time

import torch
from torch import nn

from sftcore import SFTConfig
from sftcore.testing.libraries import spare_libraries
from sftcore.train.processes.distributed import prepare_processes

if __name__ == "__main__":
    torch.set_num_threads(1)
    spare_libraries()
    args = SFTConfig(sys.argv[2], use_cpu=True, report_to="none")
    assert args.world_size == 2  # which starts the group of processes
    prepare_processes(args, nn.Linear(2, 2))
    # gloo's thread is the last to hold this tensor, and waits for the interpreter, which this one keeps until the end
    sys.setswitchinterval(1000)
    torch.distributed.all_reduce(torch.ones(5_000_000), async_op=True)
    end = time.perf_counter() + 1
    while time.perf_counter() < end:
        pass
