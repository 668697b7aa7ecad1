"""The scores of many rows at once, compared with those of each row by itself."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from sftcore.data.account.table import table_of
from sftcore.report.rows.ranked import ranking_of

LOSS = st.one_of(st.floats(0, 8, width=32), st.sampled_from([math.nan, math.inf]))
ROW = st.one_of(st.none(), st.lists(st.tuples(LOSS, st.integers(0, 40)), max_size=4))


def worst(losses, tokens, mean):
    lowest = min(losses) if all(map(math.isfinite, losses)) else math.inf
    most = max(tokens)
    return (most * lowest + 10 * mean) / (most + 10) if most else lowest


def late(losses):
    if len(losses) < 2 or not all(map(math.isfinite, losses)) or losses[-1] >= losses[0]:
        return None
    if len(losses) == 2:
        return losses[1] / losses[0]
    return statistics.fmean((one - losses[-1]) / (losses[0] - losses[-1]) for one in losses)


def jumps(losses):
    rises = [
        (math.inf if math.isnan(b) else b) - a for a, b in itertools.pairwise(losses) if math.isfinite(a)
    ]  # fmt: skip
    return max(rises) if rises and max(rises) > 0 else None


@given(st.lists(ROW, max_size=12))
def test_scores_are_those_of_each_row(rows):
    losses = [None if row is None else [one[0] for one in row] for row in rows]
    tokens = [None if row is None else [one[1] for one in row] for row in rows]
    columns = {
        "set": "train",
        "row": np.arange(len(rows)),
        "loss": pa.array(losses, pa.list_(pa.float32())),
        "loss_tokens": pa.array(tokens, pa.list_(pa.int32())),
    }
    table = table_of(columns, len(rows))
    last = [one[-1] for one in losses if one and math.isfinite(one[-1])]
    mean = statistics.fmean(last) if last else 0.0
    wanted = {
        "worst": lambda i: worst(losses[i], tokens[i], mean),
        "late": lambda i: late(losses[i]),
        "jumps": lambda i: jumps(losses[i]),
    }
    for what, score in wanted.items():
        expected = {i: found for i in range(len(rows)) if losses[i] and (found := score(i)) is not None}
        found = {one.row: one.score for one in ranking_of(table, {}, what, worst=99).rows}
        assert found.keys() == expected.keys()
        for i, value in found.items():
            assert value == expected[i] or math.isclose(value, expected[i], rel_tol=1e-9, abs_tol=1e-9)
