"""A collator's batch holds exactly its rows: what is right in any layout passes, and each fault is named."""

from __future__ import annotations

import pytest
import torch

from sftcore.data.collate import flatten_rows, pad_rows
from sftcore.trials.collator import try_collator

ROWS = [
    {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, 7, 8, 9]},
    {"input_ids": [11, 12, 13], "labels": [-100, 12, 13]},
    {"input_ids": [21, 22, 23, 24, 25, 26, 27], "labels": [-100, -100, -100, 24, 25, 26, 27]},
]
WEIGHTED = [{**row, "weights": [0.5] * (len(row["input_ids"]) - 1) + [1.0]} for row in ROWS]
PACKED = [
    {"input_ids": [5, 6, 7, 11, 12], "labels": [-100, 6, 7, -100, 12], "seq_lengths": [3, 2]},
    {"input_ids": [21, 22, 23], "labels": [-100, 22, 23], "seq_lengths": [3]},
]


def padded(rows):
    return pad_rows(rows, pad_token_id=0, pad_to_multiple_of=4)


def flattened(rows):
    return flatten_rows(rows, pad_token_id=0, pad_to_multiple_of=8)


def padded_left(rows):
    width = max(len(row["input_ids"]) for row in rows)
    fills = {"input_ids": 0, "labels": -100}
    batch = {
        key: torch.tensor([[fill] * (width - len(row[key])) + row[key] for row in rows]) for key, fill in fills.items()
    }
    return {**batch, "attention_mask": (batch["input_ids"] != 0).long()}


def without_mask(rows):
    batch = padded(rows)
    del batch["attention_mask"]
    return batch


def by_length(rows):
    return padded(sorted(rows, key=lambda row: -len(row["input_ids"])))


def in_a_fixed_size(rows):
    batch = padded(rows)
    filler = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    return {key: torch.cat([batch[key], torch.full_like(batch[key][:1], fill)]) for key, fill in filler.items()}


def with_first_labels(rows):
    batch = padded(rows)
    batch["labels"][:, 0] = batch["input_ids"][:, 0]
    return batch


@pytest.mark.parametrize(
    "collate", [padded, flattened, padded_left, without_mask, by_length, in_a_fixed_size, with_first_labels]
)
def test_every_layout_of_the_same_rows_passes(collate):
    assert try_collator(collate, ROWS).fault == ""


@pytest.mark.parametrize("collate", [padded, flattened])
@pytest.mark.parametrize("rows", [WEIGHTED, PACKED, ROWS[:1]], ids=["weighted", "packed", "one"])
def test_weights_and_packed_rows_pass(collate, rows):
    assert try_collator(collate, rows).fault == ""


def test_rows_without_labels_train_on_all_their_tokens():
    assert try_collator(padded, [{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}]).fault == ""


def test_rows_stay_as_they_are():
    rows = [{key: list(value) for key, value in row.items()} for row in ROWS]

    assert try_collator(lambda given: padded(given) if given[0].pop("labels") else {}, rows).fault
    assert rows == ROWS


# --- What is wrong ----------------------------------------------------------------------------------------------------
def changed(key, change, base=padded):
    def collate(rows):
        batch = base(rows)
        batch[key] = change(batch[key].clone())
        return batch

    return collate


def set_at(place, value):
    def change(tensor):
        tensor[place] = value
        return tensor

    return change


def rolled(by):
    return lambda labels: torch.roll(labels, by, dims=1)


def kept_out_of_the_prompt(labels):
    return torch.roll(labels, -1, dims=1).masked_fill_(labels == -100, -100)


def swapped_rows(tensor):
    return tensor.flip(0)


def labelled_padding(rows):
    batch = padded(rows)
    batch["labels"][1, 3:] = batch["input_ids"][1, 3:]
    del batch["attention_mask"]
    return batch


