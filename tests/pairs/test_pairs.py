"""Every pair of plugins either trains or is refused with a reason, and the docs say which."""

from __future__ import annotations

import importlib.util
import os

import pytest

from tests.pairs.grid import NEEDS, combinations, covering, pairs
from tests.pairs.table import PAGE, make_folder, page, read_page, verdicts

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def checked(folder):
    """What `check` says of each combination today."""
    return verdicts(combinations(), folder, train=False)


@pytest.fixture(scope="module")
def shown():
    return read_page(PAGE.read_text(encoding="utf-8"))


def installed(combination) -> bool:
    return all(importlib.util.find_spec(NEEDS[value]) for value in combination if value in NEEDS)


def test_the_page_has_every_combination_and_none_that_crashes(shown):
    assert list(shown) == combinations()
    assert len(shown) == 540
    assert {state for state, _ in shown.values()} <= {"trains", "check", "loading"}
    assert all(why for state, why in shown.values() if state != "trains")


def test_check_says_of_each_combination_what_the_page_says(checked, shown):
    refused = {one: verdict for one, verdict in checked.items() if verdict[0] == "check"}
    assert refused == {one: verdict for one, verdict in shown.items() if verdict[0] == "check"}, (
        "run: python -m tests.pairs.table"
    )
    assert 0 < len(refused) < len(checked)


def test_combinations_of_every_pair_train_two_steps(folder, checked, shown):
    passing = [one for one, (state, _) in checked.items() if state == "passes" and installed(one)]
    asked = passing if os.environ.get("SFTCORE_ALL_PAIRS") else covering(passing)
    found = verdicts(asked, folder, train=True)
    assert {one: verdict for one, verdict in found.items() if verdict != shown[one]} == {}
    reached = {pair for one, (state, _) in found.items() if state == "trains" for pair in pairs(one)}
    # a pair that trains in no combination is one that the page says to be refused everywhere
    trainable = {pair for one in passing if shown[one][0] == "trains" for pair in pairs(one)}
    assert reached == trainable


def test_every_pair_of_values_is_trained_or_refused_on_the_page(shown):
    known = {pair: {shown[one][0] for one in shown if pair in set(pairs(one))} for pair in _all_pairs()}
    assert len(known) == 2 * (5 + 3 + 3 + 3 + 2) + 5 * (3 + 3 + 3 + 2) + 3 * (3 + 3 + 2) + 3 * (3 + 2) + 3 * 2 == 132
    assert all(states for states in known.values())


def _all_pairs():
    return {pair for one in combinations() for pair in pairs(one)}


def test_a_covering_set_holds_every_pair_in_few_combinations():
    everything = combinations()
    few = covering(everything)
    assert {pair for one in few for pair in pairs(one)} == _all_pairs()
    assert 15 <= len(few) < 30  # five attentions and three of others cannot be met in less


def test_the_page_is_read_as_it_was_written(shown):
    written = page(shown, "torch 2")
    assert read_page(written) == shown
    assert written.count("✓") == 1 + sum(state == "trains" for state, _ in shown.values())
