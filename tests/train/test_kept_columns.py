"""`remove_unused_columns=False` keeps the other columns of a row, through preparation and to the collator."""

from __future__ import annotations

import json

import pytest
import torch
from datasets import Dataset

from sftcore import ConflictError, SFTConfig, SFTTrainer
from sftcore.data.collate import pad_rows
from tests.conftest import make_llama

TEXTS = ["hello", "say hello world", "", "the answer is a word"]
TEXT_ROWS = Dataset.from_list([{"text": text, "difficulty": i / 2, "about": {"id": i}} for i, text in enumerate(TEXTS)])
TOKEN_ROWS = Dataset.from_list(
    [
        {"input_ids": [5 + i] * (3 + i), "attention_mask": [1] * (3 + i), "difficulty": i / 2, "about": {"id": i}}
        for i in range(4)
    ]
)
PAIRS = Dataset.from_list(
    [
        {"prompt": "say", "completion": f" {text}", "difficulty": i / 2, "about": {"id": i}}
        for i, text in enumerate(TEXTS)
    ]
)


class Reads:
    """A collator that asks for two columns, and hands one on to the loss."""

    def __init__(self):
        self.seen = []

    def __call__(self, rows):
        self.seen += [(row["difficulty"], row["about"]["id"], len(row["input_ids"])) for row in rows]
        batch = pad_rows(rows, pad_token_id=0)
        return {**batch, "difficulty": torch.tensor([row["difficulty"] for row in rows])}


