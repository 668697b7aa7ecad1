"""What a step frees on a CPU returns to the system, where somebody asked for it and nowhere else."""

import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from sftcore.model.memory import allocator

CODE = """
import os, sys
import torch
from sftcore.model.memory.allocator import return_large_blocks

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20

if sys.argv[1] == "on":
    return_large_blocks()
del_me = torch.ones(8 * 2**20 // 4 * 3)  # a block that is freed raises glibc's own limit
del del_me
before = resident()
kept, freed = [], []
for _ in range(40):
    freed.append(torch.ones(5 * 2**20 // 4))
    kept.append(torch.ones(2**16))
del freed
print(resident() - before)
"""


def run(mode):
    clean = {name: value for name, value in os.environ.items() if name not in ("GLIBC_TUNABLES", "LD_PRELOAD")}
    done = subprocess.run([sys.executable, "-c", CODE, mode], env=clean, capture_output=True, text=True, check=True)
    assert "return_freed_memory" not in done.stderr
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator alone has this limit")
def test_blocks_that_were_freed_between_others_leave_the_process():
    assert run("on") < 60  # the 10 MiB that are kept, and not the 200 that were freed
    assert run("off") > 150


@pytest.fixture
def limits(monkeypatch) -> list[tuple[int, int]]:
    """What glibc is asked for, without asking it."""
    asked: list[tuple[int, int]] = []

    def mallopt(*arguments: int) -> int:
        asked.append(arguments)
        return 1

    monkeypatch.setattr(allocator, "ctypes", SimpleNamespace(CDLL=lambda _: SimpleNamespace(mallopt=mallopt)))
    monkeypatch.setattr(allocator, "platform", SimpleNamespace(libc_ver=lambda: ("glibc", "2.36")))
    for name in ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)
    return asked


def test_a_limit_of_the_users_own_stays_and_this_is_said(limits, monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")
    with pytest.warns(UserWarning, match="changes nothing: MALLOC_MMAP_THRESHOLD_ is set"):
        allocator.return_large_blocks()
    assert limits == []


def test_a_run_leaves_the_process_alone_unless_it_is_asked(limits, tmp_path, model_folder):
    from datasets import Dataset

    from sftcore import SFTConfig, SFTTrainer
    from tests.conftest import alpaca_rows

    rows = Dataset.from_list(alpaca_rows(8))
    for more, wanted in (({}, []), ({"return_freed_memory": True}, [(-3, 4 * 2**20)])):
        args = SFTConfig(str(tmp_path), packing=True, max_length=64, use_cpu=True, report_to="none", **more)
        SFTTrainer(str(model_folder), args, train_dataset=rows)
        assert limits == wanted
