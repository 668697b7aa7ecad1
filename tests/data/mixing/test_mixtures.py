"""Several sources as one prepared set: whose rows it holds, how they are read, counted, cached, streamed and named."""

from __future__ import annotations

from collections import Counter

import pytest
from attrs import evolve
from datasets import Dataset

from sftcore import DataError, DataSource, Mixture, RowError
from sftcore.core.errors import OptionTypeError, UnknownKeyError
from sftcore.data.ranks import Rank
from tests.data.test_pipeline import preparation

WEIGHTS = {"chat": 0.7, "code": 0.2, "maths": 0.1}
SIZES = {"chat": 3500, "code": 1400, "maths": 900}
ALPACA = {"alpaca": {"instruction": "question", "output": "answer"}}


def rows_of(name: str, count: int) -> Dataset:
    """Rows whose texts say which they are, in columns of their own for each source."""
    if name == "chat":
        return Dataset.from_list([{"text": f"chat {i}."} for i in range(count)])
    if name == "code":
        return Dataset.from_list([{"question": f"code {i}.", "answer": "x"} for i in range(count)])
    turns = [[{"role": "user", "content": f"maths {i}."}, {"role": "assistant", "content": "y"}] for i in range(count)]
    return Dataset.from_list([{"messages": one} for one in turns])


def sources(sizes: dict[str, int] = SIZES, *, weights: bool = True, streams: bool = False) -> list[DataSource]:
    found = []
    for name, size in sizes.items():
        rows = rows_of(name, size)
        own = ALPACA if name == "code" else None
        rows = rows.to_iterable_dataset(num_shards=2) if streams else rows
        found.append(DataSource(rows, name, weight=WEIGHTS[name] if weights else None, format=own))
    return found


def seen(tokenizer, prepared) -> list[tuple[str, int]]:
    """The rows of a prepared set in words: the name of their source and their number there."""
    found = []
    for row in prepared:
        text = tokenizer.decode(row["input_ids"])
        name = next(name for name in SIZES if f"{name} " in text)
        found.append((name, int(text.split(f"{name} ")[1].split(".")[0])))
    return found


@pytest.fixture(scope="module")
def mixed(tokenizer):
    """5,000 rows of three sources, and their preparation."""
    data = preparation(tokenizer)
    return data, data.prepare(Mixture(sources()), "train_dataset")


def test_a_mixture_has_the_proportions_of_its_weights_and_reads_each_source_with_its_own_format(tokenizer, mixed):
    data, rows = mixed
    found = seen(tokenizer, rows)
    counts = Counter(name for name, _ in found)
    assert len(found) == pytest.approx(5000, abs=5)
    for name, weight in WEIGHTS.items():
        assert counts[name] / len(found) == pytest.approx(weight, rel=0.01)
        assert [number for one, number in found if one == name] == list(range(counts[name]))
    supervised = {
        name: tokenizer.decode([label for label in rows[found.index((name, 3))]["labels"] if label >= 0])
        for name in WEIGHTS
    }
    assert supervised["chat"] == "chat 3.<|im_end|>"
    assert supervised["code"] == "x<|im_end|>"
    assert "maths 3." in supervised["maths"]
    assert {name: one.entry.name for name, one in data.formats.items()} == {
        "train_dataset['chat']": "text", "train_dataset['code']": "alpaca", "train_dataset['maths']": "chat",
    }  # fmt: skip


def test_the_ledger_tells_the_sources_apart_and_counts_what_was_dealt(tokenizer, mixed):
    data, rows = mixed
    *parts, whole = data.ledgers
    assert [(one.name, one.rows_kept) for one in parts] == [(f"train_dataset['{n}']", k) for n, k in SIZES.items()]
    counts = Counter(name for name, _ in seen(tokenizer, rows))
    assert (whole.name, whole.rows_kept) == ("train_dataset", len(rows))
    assert {one.name: one.rows for one in whole.sources} == {f"train_dataset['{n}']": counts[n] for n in SIZES}
    assert whole.tokens_kept == sum(map(len, rows["input_ids"]))
    assert whole.tokens_supervised == sum(sum(one >= 0 for one in labels[1:]) for labels in rows["labels"])
    lines = whole.lines()
    assert lines[1] == "train_dataset['chat']: 3,500 rows of the mixture (70.0%), all of its rows; it ends here"
    unused = SIZES["code"] - counts["code"]
    assert lines[2].endswith(f"{unused} of its 1,400 rows are not used")


