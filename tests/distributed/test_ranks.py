"""Two processes, by DDP and by FSDP2, take the steps of one and see every row once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sftcore import SFTConfig, SFTTrainer
from sftcore.core.errors import ConflictError
from sftcore.data.ranks import EmptyBatch, EvenBatches, Rank, RowPadding
from sftcore.train.processes.distributed import may_leave_some_unused
from tests.conftest import make_llama
from tests.distributed import ranked_runs
from tests.distributed.ranked_runs import (
    CASES,
    EVALUATED,
    ROWS,
    STOPPED,
    WHOLE_RUNS,
    curve,
    differing_weights,
    read,
    start,
)

pytestmark = pytest.mark.slow

TP = pytest.param("tp", marks=pytest.mark.skipif("tp" not in CASES, reason="this transformers cannot save it"))
ONCE = [case for case in WHOLE_RUNS if case not in ranked_runs.RESUMED and case != "tp"]
"""Cases in which each row goes to one process, and that train from the start."""
NUMBERS = ("loss", "grad_norm", "entropy", "mean_token_accuracy", "num_tokens", "eval_loss", "eval_entropy")


@pytest.fixture(scope="module")
def both(tmp_path_factory, model_folder) -> Path:
    """What two processes wrote, all cases in turn, and the runs that were stopped."""
    cases = [*WHOLE_RUNS, *(f"{case}-stopped" for case in STOPPED)]
    return start(tmp_path_factory.mktemp("ranks") / "both", model_folder, *cases)


@pytest.fixture(scope="module")
def again(both, model_folder) -> Path:
    """The same folder, once two new processes have gone on with what was stopped."""
    return start(both, model_folder, *(f"{case}-auto" for case in STOPPED))


@pytest.fixture(scope="module")
def alone(tmp_path_factory, model_folder):
    """What one process writes for a case."""
    folder = tmp_path_factory.mktemp("alone")

    def run(case: str) -> Path:
        if not (folder / f"{case}-0.json").exists():
            ranked_runs.run(case, str(model_folder), folder)
        return folder

    return run


def seen(folder: Path, case: str, mode: str) -> Counter[int]:
    return Counter(number for rank in (0, 1) for number in read(folder, case, rank)["seen"][mode])


@pytest.mark.parametrize(
    "case", ["full", "lora", "packed", "stream", "token-stream", "packed-stream", "fsdp", "fsdp-lora", "fsdp-qlora", TP]
)
def test_two_processes_log_the_curve_of_one(both, alone, case):
    one, two = (read(folder, case)["logged"] for folder in (alone(case), both))
    assert len(one) == len(two) > 1
    for mine, theirs in zip(two, one, strict=True):
        found = {key: mine[key] for key in NUMBERS if key in theirs}
        assert found == pytest.approx({key: theirs[key] for key in found}, abs=1e-4)


def test_fsdp_in_bfloat16_logs_the_curve_of_ddp(both):
    one, two = (read(both, case)["logged"] for case in ("half", "fsdp-half"))
    assert len(one) == len(two) > 1
    for mine, theirs in zip(two, one, strict=True):
        found = {key: mine[key] for key in NUMBERS if key in theirs}
        assert found == pytest.approx({key: theirs[key] for key in found}, rel=2e-2)


@pytest.mark.parametrize("case", ONCE)
def test_every_row_is_seen_once_in_an_epoch(both, case):
    epochs = 2 if case in ("full", "lora", "grouped", "fsdp-lora") else 1
    assert seen(both, case, "train") == dict.fromkeys(range(ROWS), epochs)
    if CASES[case].get("eval_strategy") != "no":
        assert seen(both, case, "eval") == dict.fromkeys(range(100, 100 + EVALUATED), epochs)


def test_a_rank_with_a_short_file_waits_with_batches_that_do_not_count(both):
    assert [len(read(both, "files", rank)["seen"]["train"]) for rank in (0, 1)] == [3, 20]
    tokens = [one["num_tokens"] for one in read(both, "files")["logged"]]
    assert len(tokens) == 5
    assert tokens[-1] == read(both, "full")["logged"][2]["num_tokens"]  # of the same rows


# a loader's workers each number rows anew, so what is looked at before is not what the rank takes then
@pytest.mark.parametrize("case", [case for case in ONCE if case not in ("token-stream", "stream-shards")])
def test_a_row_is_prepared_by_one_process_and_once(both, case):
    formatted = (both / f"{case}.formatted").read_text().splitlines()
    of_stream = case == "files" or "stream" in case
    assert len(set(formatted)) == ROWS + (EVALUATED if CASES[case].get("eval_strategy") != "no" else 0)
    assert len({line.split()[1] for line in formatted}) == len(set(formatted))
    # the first rows of a stream are looked at once before, for what a resumed run is held against
    assert max(Counter(formatted).values()) <= (2 if of_stream else 1)


def test_what_the_cache_does_not_keep_is_gone_when_the_run_ends(both):
    shared = json.loads((both / "shared.json").read_text())
    assert len(shared) > 1
    assert not any(Path(folder).exists() for folder in shared)


def test_metrics_of_an_evaluation_see_each_row_once_and_in_order(both, alone):
    one, two = (counted(folder, "full") for folder in (alone("full"), both))
    assert two == one
    assert [rows for rows, _, _ in two] == [EVALUATED] * 2


def test_metrics_of_a_stream_see_each_row_once(both, alone):
    one, two = (counted(folder, "stream") for folder in (alone("stream"), both))
    assert [found[:2] for found in two] == [found[:2] for found in one]
    assert [rows for rows, _, _ in two] == [EVALUATED]


def counted(folder: Path, case: str) -> list[list[int]]:
    keys = ("rows", "counted", "in_order")
    return [[found[f"eval_{key}"] for key in keys] for found in read(folder, case)["logged"] if "eval_rows" in found]


def test_an_evaluation_before_fsdp_has_sharded_anything_says_what_to_do(both):
    assert "cannot be evaluated before it is trained" in (both / "early.txt").read_text()


def test_a_stream_that_each_process_would_shuffle_in_another_way_is_refused(both):
    assert (both / "refused.txt").read_text() == (
        "the stream is shuffled without a seed, so each process would read its rows in another order. "
        "Give one: shuffle(seed=42)."
    )


@pytest.mark.parametrize(
    ("case", "reference"), [("fsdp", "fsdp"), ("fsdp-sharded", "fsdp"), pytest.param("tp", "tp", marks=TP.marks)]
)
def test_a_sharded_model_is_saved_whole_for_plain_transformers(both, alone, case, reference):
    wanted = load_file(alone(reference) / reference / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(both / case)
    for name, weight in wanted.items():
        torch.testing.assert_close(model.state_dict()[name], weight, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("case", ["lora", "fsdp-lora", "fsdp-qlora"])
def test_a_sharded_adapter_is_saved_whole_for_plain_peft(both, alone, case, model_folder):
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folder), both / case)
    wanted = load_file(alone(case) / case / "adapter_model.safetensors")
    found = load_file(both / case / "adapter_model.safetensors")
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("case", ["fsdp-resumed", "fsdp-sharded-resumed"])
def test_a_sharded_run_goes_on_from_its_checkpoint(both, alone, case):
    wanted = [one["loss"] for one in read(alone("full"), "full")["logged"] if "loss" in one]
    found = [one["loss"] for one in read(both, case)["logged"] if "loss" in one]
    assert found[-3:] == pytest.approx(wanted[-3:], abs=1e-4)


def test_a_rank_that_had_read_all_its_rows_waits_again_where_the_run_goes_on(both):
    assert [read(both, "files-resumed", rank)["seen"]["train"] for rank in (0, 1)] == [[], list(range(15, ROWS))]
    wanted, found = (read(both, case)["logged"] for case in ("files", "files-resumed"))
    assert [one["loss"] for one in found] == [one["loss"] for one in wanted]


@pytest.mark.parametrize("case", STOPPED)
def test_two_processes_that_a_signal_stopped_within_an_epoch_go_on_to_the_same_weights_and_curve(again, case):
    taken = (len(read(again, name)["seen"]["train"]) for name in (f"{case}-auto", case))
    assert next(taken) < next(taken)
    assert curve(again, f"{case}-auto") == curve(again, case)
    assert not differing_weights(again, case, f"{case}-auto")


# --- Without a second process -----------------------------------------------------------------------------------------
def test_rounds_are_completed_with_batches_of_no_rows_that_are_still_true():
    batches = torch.utils.data.BatchSampler(range(5), 2, drop_last=False)
    assert list(EvenBatches(batches, 4)) == [[0, 1], [2, 3], [4], []]
    assert len(EvenBatches(batches, 4)) == 4
    assert EvenBatches(batches, 4).batch_size == 2
    assert EmptyBatch()


def test_no_rows_become_a_batch_whose_labels_do_not_count():
    def collate(rows):
        return {"input_ids": torch.tensor(rows), "labels": torch.tensor(rows)}

    fill = RowPadding(collate, row=[7, 8], size=3)
    assert fill([[1, 2]])["labels"].tolist() == [[1, 2], [-100, -100], [-100, -100]]
    nothing = fill([])
    assert nothing["input_ids"].tolist() == [[7, 8]] * 3
    assert nothing["labels"].unique().tolist() == [-100]
    assert nothing["num_tokens"] == 0
    assert RowPadding(collate, row=[7, 8])([[1, 2]])["labels"].tolist() == [[1, 2]]


def test_ranks_share_all_numbers_between_them():
    numbers = range(10, 33)
    taken = [numbers[place] for rank in range(4) for place in Rank(rank, 4).own(numbers)]
    assert sorted(taken) == list(numbers)


def test_a_stream_that_ends_within_a_step_gives_the_steps_of_a_map_style_set(tokenizer, tmp_path):
    rows = Dataset.from_list([{"text": "hello" * (1 + number)} for number in range(5)])
    curves = []
    for data in (rows, rows.to_iterable_dataset()):
        args = SFTConfig(
            str(tmp_path), use_cpu=True, max_steps=4, per_device_train_batch_size=2, gradient_accumulation_steps=2,
            logging_steps=1, learning_rate=0.01, train_sampling_strategy="sequential", report_to="none",
        )  # fmt: skip
        trainer = SFTTrainer(make_llama(tokenizer), args, train_dataset=data, processing_class=tokenizer)
        trainer.train()
        logged = [one for one in trainer.state.log_history if "loss" in one]
        curves.append([[one[key] for one in logged] for key in ("loss", "grad_norm", "num_tokens")])
    assert curves[1][0] == pytest.approx(curves[0][0], abs=1e-5)
    assert curves[1][1] == pytest.approx(curves[0][1], abs=1e-5)
    assert curves[1][2] == curves[0][2]


def test_fsdp_that_would_shard_nothing_is_refused(llama, tokenizer, tmp_path):
    args = SFTConfig(str(tmp_path), use_cpu=True, fsdp=True)
    with pytest.raises(ConflictError, match=r"nothing would be sharded among 1 process\(es\) on cpu"):
        SFTTrainer(llama, args, train_dataset=Dataset.from_list([{"text": "hello"}]), processing_class=tokenizer)


def test_ddp_looks_for_unused_parameters_only_where_there_may_be_some(llama):
    assert not may_leave_some_unused(llama)
    llama.config.num_experts = 4
    assert may_leave_some_unused(llama)
