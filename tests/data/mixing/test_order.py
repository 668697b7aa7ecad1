"""The order of a mixture: its proportions at any time, what it repeats and leaves out, and that it stays the same."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftcore.data.mixing.order import Due, Order

WEIGHTS = st.lists(st.floats(0.05, 20), min_size=2, max_size=5)


def dealt(order: Order, sizes: list[int]) -> list[tuple[int, int]]:
    """The mixture as pairs of a source and the number of its row."""
    starts = [sum(sizes[:source]) for source in range(len(sizes))]
    found = []
    for index in order.rows(sizes).tolist():
        source = max(source for source, start in enumerate(starts) if start <= index)
        found.append((source, index - starts[source]))
    return found


@given(weights=WEIGHTS, seed=st.integers(0, 2**31), data=st.data())
@settings(deadline=None, max_examples=60)
def test_at_any_time_each_source_is_within_a_few_rows_of_its_share(weights, seed, data):
    sizes = [data.draw(st.integers(1, 300)) for _ in weights]
    rows = dealt(Order.of(weights, seed, "first"), sizes)
    counts = Counter()
    for taken, (source, _) in enumerate(rows, 1):
        counts[source] += 1
        for one, weight in enumerate(weights):
            assert abs(counts[one] - taken * weight / sum(weights)) <= len(weights)


@given(weights=WEIGHTS, seed=st.integers(0, 2**31), stop=st.sampled_from(["first", "all"]), data=st.data())
@settings(deadline=None, max_examples=60)
def test_the_rows_of_a_source_come_in_their_order_and_as_often_as_stop_says(weights, seed, stop, data):
    sizes = [data.draw(st.integers(1, 100)) for _ in weights]
    rows = dealt(Order.of(weights, seed, stop), sizes)
    counts = Counter(rows)
    for source, size in enumerate(sizes):
        own = [row for one, row in rows if one == source]
        assert own == [number % size for number in range(len(own))]
    if stop == "first":
        assert max(counts.values(), default=1) == 1
        complete = [source for source, size in enumerate(sizes) if sum(one == source for one, _ in rows) == size]
        assert complete, "it ends where the first source has no row left"
    else:
        assert len(counts) == sum(sizes), "no row of any source is left out"
        assert any(all(counts[source, row] == 1 for row in range(size)) for source, size in enumerate(sizes))


def test_the_proportions_of_five_thousand_rows_are_those_of_the_weights():
    rows = dealt(Order.of([0.7, 0.2, 0.1], 42, "first"), [3500, 2000, 2000])
    counts = Counter(source for source, _ in rows)
    assert len(rows) == pytest.approx(5000, abs=5)
    for source, share in enumerate([0.7, 0.2, 0.1]):
        assert counts[source] / len(rows) == pytest.approx(share, rel=0.01)


def test_the_order_is_that_of_the_seed_and_has_no_pattern():
    def order(seed: int) -> list[int]:
        return [source for source, _ in dealt(Order.of([1, 1], seed, "first"), [500, 500])]

    assert order(1) == order(1)
    assert order(1) != order(2)
    # a round-robin would give one of two processes, which take every second row, the rows of one source alone
    assert 150 < sum(order(1)[::2]) < 350


def test_times_from_a_row_on_are_those_of_all_rows():
    order = Order.of([3, 1], 7, "first")
    whole = order.times(1, 0, 3000).tolist()
    assert order.times(1, 2345, 100).tolist() == whole[2345:2445]
    due, seen = Due(order, 1, 1000), []
    for _ in range(1500):
        seen.append(due.next)
        due.take()
    assert seen == whole[1000:2500]
    # row j is due in the j-th slot of 1/share rows
    assert all(4 * number <= time < 4 * number + 4 for number, time in enumerate(whole))


def test_without_weights_the_sources_are_read_one_after_another():
    assert Order.of([None, None], 0, "first").rows([2, 3]) is None