@pytest.mark.parametrize("stop", ["first", "all"])
@pytest.mark.parametrize("at", [1, 333, 650])
def test_a_stream_has_the_order_of_the_rows_in_memory_and_resumes_in_the_middle(tokenizer, stop, at):
    sizes = {"chat": 500, "code": 200, "maths": 80}
    whole = seen(tokenizer, preparation(tokenizer).prepare(Mixture(sources(sizes), stop), "train_dataset"))
    stream = preparation(tokenizer).prepare(Mixture(sources(sizes, streams=True), stop), "train_dataset")
    rows = iter(stream)
    first = [next(rows) for _ in range(at)]
    again = preparation(tokenizer).prepare(Mixture(sources(sizes, streams=True), stop), "train_dataset")
    again.load_state_dict(stream.state_dict())
    assert seen(tokenizer, first) + seen(tokenizer, again) == whole


def test_stop_all_leaves_no_row_out(tokenizer):
    sizes = {"chat": 60, "code": 50, "maths": 20}
    found = Counter(seen(tokenizer, preparation(tokenizer).prepare(Mixture(sources(sizes), "all"), "train_dataset")))
    assert len(found) == sum(sizes.values())
    assert sum(found.values()) == pytest.approx(50 / 0.2, abs=6)


@pytest.mark.parametrize("streams", [False, True])
def test_without_weights_the_sources_follow_each_other(tokenizer, streams):
    sizes = {"chat": 3, "code": 2, "maths": 2}
    given = sources(sizes, weights=False, streams=streams)
    expected = [(name, number) for name, size in sizes.items() for number in range(size)]
    assert seen(tokenizer, preparation(tokenizer).prepare(given, "train_dataset")) == expected


@pytest.mark.parametrize("streams", [False, True])
def test_rows_takes_the_first_rows_of_a_source(tokenizer, streams):
    given = [evolve(one, rows=4) for one in sources({"chat": 9, "maths": 3}, weights=False, streams=streams)]
    found = seen(tokenizer, preparation(tokenizer).prepare(given, "train_dataset"))
    assert found == [("chat", 0), ("chat", 1), ("chat", 2), ("chat", 3), ("maths", 0), ("maths", 1), ("maths", 2)]


@pytest.mark.parametrize("strategy", ["bfd", "wrapped"])
def test_packing_packs_the_rows_of_the_mixture_together(tokenizer, strategy):
    sizes = {"chat": 70, "code": 30, "maths": 30}
    plain = preparation(tokenizer).prepare(Mixture(sources(sizes)), "train_dataset")
    data = preparation(tokenizer, packing=True, packing_strategy=strategy, max_length=64)
    blocks = data.prepare(Mixture(sources(sizes)), "train_dataset")
    assert Counter(token for row in plain["input_ids"] for token in row) == Counter(
        token for row in blocks["input_ids"] for token in row
    )
    texts = [tokenizer.decode(row["input_ids"]) for row in blocks]
    assert any("chat " in text and "code " in text for text in texts)
    if strategy == "wrapped":  # which keeps the order
        assert [t for row in blocks["input_ids"] for t in row] == [t for row in plain["input_ids"] for t in row]
    assert data.ledgers[-1].packing.blocks == len(blocks)
    streamed = preparation(tokenizer, packing=True, packing_strategy=strategy, max_length=64)
    stream = streamed.prepare(Mixture(sources(sizes, streams=True)), "train_dataset")
    assert sum(len(row["input_ids"]) for row in stream) == sum(map(len, plain["input_ids"]))