FAULTS = {
    "all labels ignored": (changed("labels", lambda labels: labels.fill_(-100)), "its labels are all -100"),
    "labels shifted left": (changed("labels", rolled(-1)), "shifted by 1"),
    "labels shifted right": (changed("labels", rolled(1)), "shifted by -1|hides have labels"),
    "labels shifted by two": (changed("labels", rolled(-2)), "shifted by 2|hides have labels"),
    "shifted, the prompt ignored": (changed("labels", kept_out_of_the_prompt), "labels differ|shifted"),
    "one label more": (changed("labels", set_at((0, 1), 6)), "labels differ from those of the row at 1 of 5"),
    "one label less": (changed("labels", set_at((0, 4), -100)), "at 1 of 5 tokens"),
    "another label": (changed("labels", set_at((1, 2), 99)), "at 1 of 3 tokens"),
    "labels of all tokens": (lambda rows: {**padded(rows), "labels": padded(rows)["input_ids"]}, "labels"),
    "labels of other rows": (changed("labels", swapped_rows), "labels"),
    "another token": (changed("input_ids", set_at((0, 2), 99)), "1 of a document's 5 differ"),
    "tokens backwards": (lambda rows: padded([{k: v[::-1] for k, v in row.items()} for row in rows]), "changes tokens"),
    "a token less": (lambda rows: padded([{k: v[:-1] for k, v in row.items()} for row in rows]), "changes tokens"),
    "a token more": (lambda rows: padded([{k: [*v, 9] for k, v in row.items()} for row in rows]), "has 6 in the batch"),
    "a token in front": (lambda rows: padded([{k: [1, *v] for k, v in row.items()} for row in rows]), "changes tokens"),
    "cut": (lambda rows: padded([{k: v[:4] for k, v in row.items()} for row in rows]), "changes tokens"),
    "a row less": (lambda rows: padded(rows[:-1]), "loses rows"),
    "a row twice": (lambda rows: padded([*rows, rows[0]]), "adds 3 supervised tokens"),
    "one row for all": (lambda rows: padded([rows[0]] * len(rows)), "changes tokens"),
    "mask hides a label": (changed("attention_mask", set_at((0, 4), 0)), "attention_mask hides have labels"),
    "mask hides a prompt": (changed("attention_mask", set_at((0, 0), 0)), "changes tokens"),
    "mask shows padding": (changed("attention_mask", torch.ones_like), "changes tokens"),
    "padding has labels": (labelled_padding, "5 tokens of padding have labels"),
    "positions stand still": (changed("position_ids", torch.zeros_like, flattened), "the first token of a document"),
    "positions run on": (
        changed("position_ids", lambda places: torch.arange(places.shape[1])[None], flattened),
        "changes tokens|loses",
    ),
    "first label of a document": (changed("labels", set_at((0, 5), 11), flattened), "the first token of a document"),
    "labels of one row": (lambda rows: {**padded(rows), "labels": torch.zeros(1, 3)}, "its labels have shape"),
    "no labels": (lambda rows: {"input_ids": padded(rows)["input_ids"]}, "its labels have no tensor"),
    "a list": (lambda rows: [padded(rows)], "not a mapping"),
    "tokens miscounted": (lambda rows: {**flattened(rows), "num_tokens": torch.tensor(99)}, "num_tokens is 99"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_not_the_rows_is_named(name):
    collate, said = FAULTS[name]

    fault = try_collator(collate, ROWS).fault

    assert fault
    assert any(part in fault for part in said.split("|")), fault


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda batch: batch.pop("weights"), "weights differ from those of the rows by up to 0.5"),
        (lambda batch: batch["weights"].fill_(1), "by up to 0.5"),
        (lambda batch: batch["weights"].mul_(0.5), "by up to 0.5"),
        (lambda batch: batch["weights"].zero_(), "its labels are all -100"),
        (lambda batch: batch.update(weights=batch["weights"].roll(1, dims=1)), "weights|labels"),
    ],
)
@pytest.mark.parametrize("base", [padded, flattened])
def test_weights_that_are_lost_or_changed_are_named(base, change, said):
    def collate(rows):
        batch = base(rows)
        change(batch)
        return batch

    fault = try_collator(collate, WEIGHTED).fault

    assert fault
    assert any(part in fault for part in said.split("|")), fault


def test_weights_that_no_row_has_are_named():
    def collate(rows):
        batch = padded(rows)
        return {**batch, "weights": torch.full(batch["labels"].shape, 0.5)}

    assert "weights differ" in try_collator(collate, ROWS).fault
