"""Two processes give what one gives: predictions in the order of their rows, own losses, decisions, the best model."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import pytest
import torch

from tests.distributed import several_runs
from tests.distributed.case_runs import Run
from tests.distributed.ranked_runs import read, start
from tests.distributed.several_runs import BEST, CASES, GATHERED, TRAINED, saved_weights

pytestmark = pytest.mark.slow

APART = ("losses",)
"""What is of a batch, and so of as many rows as a process has."""


@pytest.fixture(scope="module")
def both(tmp_path_factory, model_folder) -> Path:
    """What each of two processes gave, all cases in turn."""
    return start(tmp_path_factory.mktemp("several") / "both", model_folder, *CASES, script=several_runs.__file__)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, model_folder):
    """What one process gives for a case."""
    run = Run(str(model_folder), str(tmp_path_factory.mktemp("alone")))

    def give(case: str):
        if not (run.folder / f"{case}-0.json").exists():
            several_runs.write(case, run)
        return read(run.folder, case)

    give.folder = run.folder
    return give


def names(*groups) -> list[str]:
    return [one.__name__ for one in chain(*groups)]


def assert_alike(found, wanted):
    """Equal, numbers within the last digits that a sum in another order moves."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), found
        for key in wanted.keys() - set(APART):
            assert_alike(found[key], wanted[key])
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), (found, wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_alike(one, other)
    else:
        assert found == (pytest.approx(wanted, abs=2e-3) if isinstance(wanted, float) else wanted)


@pytest.mark.parametrize("case", [one for one in names(GATHERED) if one != "padding_free"])
def test_predictions_are_those_of_one_process_in_its_order(both, alone, case):
    wanted = alone(case)
    for rank in (0, 1):
        assert_alike(read(both, case, rank), wanted)


def test_predictions_of_a_stream_stand_beside_their_rows(both):
    found = read(both, "predict_stream")
    assert [text.partition(" .")[0] for text in found["labels"]] == [f"ow {number}" for number in range(8)]
    assert found["metrics"] == found["labels"]


def test_rows_laid_end_to_end_reach_metrics_without_filling(both, alone):
    wanted = alone("padding_free")
    for rank in (0, 1):
        found = read(both, "padding_free", rank)
        for count, (rows, predicted, texts) in found.items():
            assert rows == predicted == -(-int(count) // 2)  # two rows in each batch of a process
            assert "".join(texts) == "".join(wanted[count][2])


@pytest.mark.parametrize("case", [one for one in names(TRAINED) if one != "flags"])
def test_an_own_loss_trains_on_as_in_one_process_where_rows_run_out(both, alone, case):
    wanted = alone(case)
    assert [one["step"] for one in wanted if "loss" in one] == list(range(1, 7))
    for rank in (0, 1):
        assert_alike(read(both, case, rank), wanted)
    assert_same_weights(both / case, alone.folder / case)


def test_what_a_callback_decides_on_one_process_is_done_by_all(both, alone):
    wanted = alone("flags")
    for rank in (0, 1):
        assert read(both, "flags", rank) == wanted


@pytest.mark.parametrize("case", [one for one in names(BEST) if one != "half"])
def test_the_best_model_is_the_best_with_sharded_checkpoints(both, alone, case):
    wanted = alone(case)
    for rank in (0, 1):
        assert_alike(read(both, case, rank), wanted)
    assert_same_weights(both / case / "final", alone.folder / case / wanted["best"])


def test_fsdp_in_bfloat16_logs_numbers_that_are_not_rounded(both):
    found = read(both, "half")
    for one, other in zip(found["fsdp"], found["ddp"], strict=True):
        assert one == pytest.approx(other, rel=1e-3)
        assert one != torch.tensor(one).bfloat16().item()


def assert_same_weights(found: Path, wanted: Path) -> None:
    one, other = saved_weights(found), saved_weights(wanted)
    assert other
    for name, weight in other.items():
        torch.testing.assert_close(one[name].float(), weight.float(), rtol=1e-4, atol=1e-4, msg=name)


def test_no_case_was_left_out(both):
    assert {path.name for path in both.glob("*-1.json")} == {f"{case}-1.json" for case in CASES}
    assert not [case for case in CASES if "error" in json.loads((both / f"{case}-0.json").read_text())]