def test_other_weights_use_what_is_cached_of_each_source(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("SFTCORE_CACHE", str(tmp_path))
    sizes = {"chat": 40, "code": 20, "maths": 20}
    for weight, words in ((0.7, "prepared in"), (0.4, "found in the cache"), (0.7, "found in the cache")):
        data = preparation(tokenizer, packing=True, max_length=64, dataset_cache=True)
        first, *others = sources(sizes)
        data.prepare(Mixture([evolve(first, weight=weight), *others]), "train_dataset")
        assert [words in note for note in data.notes[:3]] == [True] * 3
        blocks = data.notes[3]
        assert ("found in the cache" in blocks) == (words.startswith("found") and weight == 0.7)


def test_two_processes_share_a_mixed_stream_in_its_proportions(tokenizer):
    sizes = {"chat": 700, "code": 200, "maths": 100}
    parts = []
    for index in range(2):
        data = evolve(preparation(tokenizer), rank=Rank(index, 2))
        streams = [evolve(one, dataset=one.dataset.take(10**6)) for one in sources(sizes, streams=True)]
        parts.append(seen(tokenizer, data.prepare(Mixture(streams), "train_dataset")))
    both = Counter(parts[0] + parts[1])
    assert max(both.values()) == 1, "no row goes to both"
    for part in parts:
        counts = Counter(name for name, _ in part)
        for name, weight in WEIGHTS.items():
            assert counts[name] == pytest.approx(weight * len(part), abs=3)
    assert sum(both.values()) > 970


def test_shuffle_dataset_shuffles_the_mixture_and_rows_are_still_found(tokenizer):
    from sftcore.train.guard.named_rows import origins

    data = preparation(tokenizer, shuffle_dataset=True)
    rows = data.prepare(Mixture(sources({"chat": 70, "code": 30, "maths": 30})), "train_dataset")
    found = seen(tokenizer, rows)
    assert [number for name, number in found if name == "chat"] != list(range(70))
    names = [(f"train_dataset['{name}']", number) for name, number in found]
    assert origins(data, rows, "train_dataset", range(len(rows))) == names


def test_a_row_that_cannot_be_used_is_named_with_its_source(tokenizer):
    bad = Dataset.from_list([{"text": "a"}, {"text": None}])
    with pytest.raises(RowError, match=r"^train_dataset\['bad'\] row 1: the column"):
        preparation(tokenizer).prepare(Mixture([DataSource(bad.select([0])), DataSource(bad, "bad")]), "train_dataset")
    with pytest.raises(RowError, match=r"^train_dataset\[1\] row 1: the column"):
        preparation(tokenizer).prepare([bad.select([0]), bad], "train_dataset")


def test_a_source_of_which_no_row_is_used_is_said(tokenizer):
    few, many = rows_of("chat", 2), rows_of("maths", 9)
    mixture = Mixture([DataSource(few, "chat", weight=1), DataSource(many, "maths", weight=1e-6)])
    with pytest.warns(UserWarning, match=r"no row of train_dataset\['maths'\] is used: the mixture ends before"):
        rows = preparation(tokenizer).prepare(mixture, "train_dataset")
    assert seen(tokenizer, rows) == [("chat", 0), ("chat", 1)]


TEXTS = Dataset.from_list([{"text": "a"}])


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: Mixture([]), DataError, "no sources"),
        (lambda: Mixture({"a": TEXTS}), OptionTypeError, "sources are a list, got dict"),
        (lambda: Mixture([DataSource(TEXTS, "a"), DataSource(TEXTS, "a")]), DataError, 'the name "a"'),
        (lambda: Mixture([TEXTS], "al"), OptionTypeError, 'Did you mean "all"'),
        (lambda: DataSource(TEXTS, "a", weight=0), DataError, "DataSource a: a weight is a number above 0"),
        (lambda: DataSource(TEXTS, weight=float("nan")), DataError, "above 0"),
        (lambda: DataSource(TEXTS, weight="2"), OptionTypeError, "weight is a number, got '2'"),
        (lambda: DataSource(TEXTS, rows=0), DataError, "rows is at least 1"),
        (lambda: DataSource(TEXTS, rows=True), OptionTypeError, "rows is a number"),
        (lambda: DataSource(TEXTS, 3), OptionTypeError, "name is a text"),
    ],
)
def test_what_a_mixture_does_not_take_is_refused(make, error, said):
    with pytest.raises(error) as caught:
        make()
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ([TEXTS, TEXTS.to_iterable_dataset()], DataError, "train_dataset[1] is a stream, and train_dataset[0] is not"),
        ([{"text": "a"}], OptionTypeError, "train_dataset: expected a datasets.Dataset or IterableDataset, got list"),
        (Mixture([TEXTS, 3]), OptionTypeError, "train_dataset[1]: expected a datasets.Dataset"),
        (
            [TEXTS, DataSource(TEXTS, format={"text": {"feild": "text"}})],
            UnknownKeyError,
            'DataSource: format.text: unknown key "feild". Did you mean "field"?',
        ),
    ],
)
def test_what_a_set_cannot_be_made_of_is_refused(tokenizer, given, error, said):
    with pytest.raises(error) as caught:
        preparation(tokenizer).prepare(given, "train_dataset")
    assert said in str(caught.value)
