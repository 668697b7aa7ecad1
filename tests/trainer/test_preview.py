"""`sftcore preview`: what a user sees of a row before training on it."""

from __future__ import annotations

import json

import pytest

from sftcore import RecipeError
from sftcore.recipe import load_recipe
from sftcore.run.preview import preview
from sftcore.run.preview_page import as_page
from tests.conftest import alpaca_rows
from tests.trainer.test_command_line import sftcore


def jsonl(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_supervised_text_is_told_apart(model_folder, write):
    path = write("d.jsonl", jsonl(alpaca_rows(3)))
    printed = sftcore("preview", f"model={model_folder}", f"data={path}", "--row", "2")
    assert "row 2: 29 tokens, 7 supervised" in printed or "supervised" in printed
    assert "<|im_start|>assistant\n«The answer is 2<|im_end|>»" in printed


def test_the_cut_is_shown(model_folder, write):
    path = write("d.jsonl", jsonl([{"text": "say hello world " * 9}]))
    recipe = load_recipe(None, [f"model={model_folder}", f"data={path}", "max_length=8"])
    (one,) = preview(recipe, 0)
    assert one.caption.startswith("row 0: 8 tokens, 7 supervised, ")
    assert one.cut > 0


def test_weights_and_rows_that_do_not_exist(model_folder, write):
    turns = [{"role": "user", "content": "say"}, {"role": "assistant", "content": "hello", "weight": 0.5}]
    path = write("d.jsonl", jsonl([{"messages": turns}]))
    recipe = load_recipe(None, [f"model={model_folder}", f"data={path}"])
    (one,) = preview(recipe, 0)
    assert [(segment.text, segment.weight) for segment in one.segments if segment.weight] == [("hello<|im_end|>", 0.5)]
    with pytest.raises(RecipeError, match=r"there is no row 1\. Rows: 0 to 0"):
        preview(recipe, 1)


def test_control_characters_of_the_data_never_reach_the_terminal(model_folder, write):
    path = write("d.jsonl", jsonl([{"text": "say \x1b[31mred\x07"}]))
    printed = sftcore("preview", f"model={model_folder}", f"data={path}")
    assert "\x1b" not in printed
    assert "\\x1b[31mred\\x07" in printed


def test_the_page_escapes_what_the_data_hold(tmp_path, model_folder, write):
    path = write("d.jsonl", jsonl([{"prompt": "<b>", "completion": "<script>alert(1)</script>"}]))
    printed = sftcore("preview", f"model={model_folder}", f"data={path}", "--html", str(tmp_path / "p.html"))
    assert f"written to {tmp_path / 'p.html'}" in printed
    page = (tmp_path / "p.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    recipe = load_recipe(None, [f"model={model_folder}", f"data={path}"])
    assert as_page(preview(recipe, 0), str(path)) == page
