"""Processes that share a model decide alike, also where one alone holds its weights."""

from __future__ import annotations

import json

import pytest

from tests.distributed import agreeing_runs
from tests.distributed.ranked_runs import start

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def both(tmp_path_factory, model_folder):
    """What each of two processes found."""
    folder = start(tmp_path_factory.mktemp("agreement") / "both", model_folder, script=agreeing_runs.__file__)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_what_the_first_decides_all_have(both):
    assert [found["answer"] for found in both] == ["of 0", "of 0"]


def test_a_way_that_fails_in_one_process_is_taken_in_none(both):
    assert [found["way"] for found in both] == ["positions", "positions"]


def test_a_process_without_weights_says_of_the_tokens_what_the_first_says(both):
    first, second = (found["tokens"] for found in both)
    assert '"<|im_start|>", which the model has not learned' in "\n".join(first)
    assert first == second


def test_a_sharded_model_that_one_process_has_read_trains_as_one_that_all_have_read(both):
    for found in both:
        assert found["lazy"] == found["plain"]
        assert found["lazy"]["gathers"] is True
        assert found["lazy"]["way"] == "positions"
    assert both[0]["lazy"] == both[1]["lazy"]
