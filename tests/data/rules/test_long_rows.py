"""Rows that are longer than max_length: cut, dropped, split or refused, each accounted for."""

from __future__ import annotations

import itertools
import json

import pytest
from click.testing import CliRunner
from datasets import Dataset

from sftcore import Mixture, RowError, SFTConfig, SFTTrainer
from sftcore.cli import cli
from sftcore.data.pipeline import NOTHING_LEFT
from sftcore.data.rules.long_rows import SPLIT, TOO_LONG
from tests.data.test_pipeline import preparation

SHORT, LONG = "hello", "a b c d e f g h i j k l"


def prepared(tokenizer, rows, **fields):
    data = preparation(tokenizer, max_length=8, **fields)
    return data, data.prepare(Dataset.from_list(rows), "train_dataset")


def ids_of(tokenizer, text):
    return tokenizer(f"{text}<|im_end|>")["input_ids"]


@pytest.fixture(scope="module")
def texts():
    return [{"text": SHORT}, {"text": LONG}, {"text": "world"}]


@pytest.mark.parametrize("num_proc", [None, 2])
def test_dropped_rows_are_counted(tokenizer, texts, num_proc):
    data, rows = prepared(tokenizer, texts, long_rows="drop", dataset_num_proc=num_proc, dataset_cache=False)
    assert [tokenizer.decode(ids) for ids in rows["input_ids"]] == ["hello<|im_end|>", "world<|im_end|>"]
    assert data.ledgers[0].dropped_rows == {TOO_LONG: [1]}
    assert data.ledgers[0].tokens_dropped == len(ids_of(tokenizer, LONG))
    assert data.ledgers[0].rows_cut == 0


def test_a_text_is_split_into_rows_that_hold_all_of_it(tokenizer, texts):
    data, rows = prepared(tokenizer, texts, long_rows="split")
    whole = ids_of(tokenizer, LONG)
    assert rows["input_ids"][1:-1] == [whole[at : at + 8] for at in range(0, len(whole), 8)]
    assert rows["labels"] == rows["input_ids"]
    (ledger,) = data.ledgers
    assert (ledger.tokens_cut, ledger.rows_cut, ledger.notes) == (0, 0, {SPLIT: 1})
    assert ledger.rows_kept == len(rows) > 3
    assert ledger.tokens_kept == sum(map(len, rows["input_ids"]))


def test_a_text_that_fits_to_the_token_is_left_alone(tokenizer):
    exact = tokenizer.decode(ids_of(tokenizer, LONG)[:7])
    assert len(ids_of(tokenizer, exact)) == 8
    for choice in ("drop", "split", "refuse"):
        data, rows = prepared(tokenizer, [{"text": exact}], long_rows=choice)
        assert rows["input_ids"] == [ids_of(tokenizer, exact)]
        assert data.ledgers[0].notes == {}


def test_a_refusal_says_how_many_rows_are_too_long_and_where_the_first_is(tokenizer, texts):
    with pytest.raises(RowError, match=r"train_dataset row 1: the row has \d+ tokens.* 1 more") as e:
        prepared(tokenizer, [*texts, {"text": LONG}], long_rows="refuse")
    assert e.value.row == 1


TALK = [{"role": "user", "content": LONG}, {"role": "assistant", "content": LONG}]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"messages": TALK}, "a conversation"),
        ({"prompt": TALK[:1], "completion": TALK[1:]}, "a conversation"),
        ({"prompt": LONG, "completion": LONG}, "an answer"),
        (
            {"input_ids": list(range(5, 25)), "labels": [-100] * 10 + [*range(10)]},
            "a row that is supervised in part",
        ),
    ],
    ids=["messages", "prompt of messages", "prompt", "tokens"],
)
def test_what_would_lose_its_beginning_is_not_split(tokenizer, row, kind):
    with pytest.raises(RowError, match=f"row 0: long_rows: split would train pieces of {kind} without"):
        prepared(tokenizer, [row], long_rows="split")


