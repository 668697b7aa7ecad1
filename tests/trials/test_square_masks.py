"""A collator's mask of four dimensions: what is right passes in any form, and what leaks or is hidden is named."""

from __future__ import annotations

import pytest
import torch

from sftcore.data.collate import flatten_rows, pad_rows
from sftcore.trials.collator import try_collator

ROWS = [
    {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, 7, 8, 9]},
    {"input_ids": [11, 12, 13], "labels": [-100, 12, 13]},
    {"input_ids": [21, 22, 23, 24], "labels": [-100, -100, -100, 24]},
]
LENGTHS = [len(row["input_ids"]) for row in ROWS]


def allowed(seen):
    return seen


def added(dtype=torch.float32):
    def numbers(seen):
        return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)

    return numbers


def minus_infinity(seen):
    return torch.zeros(seen.shape).masked_fill_(~seen, float("-inf"))


FORMS = {"bool": allowed, "float32": added(), "bfloat16": added(torch.bfloat16), "infinity": minus_infinity}


def side_by_side(change=None, form=allowed, left=False):
    """Padded rows with a mask of (rows, 1, tokens, tokens), written token by token."""

    def collate(rows):
        batch = pad_rows(rows, pad_token_id=0, pad_to_multiple_of=8)
        if left:
            for i, row in enumerate(rows):
                shift = batch["labels"].shape[1] - len(row["input_ids"])
                for name in ("input_ids", "labels"):
                    batch[name][i] = batch[name][i].roll(shift)
        width = batch["labels"].shape[1]
        seen = torch.zeros(len(rows), 1, width, width, dtype=torch.bool)
        for i, row in enumerate(rows):
            start = width - len(row["input_ids"]) if left else 0
            for query in range(start, start + len(row["input_ids"])):
                seen[i, 0, query, start : query + 1] = True
        if change is not None:
            change(seen)
        return {**batch, "attention_mask": form(seen)}

    return collate


def end_to_end(change=None, form=allowed, positions=True):
    """All rows in one, with a mask of blocks."""

    def collate(rows):
        batch = flatten_rows(rows, pad_token_id=0, pad_to_multiple_of=16)
        width, start = batch["labels"].shape[1], 0
        seen = torch.zeros(1, 1, width, width, dtype=torch.bool)
        for row in rows:
            for query in range(start, start + len(row["input_ids"])):
                seen[0, 0, query, start : query + 1] = True
            start += len(row["input_ids"])
        if change is not None:
            change(seen)
        if not positions:
            del batch["position_ids"]
        return {**batch, "attention_mask": form(seen)}

    return collate


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("make", [side_by_side, end_to_end])
def test_masks_that_keep_documents_to_themselves_pass(make, form):
    assert try_collator(make(form=FORMS[form]), ROWS).fault == ""


def test_padding_on_the_left_passes_and_so_do_documents_without_positions():
    assert try_collator(side_by_side(left=True), ROWS).fault == ""
    assert try_collator(end_to_end(positions=False), ROWS).fault == ""


def padding_that_sees_all(seen):  # so that no row of scores is empty
    for query in range(seen.shape[2]):
        if not seen[:, :, query].any():
            seen[:, :, query] = True


def a_window(seen):
    seen &= ~torch.ones(seen.shape[2:], dtype=torch.bool).tril(-2)


def a_prompt_that_reads_itself_both_ways(seen):
    seen[0, 0, :2, :2] = True
    seen[2, 0, :3, :3] = True


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (end_to_end, padding_that_sees_all),
        (side_by_side, a_window),
        (end_to_end, a_window),
        (side_by_side, a_prompt_that_reads_itself_both_ways),
    ],
)
def test_what_changes_nothing_that_is_predicted_from_elsewhere_passes(make, change):
    assert try_collator(make(change), ROWS).fault == ""


def test_heads_may_differ():
    def collate(rows):
        batch = side_by_side()(rows)
        return {**batch, "attention_mask": batch["attention_mask"].repeat(1, 4, 1, 1)}

    assert try_collator(collate, ROWS).fault == ""


