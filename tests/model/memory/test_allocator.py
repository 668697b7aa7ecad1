"""What a step frees on a CPU goes back to the system."""

import os
import platform
import subprocess
import sys

import pytest

CODE = """
import os, sys
import torch
from sftcore.model.memory.allocator import give_back_large_blocks

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20

print(give_back_large_blocks() if sys.argv[1] == "on" else False)
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
    said, grown = done.stdout.split()
    return said == "True", int(grown)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator alone has this limit")
def test_blocks_that_were_freed_between_others_leave_the_process():
    set_on, grown = run("on")
    assert set_on
    assert grown < 60  # the 10 MiB that are kept, and not the 200 that were freed
    assert run("off")[1] > 150


def test_a_limit_of_the_users_own_stays(monkeypatch):
    from sftcore.model.memory.allocator import give_back_large_blocks

    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")
    assert not give_back_large_blocks()
