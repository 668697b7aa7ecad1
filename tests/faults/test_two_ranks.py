"""Two processes agree on the checkpoint that they go on from, and end together when one of them cannot write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sftcore.train.checkpoint.checksums import SEAL, fault
from sftcore.train.checkpoint.folders import newest
from tests.faults import two_ranks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    shown = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", two_ranks.__file__,
         str(folder)],
        capture_output=True, text=True, timeout=300, env=environment,
    )  # fmt: skip
    return folder, shown


def test_the_checksums_are_written_when_all_ranks_have_written(ended):
    folder, _ = ended
    listed = json.loads((folder / "out" / "checkpoint-4" / SEAL).read_text())["files"]
    assert {"rng_state_0.pth", "rng_state_1.pth", "optimizer.pt"} < set(listed)


def test_all_ranks_go_on_from_the_same_checkpoint_when_a_file_of_one_is_damaged(ended):
    folder, shown = ended
    for rank in (0, 1):
        assert json.loads((folder / f"{rank}.json").read_text()) == {"began": 4, "same": True}
    assert "checkpoint-6: rng_state_1.pth has 9 bytes" in shown.stderr
    assert fault(folder / "out" / "checkpoint-6") is None  # written anew


def test_a_disk_that_one_rank_finds_full_ends_all_with_its_error(ended):
    folder, shown = ended
    assert shown.returncode != 0
    assert "the checkpoint of step 4 could not be written: File too large" in shown.stderr
    assert "checkpoint-2 (step 2)." in shown.stderr
    assert newest(folder / "full").step == 2
    assert not list((folder / "full").glob(".tmp-*/*/*.safetensors"))
