"""Prepared data are found again exactly as long as nothing that they were made from has changed."""

from __future__ import annotations

import json
import multiprocessing
import os

import datasets
import pytest
from datasets import Dataset

from sftcore.core.types import Selection
from tests.conftest import CHATML, alpaca_rows, make_tokenizer
from tests.data.test_pipeline import preparation


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SFTCORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def prepared(tokenizer, rows=None, **fields):
    """The rows, the ledger and what was said of the cache."""
    data = preparation(tokenizer, fields.pop("max_length", 64), **fields)
    dataset = data.prepare(Dataset.from_list(alpaca_rows(5)) if rows is None else rows, "train")
    return dataset[:], data.ledgers[0], data.notes[0]


def test_the_second_time_is_a_hit_with_the_same_rows_and_ledger(tokenizer):
    first, second = prepared(tokenizer), prepared(tokenizer)
    assert "prepared in" in first[2]
    assert "the first time" in first[2]
    assert "found in the cache, and nothing has changed since" in second[2]
    assert first[:2] == second[:2]


def test_equal_rows_are_found_however_they_are_stored(tokenizer):
    prepared(tokenizer)
    shuffled = Dataset.from_list(list(reversed(alpaca_rows(9)))).select(range(8, 3, -1))
    assert shuffled.to_list() == alpaca_rows(5)
    assert "found in the cache" in prepared(tokenizer, shuffled)[2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows": Dataset.from_list(alpaca_rows(6))}, "the rows"),
        ({"max_length": 63}, "max_length"),
        ({"packing": True}, "packing"),
        ({"completion_only_loss": False}, "completion_only_loss"),
        ({"tokenizer": make_tokenizer(template=CHATML + "{# second #}")}, "the chat template"),
        ({"tokenizer": make_tokenizer(bos=True)}, "the tokenizer"),
        ({"formatting_func": lambda row: row["output"]}, "the format"),
    ],
)
def test_whatever_changes_is_a_miss_that_says_so(tokenizer, change, said):
    prepared(tokenizer)
    tokenizer = change.get("tokenizer", tokenizer)
    rest = {key: value for key, value in change.items() if key != "tokenizer"}
    _, _, note = prepared(tokenizer, **rest)
    assert note.endswith(f"because this differs from what is in the cache: {said}")


def test_the_source_of_a_plugin_is_part_of_the_key(tokenizer, tmp_path, monkeypatch):
    from sftcore.data.store import keys

    prepared(tokenizer)
    monkeypatch.setattr(keys, "source_digest", lambda path: f"edited {path}")
    assert "differs from what is in the cache: the format, sftcore" in prepared(tokenizer)[2]


WRAPPER = '''
from sftcore import hookimpl, plugin

@plugin
class Loud:
    """Rows in capital letters."""

    @hookimpl(wrapper=True)
    def make_formatter(self):
        read = yield
        return lambda row: read({key: value.upper() for key, value in row.items()})
'''


def test_a_plugin_that_wraps_the_format_is_part_of_the_key(tokenizer, tmp_path, monkeypatch):
    (tmp_path / "loud-1.0.dist-info").mkdir()
    (tmp_path / "loud-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: loud\nVersion: 1.0\n")
    (tmp_path / "loud-1.0.dist-info" / "entry_points.txt").write_text("[sftcore.noise]\nloud = loud_wrapper:Loud\n")
    (tmp_path / "loud_wrapper.py").write_text(WRAPPER)
    monkeypatch.syspath_prepend(str(tmp_path))
    plain = prepared(tokenizer)
    loud = prepared(tokenizer, chosen=[Selection("noise", "loud")])
    assert "differs from what is in the cache: the format" in loud[2]
    assert loud[0]["input_ids"] != plain[0]["input_ids"]


def test_a_function_that_has_no_stable_hash_is_not_cached(tokenizer, cache):
    unpicklable = (i for i in range(9))
    _, ledger, note = prepared(tokenizer, formatting_func=lambda row: f"{next(unpicklable)} {row['output']}")
    assert note == "train: not cached, because the formatting function has no stable hash"
    assert ledger.rows_kept == 5
    assert not list(cache.glob("prepared/*"))


def test_nothing_is_written_when_the_cache_is_off(tokenizer, cache):
    data = preparation(tokenizer, dataset_cache=False)
    assert len(data.prepare(Dataset.from_list(alpaca_rows(5)), "train")) == 5
    assert not cache.exists()


@pytest.mark.parametrize("damage", ["truncate", "facts"])
def test_a_damaged_entry_is_made_anew(tokenizer, cache, damage):
    first = prepared(tokenizer)
    (entry,) = (path for path in cache.glob("prepared/*") if path.is_dir())
    path = entry / ("data.arrow" if damage == "truncate" else "entry.json")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    again = prepared(tokenizer)
    assert "prepared in" in again[2]
    assert again[0] == first[0]


def test_a_run_that_fails_leaves_no_entry(tokenizer, cache):
    rows = alpaca_rows(3)
    rows[2]["output"] = None
    with pytest.raises(ValueError, match='row 2: the column "output" is null'):
        prepared(tokenizer, Dataset.from_list(rows))
    assert not [path for path in cache.glob("prepared/*") if path.is_dir()]


def test_what_a_process_that_was_killed_left_behind_is_removed_by_the_next(tokenizer, cache):
    prepared(tokenizer)
    (entry,) = (path for path in cache.glob("prepared/*") if path.is_dir())
    entry.rename(entry.with_name(f"{entry.name}-k1lled"))
    assert "prepared in" in prepared(tokenizer)[2]
    assert [path for path in cache.glob("prepared/*") if path.is_dir()] == [entry]


def _prepare_in_a_process(queue, start, cache):
    os.environ["SFTCORE_CACHE"] = cache  # conftest has chosen another one
    start.wait()
    data = preparation(make_tokenizer(), 64)
    data.prepare(Dataset.from_list(alpaca_rows(400)), "train")
    queue.put(data.notes[0])


def test_of_several_processes_one_prepares_and_the_others_take_it(cache):
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    queue, start = context.Queue(), context.Event()
    processes = [context.Process(target=_prepare_in_a_process, args=(queue, start, str(cache))) for _ in range(3)]
    for process in processes:
        process.start()
    start.set()
    notes = sorted(queue.get(timeout=300) for _ in processes)
    for process in processes:
        process.join()
    assert [note.split()[1] for note in notes] == ["found", "found", "prepared"]
    (entry,) = (path for path in cache.glob("prepared/*") if path.is_dir())
    assert json.loads((entry / "entry.json").read_text())["ledger"]["rows_kept"] == 400


def test_the_bar_counts_rows(tokenizer, cache, monkeypatch):
    counted = []

    class Bar(datasets.utils.tqdm):
        def update(self, number=1):  # a bar that is not shown does not count
            counted.append((number, self.total))

    monkeypatch.setattr("datasets.utils.tqdm", Bar)
    preparation(tokenizer, 64, dataset_cache=False).prepare(Dataset.from_list(alpaca_rows(1016)), "train")
    assert counted == [(1000, 1016), (16, 1016)]