class Harder(SFTTrainer):
    """Weighs each row of a batch of one by its difficulty."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        difficulty = inputs.pop("difficulty")
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if return_outputs:
            return found[0] * difficulty.sum(), found[1]
        return found * difficulty.sum()


@pytest.fixture
def make(tmp_path, tokenizer):
    def trainer(rows, collator=None, cls=SFTTrainer, given=None, **fields):
        own = {
            "use_cpu": True, "max_steps": 3, "per_device_train_batch_size": 1, "save_strategy": "no", "report_to": [],
            "disable_tqdm": True, "gradient_checkpointing": False, "learning_rate": 0.0, "logging_steps": 1,
            "train_sampling_strategy": "sequential", "remove_unused_columns": False, "max_length": 8,
        }  # fmt: skip
        args = SFTConfig(str(tmp_path), **{**own, **fields})
        model = make_llama(tokenizer, num_hidden_layers=1)
        given = {"processing_class": tokenizer, "data_collator": collator, **(given or {})}
        return cls(model, args, train_dataset=rows, **given)

    return trainer


def expected(rows, tokenizer) -> list[tuple[float, int, int]]:
    """What a collator is to see of each row that has a supervised token, by the tokenizer alone."""
    found = []
    for row in rows:
        if "input_ids" in row:
            count = len(row["input_ids"])
        else:
            text = row["text"] if "text" in row else row["prompt"] + row["completion"]
            count = len(tokenizer(text)["input_ids"]) + 1
        if not row.get("text", "one"):
            continue
        found.append((row["difficulty"], row["about"]["id"], min(count, 8)))
    return found


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("rows", [TOKEN_ROWS, TEXT_ROWS, PAIRS], ids=["tokens", "texts", "pairs"])
def test_a_collator_sees_them_beside_the_tokens_of_their_row(make, tokenizer, rows, streamed):
    collator = Reads()
    wanted = expected(rows, tokenizer)
    trainer = make(rows.to_iterable_dataset() if streamed else rows, collator, Harder, max_steps=len(wanted))
    trainer.train()
    assert sorted(set(collator.seen)) == sorted(wanted)


def test_a_loss_weighs_rows_by_them(make):
    trainer = make(TOKEN_ROWS, Reads(), Harder, max_steps=4)
    trainer.train()
    plain = make(TOKEN_ROWS, max_steps=4)
    plain.train()
    losses, wanted = ([e["loss"] for e in one.state.log_history if "loss" in e] for one in (trainer, plain))
    assert losses == pytest.approx([loss * i / 2 for i, loss in enumerate(wanted)], rel=1e-5)


def test_evaluation_sets_keep_theirs(make):
    collator = Reads()
    trainer = make(TOKEN_ROWS, collator, Harder, given={"eval_dataset": TOKEN_ROWS.select([3, 1])})
    trainer.evaluate()
    assert {(1.5, 3, 6), (0.5, 1, 4)} <= set(collator.seen)
    collator.seen.clear()
    trainer.evaluate(TOKEN_ROWS.select([2]))
    assert set(collator.seen) == {(1.0, 2, 5)}


def test_they_are_the_same_from_the_cache_and_by_several_processes(make, tokenizer):
    for fields in ({}, {}, {"dataset_num_proc": 2, "dataset_cache": False}):
        rows = make(TEXT_ROWS, Reads(), **fields).train_dataset
        assert rows["difficulty"][:] == [0.0, 0.5, 1.5]
        assert rows["about"][:] == [{"id": 0}, {"id": 1}, {"id": 3}]
        assert "text" in rows.column_names


def test_without_the_setting_rows_have_tokens_alone(make):
    assert make(TOKEN_ROWS, remove_unused_columns=True).train_dataset.column_names == ["input_ids", "labels"]


def test_what_is_as_long_as_the_tokens_were_is_left_out(make):
    """A mask of the whole row, beside a row that was cut."""
    trainer = make(TOKEN_ROWS, Reads(), max_length=4)
    assert "attention_mask" not in trainer.train_dataset.column_names
    assert max(map(len, trainer.train_dataset["input_ids"][:])) == 4


def test_packed_rows_have_no_place_for_them(make):
    class ReadsPacked(Reads):
        def __call__(self, rows):
            return pad_rows(rows, pad_token_id=0)

    with pytest.raises(ConflictError, match=r'packed.*"difficulty", "about".*remove_unused_columns'):
        make(TOKEN_ROWS, ReadsPacked(), packing=True)
    # the run's own collator does not ask for them
    assert "difficulty" not in make(TOKEN_ROWS, packing=True).train_dataset.column_names


def test_nor_have_rows_of_which_each_gives_several(make):
    def both(row):
        return [row["text"] or "a", "and more"]

    with pytest.raises(ConflictError, match="several examples"):
        make(TEXT_ROWS, Reads(), given={"formatting_func": both})


def test_a_collator_of_transformers_goes_on(make, tokenizer):
    from transformers import DataCollatorForLanguageModeling

    rows = TEXT_ROWS.remove_columns("about")
    trainer = make(rows, DataCollatorForLanguageModeling(tokenizer, mlm=False), max_steps=1)
    trainer.train()
    assert json.loads(json.dumps(trainer.state.log_history[0]))["loss"] > 0


def weighed(inputs, column):
    return inputs.get(column)


class Elsewhere(SFTTrainer):
    """Reads a column in a function that its loss calls."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.read(inputs)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def read(self, inputs):
        return [weighed(inputs, "about") for _ in range(1)]


class OfNoColumn(SFTTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def log(self, logs, *args, **kwargs):
        super().log({**logs, "difficulty": 1.0}, *args, **kwargs)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("fields", "said"),
    [({}, "batches of tokens alone"), ({"packing": True}, "packed"), ({"padding_free": True}, "alone")],
)
def test_a_loss_that_names_a_column_which_does_not_reach_it_is_refused_before_training(make, fields, said, streamed):
    rows = TOKEN_ROWS.to_iterable_dataset() if streamed else TOKEN_ROWS
    with pytest.raises(ConflictError, match=rf'Harder.compute_loss names the column "difficulty".*{said}'):
        make(rows, cls=Harder, **fields).train()
    with pytest.raises(ConflictError, match=rf'Elsewhere.read names the column "about".*{said}'):
        make(rows, cls=Elsewhere, **fields).train()


@pytest.mark.parametrize("fields", [{}, {"packing": True}])
def test_a_loss_that_reads_no_column_trains(make, fields):
    assert make(TOKEN_ROWS, cls=OfNoColumn, **fields).train().global_step == 3


def test_a_column_that_a_collator_given_later_hands_on_is_not_refused(make):
    trainer = make(TOKEN_ROWS, cls=Harder)
    trainer.data_collator = Reads()
    assert trainer.train().global_step == 3
