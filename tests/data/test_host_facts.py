"""What the host knows of a batch is what a loop over its rows finds, wherever the batch goes."""

from __future__ import annotations

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sftcore.data.collate import flatten_rows, pad_rows
from sftcore.data.host_facts import Batch, HostFacts, WithFacts, edges_of, facts_of, supervised_positions


@st.composite
def prepared_rows(draw):
    """Rows of one to three documents, with labels that may not count, and weights in some batches."""
    weighted, rows = draw(st.booleans()), []
    for lengths in draw(st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3), min_size=1, max_size=4)):
        size = sum(lengths)
        labels = draw(st.lists(st.sampled_from([-100, 7]), min_size=size, max_size=size))
        row = {"input_ids": [5] * size, "labels": labels, "seq_lengths": lengths}
        if weighted:
            row["weights"] = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=size, max_size=size))
        rows.append(row)
    return rows


@given(prepared_rows(), st.sampled_from([pad_rows, flatten_rows]), st.integers(1, 4))
@settings(deadline=None, max_examples=150)
def test_facts_are_what_a_loop_over_the_rows_finds(rows, collate, multiple):
    batch = collate(rows, pad_token_id=0, pad_to_multiple_of=multiple)
    facts = HostFacts.of(batch)
    width = batch["labels"].shape[1]
    # by hand: a token counts by the label and the weight of the one after it, if that is of the same document
    starts, positions, total, start = [], [], 0.0, 0
    longest = max(length for row in rows for length in row["seq_lengths"])
    for number, row in enumerate(rows):
        base = at = number * width if collate is pad_rows else start
        weights = row.get("weights", [1.0] * len(row["labels"]))
        for length in row["seq_lengths"]:
            starts.append(at)
            for index in range(at + 1, at + length):
                if row["labels"][index - base] != -100:
                    total += weights[index - base]
                    positions += [index - 1] if weights[index - base] > 0 else []
            at += length
        start = at
        if collate is pad_rows:
            starts += range(at, base + width, longest)
    if collate is flatten_rows:
        starts += range(start, width, longest)
    assert facts.positions.tolist() == positions
    assert facts.num_items == pytest.approx(total)
    # padding counts up from 0 like documents, none longer than the batch's longest, which has positions for all
    assert list(facts.edges) == [*starts, batch["labels"].numel()]
    assert facts.boundaries.tolist() == list(facts.edges)
    assert facts.boundaries.dtype == torch.int32
    assert facts.padded is False


def test_rows_without_positions_have_no_boundaries_and_say_whether_they_are_padded():
    rows = [{"input_ids": [5, 6, 7]}, {"input_ids": [5]}]
    facts = HostFacts.of(pad_rows(rows, pad_token_id=0))
    assert (facts.padded, facts.edges, facts.positions.tolist(), facts.num_items) == (True, None, [0, 1], 2.0)
    assert not HostFacts.of(pad_rows([rows[0]] * 2, pad_token_id=0)).padded
    assert HostFacts.of({"input_ids": torch.ones(1, 3)}) is None


def test_facts_travel_with_a_batch_through_copies_and_processes_and_are_found_by_its_labels():
    batch = WithFacts(lambda rows: flatten_rows(rows, pad_token_id=0))(
        [{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}]
    )
    assert isinstance(batch, dict)
    assert set(batch) == {"input_ids", "labels", "position_ids", "num_tokens"}  # no key that a model would not know
    for travelled in (batch, copy.copy(batch), pickle.loads(pickle.dumps(batch))):
        moved = travelled.to(torch.device("cpu"))
        assert type(moved) is dict
        facts = facts_of(moved)
        assert facts.edges == (0, 3, 5)
        assert edges_of(facts.boundaries) == [0, 3, 5]
    assert facts_of({**moved, "labels": moved["labels"].clone()}) is None
    assert facts_of({}) is None


def test_a_users_collator_may_give_what_it_likes():
    given_ = np.zeros(3)
    assert WithFacts(lambda rows: given_)([]) is given_
    batch = WithFacts(lambda rows: {"text": ["a"]})([])
    assert batch == {"text": ["a"]}
    assert isinstance(batch, Batch)
    assert batch.to("cpu") == {"text": ["a"]}


def test_boundaries_that_change_are_read_again():
    boundaries = torch.tensor([0, 2, 5])
    assert edges_of(boundaries) == [0, 2, 5]
    boundaries[1] = 3
    assert edges_of(boundaries) == [0, 3, 5]


def test_positions_are_those_before_the_tokens_that_count():
    labels, weights = torch.tensor([[4, 5, -100, 6], [-100, 4, 4, -100]]), torch.tensor([[1.0, 0, 1, 1], [1, 1, 1, 1]])
    pairs = [(row, column) for row, column in itertools.product(range(2), range(3)) if labels[row, column + 1] != -100]
    assert supervised_positions(labels, None).tolist() == [row * 4 + column for row, column in pairs]
    assert supervised_positions(labels, weights).tolist() == [2, 4, 5]


def placed(rows=({"input_ids": [5, 6, 7, 8], "labels": [-100, 6, -100, 8]}, {"input_ids": [5, 6]})):
    return WithFacts(lambda rows: pad_rows(rows, pad_token_id=0))(list(rows)).to("cpu")


@pytest.mark.parametrize(
    "change",
    [
        lambda batch: batch["labels"].fill_(7),
        lambda batch: batch["attention_mask"][0].zero_(),
        lambda batch: batch.update(weights=torch.ones(2, 4)),
        lambda batch: batch.update(attention_mask=torch.ones(2, 4, dtype=torch.long)),
        lambda batch: batch.update(position_ids=torch.zeros(2, 4, dtype=torch.long)),
        lambda batch: batch.update(labels=batch["labels"].clone()),
    ],
)
def test_facts_of_a_batch_that_somebody_has_changed_are_not_used(change):
    batch = placed()
    assert facts_of(batch) is not None
    assert facts_of({**batch, "other": 1}) is not None
    change(batch)
    assert facts_of(batch) is None


def test_positions_jump_where_they_do_not_count_up():
    labels = torch.ones(1, 4, dtype=torch.long)
    for places, jumps in (([0, 1, 2, 3], False), ([0, 1, 0, 1], True), ([1, 2, 1, 2], True), ([0, 2, 4, 6], True)):
        assert HostFacts.of({"labels": labels, "position_ids": torch.tensor([places])}).jumps is jumps
