"""Packing: nothing lost, nothing twice, nothing out of order, and few blocks."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from datasets import Dataset, IterableDataset
from hypothesis import given, settings
from hypothesis import strategies as st

from sftcore import ConflictError, SFTCoreError
from sftcore.core.types import PACKING_STRATEGIES
from sftcore.data.collate import flatten_rows, pad_rows
from sftcore.data.packing.pack import pack
from tests.conftest import alpaca_rows
from tests.data.test_pipeline import preparation

LENGTHS = st.lists(st.integers(0, 40), max_size=40)


def pieces_of(packing):
    """(block, document, start, length) of each piece, by plain loops."""
    found = []
    for block in range(packing.num_blocks):
        for at in range(packing.blocks[block], packing.blocks[block + 1]):
            found.append((block, packing.documents[at], packing.starts[at], packing.lengths[at]))
    return found


@given(lengths=LENGTHS, capacity=st.integers(1, 50), strategy=st.sampled_from(PACKING_STRATEGIES))
@settings(deadline=None)
def test_packing_is_a_partition_of_the_tokens_and_keeps_their_order(lengths, capacity, strategy):
    packing = pack(lengths, capacity, strategy)
    seen = {}
    filled = [0] * packing.num_blocks
    for block, document, start, length in pieces_of(packing):
        assert length > 0
        filled[block] += length
        seen.setdefault(document, []).append((start, length))
    assert all(0 < tokens <= capacity for tokens in filled)
    for document, length in enumerate(lengths):
        tokens = [token for start, size in sorted(seen.get(document, [])) for token in range(start, start + size)]
        assert tokens == list(range(min(length, capacity) if strategy == "bfd" else length))
        if strategy != "wrapped":
            assert all(start % capacity == 0 for start, _ in seen.get(document, []))
    assert packing.num_tokens == sum(filled)
    assert packing.num_split == sum(len(pieces) > 1 for pieces in seen.values())


@given(lengths=LENGTHS, capacity=st.integers(1, 50))
@settings(deadline=None)
def test_wrapped_blocks_are_full_but_for_the_last_and_in_the_order_of_the_documents(lengths, capacity):
    packing = pack(lengths, capacity, "wrapped")
    order = [(document, start) for _, document, start, _ in pieces_of(packing)]
    assert order == sorted(order)
    assert packing.num_blocks == math.ceil(sum(lengths) / capacity)


def fewest_blocks(lengths, capacity):
    """The optimum, by trying every assignment (for a handful of documents)."""
    for blocks in itertools.count(1):
        for assignment in itertools.product(range(blocks), repeat=len(lengths)):
            loads = [0] * blocks
            for length, block in zip(lengths, assignment, strict=True):
                loads[block] += length
            if max(loads) <= capacity:
                return blocks
    raise AssertionError


@given(st.lists(st.integers(1, 10), min_size=1, max_size=6))
@settings(deadline=None, max_examples=60)
def test_bfd_is_within_one_block_of_the_optimum_for_few_documents(lengths):
    assert pack(lengths, 10).num_blocks <= fewest_blocks(lengths, 10) + 1


@given(st.lists(st.lists(st.integers(1, 99), max_size=5), min_size=1, max_size=60), st.randoms())
@settings(deadline=None)
def test_bfd_is_within_eleven_ninths_of_a_known_optimum(cuts, random):
    # Full blocks of 100 tokens cut at random: they can be packed into as many blocks, and into no fewer
    lengths = [b - a for cut in cuts for a, b in itertools.pairwise(sorted({0, 100, *cut}))]
    random.shuffle(lengths)
    blocks = pack(lengths, 100).num_blocks
    assert blocks <= (len(cuts) + 1 if len(cuts) <= 5 else math.floor(11 / 9 * len(cuts) + 6 / 9))


def test_a_document_goes_where_it_leaves_least_room():
    packing = pack([6, 5, 4, 3], 10)  # 6+4 fill one block; a first fit of 5 would not matter, 3 joins 5
    assert [list(packing.documents[a:b]) for a, b in itertools.pairwise(packing.blocks)] == [[0, 2], [1, 3]]


def test_an_unknown_strategy_names_the_nearest():
    with pytest.raises(SFTCoreError, match=r'"bfd_spilt" is not known\. Did you mean "bfd_split"'):
        pack([1], 4, "bfd_spilt")


words = st.integers(1, 30).map(lambda count: " ".join(["hello"] * count))


@given(
    answers=st.lists(words, min_size=1, max_size=12),
    strategy=st.sampled_from(PACKING_STRATEGIES),
    max_length=st.integers(4, 60),
    shuffle=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_masks_survive_cut_and_packing_and_the_ledger_adds_up(tokenizer, answers, strategy, max_length, shuffle):
    rows = [{"prompt": f"{i}: ", "completion": answer} for i, answer in enumerate(answers)]
    cut = max_length if strategy == "bfd" else None
    fields = {"packing_strategy": strategy, "dataset_cache": False}
    # The documents that must come out, each by itself and by the tokenizer's own call
    wanted = {}
    for i, row in enumerate(rows):
        prompt = len(tokenizer(row["prompt"].rstrip())["input_ids"])
        ids = tokenizer(row["prompt"] + row["completion"] + "<|im_end|>")["input_ids"][:cut]
        if len(ids) > prompt:
            wanted[i] = (ids, [-100] * prompt + ids[prompt:])
    data = preparation(tokenizer, max_length=max_length, packing=True, shuffle_dataset=shuffle, **fields)
    if not wanted:
        with pytest.raises(SFTCoreError, match="no row is left"):
            data.prepare(Dataset.from_list(rows), "train")
        return
    blocks = data.prepare(Dataset.from_list(rows), "train")
    pieces = []
    for block in blocks:
        assert sum(block["seq_lengths"]) == len(block["input_ids"]) == len(block["labels"]) <= max_length
        at = 0
        for length in block["seq_lengths"]:
            pieces.append((block["input_ids"][at : at + length], block["labels"][at : at + length]))
            at += length
    expected = []
    for ids, labels in wanted.values():
        if strategy != "wrapped":
            starts = range(0, len(ids), max_length)
            expected += [(ids[at : at + max_length], [-100, *labels[at + 1 : at + max_length]]) for at in starts]
    if strategy == "wrapped":
        assert sorted(t for ids, _ in pieces for t in ids) == sorted(t for ids, _ in wanted.values() for t in ids)
        assert all(label in (-100, token) for ids, labels in pieces for token, label in zip(ids, labels, strict=True))
        assert all(labels[0] == -100 for _, labels in pieces)
    else:
        assert sorted(pieces) == sorted(expected)
    (ledger,) = data.ledgers
    assert ledger.tokens_in == ledger.tokens_kept + ledger.tokens_cut + ledger.tokens_dropped
    assert ledger.tokens_kept == sum(len(ids) for ids, _ in pieces)
    assert ledger.tokens_supervised == sum(label != -100 for _, labels in pieces for label in labels)
    assert (ledger.rows_in, ledger.rows_kept) == (len(rows), len(wanted))


def test_weights_are_packed_beside_rows_that_have_none(tokenizer):
    rows = [{"input_ids": [5, 6, 7], "weights": [0.0, 0.5, 1.0]}, {"input_ids": [8, 9], "weights": None}]
    (block,) = preparation(tokenizer, max_length=8, packing=True).prepare(Dataset.from_list(rows), "train")
    assert block == {
        "input_ids": [5, 6, 7, 8, 9], "labels": [-100, 6, 7, -100, 9], "weights": [0.0, 0.5, 1.0, 1.0, 1.0],
        "seq_lengths": [3, 2],
    }  # fmt: skip


def test_packing_sees_the_whole_set(tokenizer):
    # One document of 30 tokens in every thousand rows, each with its match of 10 in another thousand
    rows = [{"input_ids": [7] * (30 if i == 0 else 10)} for i in range(2001)]
    data = preparation(tokenizer, max_length=40, packing=True)
    data.prepare(Dataset.from_list(rows), "train")
    assert data.ledgers[0].packing.blocks == math.ceil((30 + 2000 * 10) / 40)


def test_the_blocks_depend_on_the_seed_alone(tokenizer):
    def blocks(seed):
        fields = {"packing": True, "shuffle_dataset": True, "packing_strategy": "wrapped", "dataset_cache": False}
        data = preparation(tokenizer, max_length=64, seed=seed, **fields)
        return data.prepare(Dataset.from_list(alpaca_rows(50)), "train")["input_ids"][:]

    assert blocks(1) == blocks(1)
    assert blocks(1) != blocks(2)


@pytest.mark.parametrize(("eval_packing", "packed"), [(None, True), (False, False), (True, True)])
def test_an_evaluation_set_is_packed_as_eval_packing_says(tokenizer, eval_packing, packed):
    data = preparation(tokenizer, max_length=64, packing=True, eval_packing=eval_packing)
    prepared = data.prepare(Dataset.from_list(alpaca_rows(4)), "eval_dataset")
    assert ("seq_lengths" in prepared.column_names) is packed


def test_packing_without_a_length_is_refused(tokenizer):
    with pytest.raises(ConflictError, match="packing needs the length of a block, but max_length is None"):
        preparation(tokenizer, packing=True).prepare(Dataset.from_list(alpaca_rows(2)), "train")


def test_a_poor_fill_is_said_with_its_reason(tokenizer):
    data = preparation(tokenizer, max_length=40, packing=True)
    data.prepare(Dataset.from_list([{"input_ids": [7] * 30} for _ in range(50)]), "train")
    assert data.ledgers[0].lines()[-1] == (
        "train: packed into 50 blocks of 40 tokens (bfd), 75.0% filled (100% of the documents are longer than half a "
        "block: raise max_length, or use bfd_split)"
    )


def test_a_stream_is_packed_window_by_window_without_being_read_whole(tokenizer):
    read = []

    def rows():
        for i in range(5000):
            read.append(i)
            yield {"input_ids": [i % 300] * (2 + i % 50)}

    stream = preparation(tokenizer, max_length=100, packing=True).prepare(IterableDataset.from_generator(rows), "train")
    iterator = iter(stream)
    first = next(iterator)
    assert len(read) < 2500
    blocks = [first, *iterator]
    assert sum(len(block["input_ids"]) for block in blocks) == sum(2 + i % 50 for i in range(5000))
    tokens = np.bincount([token for block in blocks for token in block["input_ids"]], minlength=300)
    expected = np.bincount([i % 300 for i in range(5000)], weights=[2 + i % 50 for i in range(5000)], minlength=300)
    assert tokens.tolist() == expected.tolist()
    assert sum(len(block["input_ids"]) for block in blocks) / (100 * len(blocks)) > 0.97


def test_a_packed_stream_resumes_where_it_was(tokenizer):
    def blocks():
        source = Dataset.from_list(alpaca_rows(3000)).to_iterable_dataset(num_shards=1)
        return preparation(tokenizer, max_length=128, packing=True).prepare(source, "train")

    stream = blocks()
    iterator = iter(stream)
    for _ in range(150):
        next(iterator)
    state = stream.state_dict()
    rest = list(iterator)
    resumed = blocks()
    resumed.load_state_dict(state)
    assert list(resumed) == rest


ROWS = [
    {"input_ids": [5, 6, 7, 8], "labels": [-100, 6, -100, 8], "seq_lengths": [2, 2]},
    {"input_ids": [9, 10], "labels": [9, 10], "seq_lengths": [2]},
]


def test_padded_packed_rows_keep_positions_and_make_padding_a_document():
    batch = {key: value.tolist() for key, value in pad_rows(ROWS, pad_token_id=0, pad_to_multiple_of=6).items()}
    assert batch == {
        "input_ids": [[5, 6, 7, 8, 0, 0], [9, 10, 0, 0, 0, 0]],
        "labels": [[-100, 6, -100, 8, -100, -100], [-100, 10, -100, -100, -100, -100]],
        "position_ids": [[0, 1, 0, 1, 0, 1], [0, 1, 0, 1, 0, 1]],
        "num_tokens": 6,
    }


def test_flattened_rows_are_one_row_of_documents():
    rows = [*ROWS, {"input_ids": [11, 12, 13], "weights": [0.0, 0.5, 1.0]}]
    batch = {key: value.tolist() for key, value in flatten_rows(rows, pad_token_id=0).items()}
    assert batch == {
        "input_ids": [[5, 6, 7, 8, 9, 10, 11, 12, 13]],
        "labels": [[-100, 6, -100, 8, -100, 10, -100, 12, 13]],
        "position_ids": [[0, 1, 0, 1, 0, 1, 0, 1, 2]],
        "weights": [[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.5, 1.0]],
        "num_tokens": 9,
    }
