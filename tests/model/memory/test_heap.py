"""Holes of the heap leave the process while a model trains on a CPU, and nothing stays behind."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from sftcore import SFTConfig, SFTTrainer
from sftcore.model.memory.heap import holes_returned
from tests.conftest import alpaca_rows, make_llama

CODE = """
import contextlib, os, sys
import torch
from sftcore.model.memory.heap import holes_returned
from tests.conftest import make_llama, make_tokenizer

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20

model = make_llama(make_tokenizer())
del_me = torch.ones(6 * 2**20)  # a block that is freed raises the limit from which glibc maps a block on its own
del del_me
around = holes_returned(model, torch.device("cpu")) if sys.argv[1] == "on" else contextlib.nullcontext()
with around:
    before, kept, freed = resident(), [], []
    for _ in range(60):
        freed.append(torch.ones(5 * 2**20 // 4))
        kept.append(torch.ones(2**16))
    del freed
    model(input_ids=torch.tensor([[4, 5, 6]]))
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked")
def test_a_forward_pass_returns_what_was_freed_between_what_is_kept():
    grown = {
        mode: int(subprocess.run([sys.executable, "-c", CODE, mode], capture_output=True, text=True, check=True).stdout)
        for mode in ("on", "off")
    }
    assert grown["on"] < 100  # 15 MiB are kept, 300 were freed
    assert grown["off"] > 200


def test_nothing_is_hung_on_a_model_on_another_device_or_afterwards(tokenizer):
    model = make_llama(tokenizer)

    def hooks():
        return sum(len(module._forward_hooks) for module in model.modules())

    with holes_returned(model, torch.device("meta")):
        assert hooks() == 0
    with holes_returned(model, torch.device("cpu")):
        assert hooks() == (1 if platform.libc_ver()[0] == "glibc" else 0)
    assert hooks() == 0


@pytest.mark.parametrize(("fields", "kept"), [({"gradient_checkpointing": False}, 2), ({}, 0)])
def test_a_run_that_checkpoints_decides_itself_what_its_mlps_keep(tmp_path, tokenizer, monkeypatch, fields, kept):
    from datasets import Dataset

    seen = []

    class Looking(SFTTrainer):
        def training_step(self, *args, **kwargs):
            seen.append(sum("forward" in vars(layer.mlp) for layer in self.model.model.layers))
            return super().training_step(*args, **kwargs)

    trainer = Looking(
        make_llama(tokenizer),
        SFTConfig(str(tmp_path), max_steps=1, use_cpu=True, report_to="none", save_strategy="no", **fields),
        train_dataset=Dataset.from_list(alpaca_rows(8)),
        processing_class=tokenizer,
    )
    trainer.train()
    assert seen == [kept]
    assert not any("forward" in vars(layer.mlp) for layer in trainer.model.model.layers)