def test_a_mask_of_one_row_serves_rows_of_one_length():
    rows = [ROWS[0], {**ROWS[0], "input_ids": [31, 32, 33, 34, 35], "labels": [-100, 32, 33, 34, 35]}]

    def collate(rows):
        batch = pad_rows(rows, pad_token_id=0)
        return {**batch, "attention_mask": torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()}

    assert try_collator(collate, rows).fault == ""


# --- What is wrong ----------------------------------------------------------------------------------------------------
def at(*place):
    def change(seen):
        seen[place] = True

    return change


def everything(seen):
    seen[:] = True


def only_causal(seen):
    seen[:] = torch.ones(seen.shape[2:], dtype=torch.bool).tril()


def not_itself(seen):
    seen[0, 0, :, 1] = False


def ones_to_add(seen):
    return seen.float()


LEAKS = {
    "a document sees the one before it": (end_to_end(at(0, 0, 6, 2)), "1 of a document's 3 tokens see another"),
    "a document sees the next one": (end_to_end(at(0, 0, 1, 9)), "see another document"),
    "causal over all documents": (end_to_end(only_causal), "3 of a document's 3 tokens see another document"),
    "a document sees padding behind it": (side_by_side(at(1, 0, 1, 6)), "1 of a document's 3 tokens see padding"),
    "a document sees padding before it": (side_by_side(at(1, 0, 7, 2), left=True), "see padding"),
    "causal, padded on the left": (side_by_side(only_causal, left=True), "tokens see padding"),
    "one head leaks": (
        lambda rows: {
            **(batch := side_by_side()(rows)),
            "attention_mask": torch.cat(
                [batch["attention_mask"], batch["attention_mask"] | torch.ones(1, dtype=torch.bool)], dim=1)},
        "see padding"),
    "nothing is hidden": (side_by_side(everything), "see padding"),
    "an answer is seen": (side_by_side(at(0, 0, 2, 3)), "see what they predict: 1 of a document's 5"),
    "an answer is seen by way of a prompt": (side_by_side(at(0, 0, 0, 4)), "see what they predict: 3 of"),
    "a token is hidden": (side_by_side(not_itself), "hides 1 of a document's 5 tokens"),
    "ones that are added": (side_by_side(form=ones_to_add), "see padding"),
    "whole numbers": (side_by_side(form=torch.Tensor.long), "is int64; in that shape bools, or floats"),
    "another width": (lambda rows: {**side_by_side()(rows), "attention_mask": torch.ones(3, 1, 8, 9)}, "has shape"),
    "three dimensions": (lambda rows: {**side_by_side()(rows), "attention_mask": torch.ones(3, 8, 8)}, "has shape"),
    "another row count": (lambda rows: {**side_by_side()(rows), "attention_mask": torch.ones(2, 1, 8, 8)}, "has shape"),
    "one number": (lambda rows: {**side_by_side()(rows), "attention_mask": torch.tensor(1)}, "has shape"),
    "a mask of the rows, one token short": (
        lambda rows: {**pad_rows(rows, pad_token_id=0), "attention_mask": torch.ones(3, 4)}, "has shape (3, 4)"),
    "labels of padding": (
        lambda rows: {**(batch := side_by_side()(rows)), "labels": batch["labels"].masked_fill(
            batch["input_ids"] == 0, 5)}, "adds"),
    "another token": (
        lambda rows: {**(batch := side_by_side()(rows)), "input_ids": batch["input_ids"].masked_fill(
            batch["input_ids"] == 12, 99)}, "changes tokens"),
    "another label": (
        lambda rows: {**(batch := side_by_side()(rows)), "labels": batch["labels"].masked_fill(
            batch["labels"] == 12, 99)}, "labels differ"),
    "positions run on": (
        lambda rows: {**(batch := end_to_end()(rows)), "position_ids": torch.zeros_like(batch["position_ids"])},
        "position_ids do not count"),
}  # fmt: skip


@pytest.mark.parametrize("name", LEAKS)
def test_what_leaks_or_is_lost_is_named(name):
    collate, said = LEAKS[name]
    assert said in try_collator(collate, ROWS).fault


def test_bools_that_an_attention_adds_hide_nothing():
    assert try_collator(side_by_side(), ROWS, "sdpa").fault == ""
    assert "see padding" in try_collator(side_by_side(), ROWS, "eager").fault
    assert try_collator(side_by_side(form=added()), ROWS, "eager").fault == ""
