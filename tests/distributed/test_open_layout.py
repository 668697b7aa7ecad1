"""Several processes settle one attention and one layout, and log what one process logs with padded rows."""

from __future__ import annotations

import pytest

from tests.distributed import open_runs
from tests.distributed.ranked_runs import read, start

pytestmark = pytest.mark.slow

NUMBERS = ("loss", "grad_norm", "entropy", "mean_token_accuracy", "num_tokens", "num_supervised_tokens", "eval_loss")


@pytest.fixture(scope="module")
def both(tmp_path_factory, model_folder):
    return start(tmp_path_factory.mktemp("two") / "runs", model_folder, *open_runs.CASES, script=open_runs.__file__)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, model_folder):
    folder = tmp_path_factory.mktemp("one")
    for case in open_runs.CASES:
        open_runs.run(case, str(model_folder), folder)
    return folder


@pytest.mark.parametrize(
    ("case", "reference"), [("open", "padded"), ("stream", "padded-stream"), ("packed", "packed"), ("padded", "padded")]
)
def test_two_processes_log_the_curve_of_one_with_padded_rows(both, alone, case, reference):
    one, two = read(alone, reference)["logged"], read(both, case)["logged"]
    assert len(one) == len(two) == 4
    for mine, theirs in zip(two, one, strict=True):
        assert {key: mine[key] for key in NUMBERS if key in theirs} == pytest.approx(
            {key: theirs[key] for key in NUMBERS if key in theirs}, abs=1e-4
        )


@pytest.mark.parametrize("case", ["open", "stream", "packed"])
def test_all_processes_take_the_same(both, alone, case):
    for rank in (0, 1):
        assert read(both, case, rank)["taken"][:2] == ["sftcore_varlen", True]
    assert read(alone, case)["taken"][:2] == ["sftcore_varlen", True]


def test_a_fault_on_one_process_counts_for_all(both):
    for rank in (0, 1):
        implementation, padding_free, notes = read(both, "one-fails", rank)["taken"]
        assert (implementation, padding_free) == ("sdpa", False)
        assert any("this rank alone finds a fault" in note for note in notes)
