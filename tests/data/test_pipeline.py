"""The whole way of a data set, as SFTTrainer takes it."""

from __future__ import annotations

import warnings

import pytest
from datasets import Dataset, IterableDataset
from hypothesis import given, settings
from hypothesis import strategies as st

from sftcore import DataError, RowError, TokenizedRow
from sftcore.config.setup import set_up
from sftcore.core.types import ModelRequest, Selection
from sftcore.data.columns import TokenColumns
from sftcore.data.format import NO_EXAMPLE
from sftcore.data.pipeline import NOTHING_LEFT, NOTHING_SUPERVISED
from sftcore.data.sets import DataPreparation
from tests.conftest import alpaca_rows


def preparation(tokenizer, max_length=None, formatting_func=None, chosen=(), **fields) -> DataPreparation:
    setup = set_up(chosen, {"seed": 1, **fields}, ModelRequest(), where="test", without=["loader"])
    return DataPreparation(setup, tokenizer, max_length, formatting_func)


def test_the_ledger_adds_up_and_names_what_was_dropped(tokenizer):
    rows = [*alpaca_rows(3), {"instruction": "x " * 50, "input": "", "output": "y"}]
    data = preparation(tokenizer, max_length=40)
    prepared = data.prepare(Dataset.from_list(rows), "train")
    (ledger,) = data.ledgers
    assert (ledger.rows_in, ledger.rows_kept, len(prepared)) == (4, 3, 3)
    assert ledger.dropped == {NOTHING_LEFT: 1}
    assert ledger.first_dropped == {NOTHING_LEFT: 3}
    assert ledger.tokens_kept == sum(map(len, prepared["input_ids"]))
    assert "1 rows dropped, no supervised token left after truncation (first: row 3)" in "\n".join(ledger.lines())


def test_a_set_of_which_nothing_is_left_is_refused(tokenizer):
    with pytest.raises(DataError, match="no row is left"):
        preparation(tokenizer, max_length=5).prepare(Dataset.from_list(alpaca_rows(3)), "train")


def test_an_empty_set_is_refused(tokenizer):
    with pytest.raises(DataError, match="train: the data set has no rows"):
        preparation(tokenizer).prepare(Dataset.from_dict({"text": []}), "train")


def test_rows_tokenised_already_are_used_as_they_are(tokenizer):
    rows = [
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "text": "ignored"},
        {"input_ids": [8, 9], "labels": [-100] * 2},
    ]
    data = preparation(tokenizer)
    prepared = data.prepare(Dataset.from_list([{**row, "text": "x"} for row in rows]), "train")
    assert prepared[:] == {"input_ids": [[5, 6, 7]], "labels": [[-100, 6, 7]]}
    assert data.ledgers[0].dropped == {NOTHING_SUPERVISED: 1}


def test_weights_of_tokenised_rows_travel_along(tokenizer):
    rows = [{"input_ids": [5, 6, 7], "weights": [0.0, 0.5, 1.0]}]
    prepared = preparation(tokenizer, max_length=2).prepare(Dataset.from_list(rows), "train")
    assert prepared["weights"][0] == [0.0, 0.5]
    assert "weights" not in preparation(tokenizer).prepare(Dataset.from_list([{"text": "x y"}]), "train").column_names


def test_weights_of_single_messages_reach_the_loss(tokenizer, tmp_path):
    from sftcore import SFTConfig, SFTTrainer
    from sftcore.train.parts.loss import count_items
    from tests.conftest import make_llama

    def talk(weight):
        user = {"role": "user", "content": "say hello"}
        return {"messages": [user, {"role": "assistant", "content": "hello", "weight": weight}, user,
                             {"role": "assistant", "content": "world", "weight": None}]}  # fmt: skip

    rows = Dataset.from_list([talk(None), talk(0.5), talk(0.0)])
    args = SFTConfig(str(tmp_path), max_steps=1, logging_steps=1, per_device_train_batch_size=3, use_cpu=True,
                     assistant_only_loss=True, save_strategy="no")  # fmt: skip
    trainer = SFTTrainer(make_llama(tokenizer), args, train_dataset=rows, processing_class=tokenizer)
    assert [row["weights"] is None for row in trainer.train_dataset] == [True, False, True]
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
    hello = len(tokenizer("hello<|im_end|>")["input_ids"])
    world = len(tokenizer("world<|im_end|>")["input_ids"])
    assert count_items([batch]) == pytest.approx(1.5 * hello + 3 * world)
    trainer.train()
    assert trainer.state.log_history[0]["num_supervised_tokens"] == 2 * hello + 3 * world