def test_rows_of_tokens_and_texts_trained_whole_are_split(tokenizer):
    _, rows = prepared(tokenizer, [{"input_ids": list(range(5, 25))}], long_rows="split")
    assert rows["input_ids"] == [list(range(5, 13)), list(range(13, 21)), list(range(21, 25))]
    _, rows = prepared(tokenizer, [{"prompt": LONG, "completion": "x"}], long_rows="split", completion_only_loss=False)
    assert list(itertools.chain(*rows["input_ids"])) == ids_of(tokenizer, f"{LONG}x")


def test_streams_do_the_same_and_refuse_at_the_row(tokenizer, texts):
    stream = Dataset.from_list(texts).to_iterable_dataset()
    for choice in ("drop", "split"):
        _, rows = prepared(tokenizer, texts, long_rows=choice)
        streamed = preparation(tokenizer, max_length=8, long_rows=choice).prepare(stream, "train_dataset")
        assert [one["input_ids"] for one in streamed] == rows["input_ids"]
    with pytest.raises(RowError, match="row 1"):
        list(preparation(tokenizer, max_length=8, long_rows="refuse").prepare(stream, "train_dataset"))


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
def test_packing_drops_them_too(tokenizer, texts, strategy):
    data, blocks = prepared(tokenizer, texts, long_rows="drop", packing=True, packing_strategy=strategy)
    assert data.ledgers[0].dropped == {TOO_LONG: 1}
    assert sum(map(len, blocks["input_ids"])) == len(ids_of(tokenizer, SHORT)) + len(ids_of(tokenizer, "world"))


def test_sources_of_a_mixture_account_for_their_own(tokenizer, texts):
    data = preparation(tokenizer, max_length=8, long_rows="drop")
    data.prepare(Mixture([Dataset.from_list(texts), Dataset.from_list(texts[:1])]), "train_dataset")
    assert [one.dropped for one in data.ledgers] == [{TOO_LONG: 1}, {}, {}]


def test_the_choice_is_part_of_what_the_cache_knows(tokenizer, texts):
    lengths = [len(prepared(tokenizer, texts, long_rows=choice)[1]) for choice in ("cut", "drop", "split", "drop")]
    assert lengths[0] == 3
    assert lengths[1] == lengths[3] == 2
    assert lengths[2] > 3


def test_cut_stays_what_it_was(tokenizer):
    data = preparation(tokenizer, max_length=8)
    row = {"prompt": LONG, "completion": "x"}
    data.prepare(Dataset.from_list([row, {"prompt": "x", "completion": "y"}]), "train_dataset")
    assert data.ledgers[0].dropped == {NOTHING_LEFT: 1}


def test_a_run_trains_on_the_pieces_and_says_so(tmp_path, tokenizer, llama, texts):
    args = SFTConfig(str(tmp_path), max_steps=1, use_cpu=True, save_strategy="no", max_length=8, long_rows="split",
                     per_device_train_batch_size=8, logging_steps=1)  # fmt: skip
    trainer = SFTTrainer(llama, args, train_dataset=Dataset.from_list(texts), processing_class=tokenizer)
    trainer.train()
    every = sum(len(ids_of(tokenizer, row["text"])) for row in texts)
    assert trainer.state.log_history[0]["num_tokens"] == every
    with pytest.raises(RowError, match="long_rows"):
        trainer.predict(Dataset.from_list(texts))


def test_check_and_preview_show_it(tmp_path, model_folder, texts):
    file = tmp_path / "t.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*texts, {"text": LONG}]))

    def ask(verb, *words):
        arguments = [verb, str(file), "--model", str(model_folder), "max_length=8", *words]
        return CliRunner().invoke(cli, arguments)

    dropped = ask("check", "long_rows=drop")
    assert "2 dropped" in dropped.output
    assert "longer than max_length: a run drops it" in dropped.output
    refused = ask("check", "long_rows=refuse")
    assert refused.exit_code == 1
    assert "2 refused" in refused.output
    assert "refused (2 rows)" in refused.output
    split = ask("check", "long_rows=split")
    assert split.exit_code == 0
    assert "0 dropped" in split.output
    assert "split into several rows" in split.output
    assert "cut, drop, split, refuse" in str(ask("check", "long_rows=delete").exception)
    shown = ask("preview", "long_rows=split", "--row", "1").output
    assert "row 1: 8 tokens" in shown
    assert "row 1, example 1: 8 tokens" in shown
