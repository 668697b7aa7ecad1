"""The package as its users meet it: it must be installed (`pip install ".[test]"`)."""

import json
from pathlib import Path

import pytest
from sftcore_alpaca_zh import AlpacaZh

from sftcore import Example, Message, RowError
from sftcore.core.discovery import discover
from sftcore.testing import FormatTests

pytest_plugins = "sftcore.testing"

ROWS = Path(__file__).parents[1] / "examples.jsonl"
COLUMNS = ("问题", "回答")


class TestAlpacaZh(FormatTests):
    plugin = AlpacaZh
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]


def test_columns_with_both_keys_are_recognised():
    assert AlpacaZh().detects((*COLUMNS, "来源"))
    assert not AlpacaZh().detects(("问题", "output"))


def test_mapped_columns_are_recognised_in_place_of_the_defaults():
    mapped = AlpacaZh(question="提问", answer="答复")
    assert mapped.detects(("提问", "答复"))
    assert not mapped.detects(COLUMNS)


def test_a_row_becomes_a_conversation_of_two_turns():
    read = AlpacaZh().make_formatter(COLUMNS)
    assert read({"问题": "一加一等于几？", "回答": "二。"}) == Example(
        messages=[Message("user", "一加一等于几？"), Message("assistant", "二。")]
    )


def test_every_row_of_the_examples_is_read():
    read = AlpacaZh().make_formatter(COLUMNS)
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    assert [[turn.content for turn in read(row).messages] for row in rows] == [[*row.values()] for row in rows]
    assert len(rows) == 8


def test_an_error_names_the_column_that_the_row_lacks():
    read = AlpacaZh().make_formatter(COLUMNS)
    with pytest.raises(RowError, match='the column "回答" is missing') as error:
        read({"问题": "一加一等于几？"})
    assert "The row has: 问题" in str(error.value)


def test_the_installed_package_is_discovered_under_its_name():
    entry = discover().find("format", "alpaca-zh")
    assert (entry.distribution, entry.load()) == ("sftcore-alpaca-zh", AlpacaZh)
