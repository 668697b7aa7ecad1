"""Verbs that show a recipe of several sources tell each apart."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from sftcore.cli import cli

RECIPE = """
model: {model}
data:
  train:
  - {{path: chat.jsonl, weight: 2}}
  - {{path: code.jsonl, name: code, format: {{alpaca: {{instruction: q, output: a}}}}, weight: 1, rows: 5}}
  eval:
    dev: chat.jsonl
    hard: [chat.jsonl, {{path: code.jsonl, name: bees, format: {{alpaca: {{instruction: q, output: a}}}}}}]
"""


@pytest.fixture
def sftcore(model_folder, tmp_path, monkeypatch):
    """Run a verb on the recipe; what it printed."""
    monkeypatch.chdir(tmp_path)

    def lines(name, rows):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    lines("chat.jsonl", [{"text": f"chat {i}"} for i in range(8)])
    lines("code.jsonl", [{"q": f"code {i}" if i != 3 else None, "a": "x"} for i in range(9)])
    (tmp_path / "r.yaml").write_text(RECIPE.format(model=model_folder))

    def run(*words, code=0):
        result = CliRunner().invoke(cli, list(words))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result.stdout

    return run


def test_check_reports_each_source(sftcore):
    reports = {one["name"]: one for one in json.loads(sftcore("check", "r.yaml", "--json", code=1))["sets"]}
    assert {name: (one["rows"]["read"], one["files"][0]["format"]) for name, one in reports.items()} == {
        "train['chat.jsonl']": (8, "text"), "train['code']": (5, "alpaca"), "eval['dev']": (8, "text"),
        "eval['hard']['chat.jsonl']": (8, "text"), "eval['hard']['bees']": (9, "alpaca"),
    }  # fmt: skip
    assert reports["train['code']"]["source"] == "code: code.jsonl"
    (refused,) = [one for one in reports["train['code']"]["findings"] if one["id"] == "null-content"]
    assert (refused["rows"][0]["row"], refused["rows"][0]["line"]) == (3, 4)
    twice = {one["id"]: one for one in reports["eval['hard']['bees']"]["findings"]}["also-in-training"]
    assert (twice["count"], twice["rows"][0]["detail"]) == (4, "as training row 0 of code")


def test_explain_shows_each_source_with_its_format(sftcore):
    shown = sftcore("explain", "r.yaml")
    assert "data     chat.jsonl (format text, weight 2)\n" in shown
    assert "data     code: code.jsonl (format alpaca, weight 1, the first 5 rows)\n" in shown
    assert "         mixed by weight, stop: first\n" in shown
    assert "eval     hard: chat.jsonl, bees: code.jsonl\n" in shown


def test_preview_shows_a_row_of_the_source_that_is_named(sftcore):
    from sftcore.core.errors import RecipeError

    assert "hat 2<|im_end|>»" in sftcore("preview", "r.yaml", "--row", "2")
    shown = sftcore("preview", "r.yaml", "--row", "2", "--source", "code")
    assert "Of code: code.jsonl." in shown
    assert "code 2" in shown
    with pytest.raises(RecipeError, match=r"code: code\.jsonl: there is no row 7\. The rows are numbered from 0 to 4"):
        sftcore("preview", "r.yaml", "--row", "7", "--source", "code")
    with pytest.raises(RecipeError, match=r'no source "cod"\. Did you mean "code"'):
        sftcore("preview", "r.yaml", "--source", "cod")


def test_preview_shows_packed_blocks_of_the_mixture(sftcore, tmp_path):
    rows = [json.dumps({"q": f"code {i}", "a": "x"}) + "\n" for i in range(9)]
    (tmp_path / "code.jsonl").write_text("".join(rows))
    shown = sftcore("preview", "r.yaml", "packing=true", "max_length=128")
    assert "Of chat.jsonl, code: code.jsonl." in shown
    assert "hat 0<|im_end|>»" in shown
    assert "code 0" in shown
