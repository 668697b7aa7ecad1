"""A damaged cache is never trained on: whatever happens to its files, the rows are those of a fresh preparation."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import random
import shutil
import struct
import sys

import pytest
from datasets import Dataset

from sftcore.cli import main
from sftcore.core.errors import RecipeError, WriteError
from sftcore.data.store import cache as store
from sftcore.data.store.entry import release
from sftcore.data.store.prune import limit_of, prune
from tests.conftest import alpaca_rows, make_tokenizer
from tests.data.test_pipeline import preparation

FILES = ["data.arrow", "rows.arrow", "entry.json", "checksums.json"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SFTCORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wanted(tokenizer):
    return preparation(tokenizer, 64, dataset_cache=False).prepare(Dataset.from_list(alpaca_rows(5)), "train")[:]


def prepared(tokenizer, num_rows=5):
    data = preparation(tokenizer, 64)
    return data.prepare(Dataset.from_list(alpaca_rows(num_rows)), "train")[:], data.notes[0]


def entries(cache):
    return sorted(path for path in cache.glob("prepared/*") if path.is_dir())


def flipped(path, seed):
    content, draw = bytearray(path.read_bytes()), random.Random(seed)
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def exchanged(path, other):
    path.write_bytes((other / path.name).read_bytes())


DAMAGES = {
    "truncated": lambda path, other: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "a byte less": lambda path, other: path.write_bytes(path.read_bytes()[:-1]),
    "a byte more": lambda path, other: path.write_bytes(path.read_bytes() + b"\0"),
    "emptied": lambda path, other: path.write_bytes(b""),
    "deleted": lambda path, other: path.unlink(),
    "another's": exchanged,
    "a folder": lambda path, other: (path.unlink(), path.mkdir()),
    **{f"flip {seed}": lambda path, other, seed=seed: flipped(path, seed) for seed in range(3)},
}
FLIPS = {f"flip {seed}": lambda path, other, seed=seed: flipped(path, seed) for seed in range(3, 23)}


@pytest.mark.filterwarnings("ignore:the cache is damaged")
@pytest.mark.parametrize("damages", [DAMAGES, pytest.param(FLIPS, marks=pytest.mark.slow)], ids=["kinds", "flips"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_the_rows_are_made_anew(tokenizer, cache, wanted, name, damages):
    prepared(tokenizer)
    (entry,) = entries(cache)
    prepared(tokenizer, num_rows=6)
    (other,) = (one for one in entries(cache) if one != entry)
    for how, damage in damages.items():
        damage(entry / name, other)
        rows, note = prepared(tokenizer)
        assert rows == wanted, how
        assert "because what the cache held is damaged" in note, how
        assert str(entry) in note, how
        assert "found in the cache" in prepared(tokenizer)[1], how


@pytest.mark.filterwarnings("ignore:the cache is damaged")
def test_the_whole_entry_of_other_rows_in_its_place_is_not_taken(tokenizer, cache, wanted):
    prepared(tokenizer)
    (entry,) = entries(cache)
    prepared(tokenizer, num_rows=6)
    (other,) = (one for one in entries(cache) if one != entry)
    shutil.rmtree(entry)
    shutil.copytree(other, entry)
    rows, note = prepared(tokenizer)
    assert rows == wanted
    assert "was made from something else" in note or "were made from something else" in note


def test_damage_is_warned_of(tokenizer, cache):
    prepared(tokenizer)
    flipped(entries(cache)[0] / "data.arrow", 1)
    with pytest.warns(UserWarning, match=r"data\.arrow is not what was written: its xxh3_128 differs"):
        prepared(tokenizer)


def _without_the_powers_of_root():
    """Give up all capabilities (capset(2)): files of others are then others' files for root too, and what this process
    has to read (packages, a checkout that only its owner may enter) is still its own."""
    header = struct.pack("Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    if ctypes.CDLL(None, use_errno=True).capset(header, bytes(24)):
        raise OSError(ctypes.get_errno(), "capset")


def _ask_as_another(queue, num_rows, cache):
    os.environ["SFTCORE_CACHE"] = cache  # conftest has chosen another one
    try:
        _without_the_powers_of_root()
        queue.put(prepared(make_tokenizer(), num_rows)[1])
    except Exception as error:
        queue.put(f"{type(error).__name__}: {error}")


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.geteuid() != 0, reason="only root can give files to somebody else"
)
def test_a_cache_that_belongs_to_somebody_else_is_used_and_not_written_to(cache):
    prepared(make_tokenizer())  # as the other process makes it; what other tests did to theirs may be part of the key
    release(entries(cache)[0])
    for path in [cache, *cache.rglob("*")]:
        os.chown(path, 65534, 65534)
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}

    def asked(num_rows):
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        queue = context.Queue()
        process = context.Process(target=_ask_as_another, args=(queue, num_rows, str(cache)))
        process.start()
        said = queue.get(timeout=300)
        process.join()
        return said

    assert "found in the cache" in asked(5)
    refused = asked(6)
    assert refused.startswith("WriteError: ")
    assert "written: Permission denied. Change who may write there, or set SFTCORE_CACHE" in refused
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before


def test_a_file_system_that_is_only_read_is_named_as_such(monkeypatch, tokenizer, cache):
    import errno

    import filelock

    def refused(self, *args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(filelock.FileLock, "acquire", refused)
    with pytest.raises(WriteError, match=r"written: Read-only file system\. Mount the file system for writing, or set"):
        prepared(tokenizer)


def test_the_set_whose_use_is_longest_ago_goes_first_and_one_in_use_stays(tokenizer, cache):
    sizes = {}
    for number, num_rows in enumerate((5, 6, 7)):
        prepared(tokenizer, num_rows)
        (new,) = (one for one in entries(cache) if one not in sizes)
        sizes[new] = sum(file.stat().st_size for file in new.iterdir())
        os.utime(new / "used", (1e9 + number, 1e9 + number))
    first, second, third = sizes
    assert prune(cache / "prepared", limit=0) == []  # this process has all of them open
    release(first)
    release(third)
    assert [one.path for one in prune(cache / "prepared", limit=sizes[second] + sizes[third])] == [first]
    assert [one.path for one in prune(cache / "prepared", limit=0)] == [third]
    assert entries(cache) == [second]


def test_a_new_set_pushes_out_what_is_over_the_limit(tokenizer, cache, monkeypatch):
    prepared(tokenizer)
    (first,) = entries(cache)
    release(first)
    monkeypatch.setenv("SFTCORE_CACHE_LIMIT", "1 KiB")
    prepared(tokenizer, 6)
    assert len(entries(cache)) == 1
    assert first not in entries(cache)


@pytest.mark.parametrize(("text", "size"), [("10", 10), ("2 MiB", 2**21), ("1.5g", 3 * 2**29), ("0", 0)])
def test_sizes_are_read(text, size):
    assert limit_of(text) == size


@pytest.mark.parametrize("text", ["", "ten", "-1", "5 apples", "1e9"])
def test_what_is_not_a_size_is_refused(text):
    with pytest.raises(RecipeError, match="is not a size"):
        limit_of(text)


# --- What other entries hold ------------------------------------------------------------------------------------------
NO_FACTS = ["", "[]", "null", "1", '"x"', "{}", '{"parts": []}', '{"parts": null, "ledger": {}}', "[" * 100_000]
NO_FACTS += ['{"parts": {"max_length": 1}, "ledger": {"name": 1, "rows_kept": "many", "tokens_kept": []}}']


@pytest.mark.parametrize("text", NO_FACTS, ids=range(len(NO_FACTS)))
def test_facts_of_another_entry_that_are_none_harm_nobody(tokenizer, cache, wanted, text, monkeypatch, capsys):
    prepared(tokenizer, 3)
    (other,) = entries(cache)
    (other / "entry.json").write_text(text)
    rows, note = prepared(tokenizer)
    assert rows == wanted
    assert "prepared in" in note
    monkeypatch.setattr("sys.argv", ["sftcore", "cache", "list"])
    with contextlib.suppress(SystemExit):
        main()
    assert "its facts are damaged" in capsys.readouterr().out


def test_rows_that_the_disk_changes_as_they_are_written_are_an_error_of_ours(tokenizer, cache, monkeypatch):
    complete = store.complete

    def changed(folder, facts, outcomes):
        complete(folder, facts, outcomes)
        flipped(folder / "data.arrow", 1)

    monkeypatch.setattr(store, "complete", changed)
    with pytest.raises(WriteError, match=r"data\.arrow is not what was written"):
        prepared(tokenizer)


def test_a_limit_that_is_none_is_told_before_anything_is_prepared(tokenizer, cache, monkeypatch):
    monkeypatch.setenv("SFTCORE_CACHE_LIMIT", "much")
    with pytest.raises(RecipeError, match='"much" is not a size'):
        prepared(tokenizer)
    assert entries(cache) == []
