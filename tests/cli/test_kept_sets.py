"""`sftcore cache` lists the prepared sets that are kept, and removes what it is asked to."""

from __future__ import annotations

import json
import os
import time

import pytest
from click.testing import CliRunner
from datasets import Dataset

from sftcore.cli import cli
from sftcore.data.store.entry import release
from tests.conftest import alpaca_rows
from tests.data.test_pipeline import preparation


def run(*words, code=0):
    result = CliRunner().invoke(cli, ["cache", *words])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def sets(tokenizer, tmp_path, monkeypatch):
    """Two sets, of 5 and 6 rows, that were last used 1 and 40 days ago and that no process has open."""
    monkeypatch.setenv("SFTCORE_CACHE", str(tmp_path))
    found = {}
    for num_rows, days in ((5, 1), (6, 40)):
        preparation(tokenizer, 64).prepare(Dataset.from_list(alpaca_rows(num_rows)), "train")
        [new] = set((tmp_path / "prepared").glob("*/")) - set(found.values())
        then = time.time() - days * 86400
        os.utime(new / "used", (then, then))
        release(new)
        found[num_rows] = new
    return found


def test_the_list_says_what_each_set_is_the_one_used_last_first(sets):
    first, second, total = run("list").splitlines()
    assert first.startswith(sets[5].name)
    assert "used 24 h ago" in first
    assert "train, 5 rows" in first
    assert second.startswith(sets[6].name)
    assert "used 40 days ago" in second
    assert "max_length 64" in second
    assert total.startswith("2 prepared sets, ")
    told = json.loads(run("list", "--json"))["entries"]
    assert [one["rows"] for one in told] == [5, 6]
    assert told[0]["bytes"] == sum(file.stat().st_size for file in sets[5].iterdir())


def test_an_empty_cache_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("SFTCORE_CACHE", str(tmp_path / "none"))
    assert run("list").startswith("0 prepared sets, 0 B")
    assert run("prune", "--all").startswith("0 prepared sets removed")


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["--all"], []),
        (["--all", "--dry-run"], [5, 6]),
        (["--unused-for", "30"], [5]),
        (["--limit", "0"], []),
        (["--limit", "1 GiB"], [5, 6]),
        (["--limit", "0", "--unused-for", "30"], [5]),
        ([], [5, 6]),
    ],
)
def test_what_is_removed(sets, words, left):
    said = run("prune", *words)
    assert [number for number, path in sets.items() if path.is_dir()] == left
    told = 1 if "--dry-run" not in words else -1
    gone = [path.name for number, path in sets.items() if (number in left) == (told < 0)]
    assert sorted(line.split()[0] for line in said.splitlines()[:-1]) == sorted(gone)


def test_a_size_that_is_none_is_refused(sets):
    from sftcore.core.errors import RecipeError

    result = CliRunner().invoke(cli, ["cache", "prune", "--limit", "some"])
    assert isinstance(result.exception, RecipeError)
    assert '"some" is not a size' in str(result.exception)
