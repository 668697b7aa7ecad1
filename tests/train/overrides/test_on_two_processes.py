"""Overrides and hooks of the user's give on two processes what they give on one, or are refused there."""

from __future__ import annotations

import pytest

from tests.distributed.case_runs import Run
from tests.distributed.ranked_runs import read, start
from tests.train.overrides import own_code_runs
from tests.train.overrides.own_code_runs import CASES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def both(tmp_path_factory, model_folder):
    return start(tmp_path_factory.mktemp("own_code") / "both", model_folder, *CASES, script=own_code_runs.__file__)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, model_folder):
    return Run(str(model_folder), str(tmp_path_factory.mktemp("own_code_alone")))


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("refused", "dispatched")])
def test_losses_gradients_and_weights_are_those_of_one_process(both, alone, case):
    own_code_runs.write(case, alone)
    wanted = read(alone.folder, case)
    for rank in (0, 1):
        found = read(both, case, rank)
        assert len(found["logged"]) == len(wanted["logged"]) == 2
        for one, other in zip(found["logged"], wanted["logged"], strict=True):
            assert one == pytest.approx(other, rel=1e-5)
        for weights, others in zip(found["weights"], wanted["weights"], strict=True):
            assert weights == pytest.approx(others, abs=1e-4, rel=1e-5)


def test_hooks_on_parameters_that_shards_replace_are_refused(both):
    for rank in (0, 1):
        first, second = read(both, "refused", rank)
        assert "the hook of register_hook on lm_head.weight would never be called" in first
        assert "the hook of register_post_accumulate_grad_hook on model.embed_tokens.weight would never" in second


def test_rows_that_cannot_be_dispatched_together_are_refused_on_all_processes(both, alone):
    own_code_runs.write("dispatched", alone)
    wanted = read(alone.folder, "dispatched")
    assert len(wanted["said"]) == 1  # one process joins nothing, and counts tokens of packed rows
    for rank in (0, 1):
        found = read(both, "dispatched", rank)
        assert len(found["said"]) == 3
        assert all("takes rows of equal length" in one for one in (*found["said"], *wanted["said"]))
        for one, other in zip(found["logged"], wanted["logged"], strict=True):
            assert one == pytest.approx(other, rel=1e-4)
