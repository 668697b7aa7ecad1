"""`auto_batch_size` takes the largest micro-batch that fits, and a step keeps its rows."""

from __future__ import annotations

import gc

import pytest
from datasets import Dataset
from torch.profiler import ProfilerActivity, profile

from sftcore import SFTConfig, SFTTrainer
from sftcore.core.errors import SFTCoreError
from sftcore.testing.tiny import make_llama, make_tokenizer

TOKENIZER = make_tokenizer()
ROWS = Dataset.from_list([{"text": "hello world question answer " * 8}] * 16)


def trained(tmp_path, **fields):
    """A run of two steps of 8 rows; its trainer, and the most bytes that were taken at one time."""
    model = make_llama(TOKENIZER, hidden_size=128, intermediate_size=256, num_hidden_layers=4)
    fixed = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 2, "max_length": 64}
    more = {"gradient_checkpointing": False, "report_to": "none", "save_strategy": "no", "logging_steps": 1}
    args = SFTConfig(str(tmp_path), **{**fixed, **more, **fields})
    trainer = SFTTrainer(model, args, train_dataset=ROWS, processing_class=TOKENIZER)
    held = sum(one.numel() * 4 for one in trainer.model.parameters())
    trainer.prove()
    gc.collect()
    gc.disable()
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            trainer.train()
    finally:
        gc.enable()
    events = [one for one in profiled.profiler.kineto_results.events() if one.name() == "[memory]"]
    now = peak = 0
    for one in sorted(events, key=lambda event: event.start_ns()):
        now += one.nbytes()
        peak = max(peak, now)
    return trainer, held + peak


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.slow
def test_it_is_the_largest_that_fits_and_trains_the_same(tmp_path, capsys):
    peaks = {size: trained(tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=8 // size)[1]
             for size in (2, 4)}  # fmt: skip
    limit = (peaks[2] + peaks[4]) // 2
    plain, _ = trained(tmp_path)
    chosen, peak = trained(tmp_path, auto_batch_size=f"{limit / 1024:.0f}KiB")
    assert (chosen.args.per_device_train_batch_size, chosen.args.gradient_accumulation_steps) == (2, 4)
    assert peak <= limit
    assert losses(chosen) == pytest.approx(losses(plain), abs=1e-5)
    assert "batch      2 rows at a time" in capsys.readouterr().err


def made(tmp_path, auto):
    fields = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "max_length": 32, "report_to": "none"}
    args = SFTConfig(str(tmp_path), auto_batch_size=auto, **fields)
    return SFTTrainer(make_llama(TOKENIZER), args, train_dataset=ROWS, processing_class=TOKENIZER), args


def test_where_all_fits_a_step_is_one_micro_batch_and_the_users_own_settings_stay(tmp_path):
    trainer, args = made(tmp_path, True)
    assert (trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps) == (6, 1)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (2, 3)


@pytest.mark.parametrize(("auto", "said"), [("10KiB", "a micro-batch of one row would take"), ("lots", "not a size")])
def test_what_cannot_be_is_refused_in_our_words(tmp_path, auto, said):
    with pytest.raises(SFTCoreError, match=said):
        made(tmp_path, auto)


def test_two_that_choose_are_refused(tmp_path):
    with pytest.raises(SFTCoreError, match="auto_find_batch_size"):
        SFTConfig(str(tmp_path), auto_batch_size=True, auto_find_batch_size=True)