def test_a_formatting_function_gives_one_row_a_text(tokenizer):
    data = preparation(tokenizer, formatting_func=lambda row: [row["a"], row["b"]])
    prepared = data.prepare(Dataset.from_list([{"a": "hello", "b": "world"}]), "train")
    assert [tokenizer.decode(ids) for ids in prepared["input_ids"]] == ["hello<|im_end|>", "world<|im_end|>"]


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (1, "a number"),
        (None, "None"),
        ([{"content": "a"}], "a list with a mapping"),
        ({"answer": "a"}, "a mapping"),
        (["a", 2], "a list with a number"),
    ],
    ids=["number", "None", "mappings", "mapping", "mixed"],
)
def test_a_formatting_function_that_returns_no_text_names_the_row(tokenizer, returned, said):
    data = preparation(tokenizer, formatting_func=lambda row: returned)
    with pytest.raises(RowError, match=f"train row 0: formatting_func returned {said}, not a text or a list of texts"):
        data.prepare(Dataset.from_list([{"a": 1}]), "train")


def test_a_formatting_function_excludes_completion_only_loss_unless_it_returns_a_completion(tokenizer):
    data = preparation(tokenizer, formatting_func=str, completion_only_loss=True)
    with pytest.raises(DataError, match=r"formatting_func may return .prompt, completion."):
        data.prepare(Dataset.from_list([{"a": "x"}]), "train")


@pytest.mark.parametrize("num_proc", [None, 2])
def test_a_bad_row_is_named_also_from_a_worker_process(tokenizer, num_proc):
    rows = alpaca_rows(8)
    rows[5]["output"] = None
    data = preparation(tokenizer, dataset_num_proc=num_proc)
    with pytest.raises(RowError, match='train row 5: the column "output" is null'):
        data.prepare(Dataset.from_list(rows), "train")


def test_a_stream_gives_the_same_rows_and_is_read_as_it_goes(tokenizer):
    read = []

    def rows():
        for i, row in enumerate(alpaca_rows(5000)):
            read.append(i)
            yield row

    stream = preparation(tokenizer).prepare(IterableDataset.from_generator(rows), "train")
    first = next(iter(stream))
    assert len(read) < 3000
    assert first.pop("weights") is None
    assert first == preparation(tokenizer).prepare(Dataset.from_list(alpaca_rows(1)), "train")[0]


def test_members_of_a_mapping_are_prepared_each_by_its_own_format(tokenizer):
    data = preparation(tokenizer)
    sets = data.prepare_all(
        {"a": Dataset.from_list(alpaca_rows(2)), "t": Dataset.from_list([{"text": "hello"}])}, "eval"
    )
    assert {name: one.entry.name for name, one in data.formats.items()} == {"eval['a']": "alpaca", "eval['t']": "text"}
    assert len(sets["a"]) == 2


def test_a_set_with_a_transform_is_refused(tokenizer):
    dataset = Dataset.from_list(alpaca_rows(2)).with_transform(lambda batch: batch)
    with pytest.raises(DataError, match="skip_prepare_dataset"):
        preparation(tokenizer).prepare(dataset, "train")


def test_shuffling_depends_on_the_seed_alone(tokenizer):
    def order(seed):
        data = preparation(tokenizer, shuffle_dataset=True, seed=seed)
        return data.prepare(Dataset.from_list(alpaca_rows(30)), "train")["input_ids"][:]

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_images_are_refused_not_left_out(tokenizer):
    rows = Dataset.from_list([{"text": "<image>x", "images": [b"any"]}])
    with pytest.raises(DataError, match="train row 0: the rows have images, but the model reads only text"):
        preparation(tokenizer).prepare(rows, "train")
    named = preparation(tokenizer, chosen=[Selection("format", "text")])
    for data in (preparation(tokenizer, formatting_func=str), named):
        with pytest.raises(DataError, match='train: the rows have the column "images", and the format would train on'):
            data.prepare(rows, "train")


def test_the_text_field_reaches_a_text_format_that_is_named(tokenizer):
    from sftcore.config.selections import parse_choice

    data = preparation(tokenizer, chosen=parse_choice("format", "text", where="r"), dataset_text_field="body")
    assert len(data.prepare(Dataset.from_list([{"body": "hello"}]), "train")) == 1


def test_tools_that_the_template_does_not_render_are_said(tokenizer):
    rows = [{"messages": [{"role": "user", "content": "x"}], "tools": '[{"name": "now"}]'}] * 2
    data = preparation(tokenizer)
    data.prepare(Dataset.from_list(rows), "train")
    assert data.ledgers[0].notes == {"tools left out, because the chat template does not render them": 2}
    assert "train: 2 rows: tools left out, because the chat template does not render them" in data.ledgers[0].lines()


@pytest.mark.parametrize(("style", "wanted"), [("turn", "hello<|im_end|>"), ("trl", "hello<|im_end|>\n")])
def test_mask_style_says_where_a_completion_ends(tokenizer, style, wanted):
    turns = {"prompt": [{"role": "user", "content": "x"}], "completion": [{"role": "assistant", "content": "hello"}]}
    (row,) = preparation(tokenizer, mask_style=style).prepare(Dataset.from_list([turns]), "train")
    assert tokenizer.decode([label for label in row["labels"] if label != -100]) == wanted


def test_preparation_warns_of_nothing(tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        preparation(tokenizer).prepare(Dataset.from_list(alpaca_rows(2)), "train")


@st.composite
def token_rows(draw):
    labels = draw(st.lists(st.lists(st.sampled_from([-100, 1, 2]), min_size=1, max_size=20), min_size=1, max_size=5))
    return [TokenizedRow(list(range(len(one))), one) for one in labels]


@given(rows=token_rows(), max_length=st.integers(1, 25), mode=st.sampled_from(["keep_start", "keep_end"]))
@settings(deadline=None)
def test_a_cut_keeps_ids_and_labels_side_by_side(rows, max_length, mode):
    columns = TokenColumns.of(rows).truncated(max_length, mode)
    for i, whole in enumerate(rows):
        kept = columns.row(i)
        assert len(kept.input_ids) == len(kept.labels) == min(max_length, len(whole.labels))
        assert [whole.labels[token] for token in kept.input_ids] == kept.labels
        wanted = whole.input_ids[:max_length] if mode == "keep_start" else whole.input_ids[-max_length:]
        assert kept.input_ids == wanted
        assert columns.num_supervised()[i] == sum(label != -100 for label in kept.labels[1:])


def test_a_row_of_which_the_format_makes_nothing_is_counted(tokenizer):
    data = preparation(tokenizer, formatting_func=lambda row: [row["text"]] if row["text"] else [])
    prepared = data.prepare(Dataset.from_list([{"text": "hello"}, {"text": ""}]), "train")
    assert len(prepared) == 1
    assert data.ledgers[0].dropped_rows == {NO_EXAMPLE: [1]}


def test_every_row_is_told_what_becomes_of_it_and_none_stops_the_rest(tokenizer):
    rows = alpaca_rows(4)
    rows[1]["output"] = None
    rows[2]["instruction"] = "x " * 50
    pipeline = preparation(tokenizer, max_length=40).pipeline(list(rows[0]), "train")
    good, refused, cut, last = pipeline.inspect(rows, [10, 11, 12, 13])
    assert (good.number, good.error, good.dropped) == (10, None, "")
    assert tokenizer.decode([token for token in good.row.labels if token != -100]) == "The answer is 0<|im_end|>"
    assert (refused.row, str(refused.error)[:47]) == (None, 'train row 11: the column "output" is null. The ')
    assert (cut.dropped, len(cut.row.input_ids)) == (NOTHING_LEFT, 40)
    assert cut.tokens_in - cut.tokens_cut == 40
    assert last.example.completion[0].content == "The answer is 3"


@pytest.mark.parametrize("num_proc", [None, 2])
def test_rows_come_out_in_order_whatever_the_number_of_processes(tokenizer, num_proc):
    rows = Dataset.from_list(alpaca_rows(2100))
    prepared = preparation(tokenizer, dataset_num_proc=num_proc, dataset_cache=False).prepare(rows, "train")
    texts = tokenizer.batch_decode(prepared["input_ids"][:])
    assert [f"The answer is {i}<|im_end|>\n" in text for i, text in enumerate(texts)] == [True] * 2100


def test_tokens_are_those_of_the_tokenizers_own_call():
    from tests.conftest import make_tokenizer

    tokenizer = make_tokenizer(bos=True)
    texts = ["say hello", "wörld 🙂", "x"]
    prepared = preparation(tokenizer).prepare(Dataset.from_dict({"text": texts}), "train")
    assert prepared["input_ids"][:] == tokenizer([f"{text}<|im_end|>" for text in texts])["input_ids"]
