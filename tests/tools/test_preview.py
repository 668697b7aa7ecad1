"""`sftcore preview`: what a user sees of a row before training on it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from rich.console import Console

from sftcore import RecipeError, RowError
from sftcore.cli import cli
from sftcore.cli.preview import _coloured
from sftcore.config.recipe import load_recipe
from sftcore.core.types import TokenizedRow
from sftcore.report.pieces import Piece, pieces_of
from sftcore.tools.preview import CUT_SHOWN, preview
from sftcore.tools.preview_page import html_page
from tests.conftest import alpaca_rows
from tests.train.test_command_line import sftcore


def jsonl(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def shown(*words: str) -> str:
    result = CliRunner().invoke(cli, ["preview", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def previewed(model_folder, path, *overrides: str, row: int = 0):
    return preview(load_recipe(None, [f"model={model_folder}", f"data={path}", *overrides]), row)


def test_supervised_text_is_told_apart_also_without_colours(model_folder, write):
    path = write("d.jsonl", jsonl(alpaca_rows(3)))
    printed = sftcore("preview", str(path), "--model", str(model_folder), "--row", "2")
    assert printed.startswith(
        "row 2: 28 tokens, 6 supervised\n"
        'message 1: begins behind "<|im_end|>⏎<|im_start|>assistant⏎", ends with "<|im_end|>", a stop\n'
        "<|im_start|>user\nsay 2<|im_end|>\n<|im_start|>assistant\n«The answer is 2<|im_end|>»\n"
    )


def test_data_recipes_and_pairs_are_all_understood(model_folder, write):
    path = write("d.jsonl", jsonl(alpaca_rows(3)))
    recipe = write("r.yaml", f"model: {model_folder}\ndata: {path}\n")
    wanted = shown(str(path), "--model", str(model_folder))
    assert shown(f"model={model_folder}", f"data={path}") == wanted
    assert shown(str(recipe)) == wanted
    assert shown(str(path), f"model={model_folder}", "--format", "alpaca") == wanted
    without = CliRunner().invoke(cli, ["preview", str(path)])
    assert (without.exit_code, "Name the model whose tokenizer" in without.stderr) == (2, True)


def test_columns_that_nobody_reads_are_shown_by_the_mapping_that_fits(model_folder, write):
    path = write("d.jsonl", jsonl([{"question": "say", "answer": " hello"}]))
    (one,) = previewed(model_folder, path)
    line = "format: {alpaca: {instruction: question, output: answer}}"
    assert one.notes[0] == f"Read with a suggested mapping; a run needs this line: {line}"
    assert [segment.text for segment in one.segments if segment.weight] == [" hello", "<|im_end|>"]


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_the_cut_is_shown_where_it_is_and_counted(model_folder, write, mode):
    path = write("d.jsonl", jsonl([{"text": "say hello world " * 9}]))
    (whole,) = previewed(model_folder, path)
    (one,) = previewed(model_folder, path, "max_length=8", f"truncation_mode={mode}")
    total = sum(len(segment.ids) for segment in whole.segments)
    assert one.caption == f"row 0: 8 tokens, 7 supervised, {total - 8} more cut away"
    assert [segment.cut for segment in one.segments][0 if mode == "keep_end" else -1]
    assert "".join(segment.text for segment in one.segments) == "".join(segment.text for segment in whole.segments)
    assert sum(len(segment.ids) for segment in one.segments if segment.cut) == one.cut == total - 8


def test_a_long_cut_is_shown_in_part(model_folder, write):
    path = write("d.jsonl", jsonl([{"text": "0 1 " * 400}]))
    (one,) = previewed(model_folder, path, "max_length=8")
    assert sum(len(segment.ids) for segment in one.segments if segment.cut) == CUT_SHOWN
    assert f"{one.cut - CUT_SHOWN:,} more tokens are cut away." in shown(
        str(path), "--model", str(model_folder), "max_length=8"
    )


def test_a_row_that_a_run_drops_or_refuses_is_said(model_folder, write):
    path = write("d.jsonl", jsonl([*alpaca_rows(1), {"instruction": "say", "output": None}]))
    assert "A run drops this row: no supervised token left after truncation." in shown(
        str(path), "--model", str(model_folder), "max_length=5"
    )
    with pytest.raises(RowError, match=r'd\.jsonl row 1: the column "output" is null'):
        previewed(model_folder, path, row=1)


def test_weights_and_rows_that_do_not_exist(model_folder, write):
    turns = [{"role": "user", "content": "say"}, {"role": "assistant", "content": "hello", "weight": 0.5}]
    path = write("d.jsonl", jsonl([{"messages": turns}]))
    (one,) = previewed(model_folder, path)
    assert [(segment.text, segment.weight) for segment in one.segments if segment.weight] == [
        ("hello", 0.5), ("<|im_end|>", 0.5),
    ]  # fmt: skip
    assert "«0.5: hello<|im_end|>»" in shown(str(path), "--model", str(model_folder))
    assert '<mark class="light">' in html_page([one], "d.jsonl")
    with pytest.raises(RecipeError, match=r"there is no row 1\. The rows are numbered from 0 to 0"):
        previewed(model_folder, path, row=1)


def test_a_packed_block_is_shown_with_the_borders_of_its_documents(model_folder, write):
    path = write("d.jsonl", jsonl(alpaca_rows(12)))
    words = ["max_length=64", "packing=true"]
    (one,) = previewed(model_folder, path, *words, row=1)
    singles = {
        "".join(segment.text for segment in previewed(model_folder, path, row=row)[0].segments) for row in range(12)
    }
    assert len(one.documents) == 2
    start = 0
    for document in one.documents:
        assert document.start == start
        assert "".join(piece.text for piece in document.pieces) in singles
        assert [piece.position for piece in document.pieces] == list(range(document.length))
        assert document.pieces[0].weight == 0
        start += document.length
    lengths = [document.length for document in one.documents]
    assert one.caption.startswith(f"block 1: {sum(lengths)} of 64 tokens in 2 documents, ")
    printed = shown(str(path), "--model", str(model_folder), "--row", "1", *words)
    second = f"document 2 of 2: {lengths[1]} tokens, {lengths[0]} to {sum(lengths) - 1} of the block, positions 0 to"
    assert f"── {second} {lengths[1] - 1}" in printed
    assert second in html_page([one], "d.jsonl")
    with pytest.raises(RecipeError, match=r"there is no block 99\. The blocks are numbered from 0 to 5"):
        previewed(model_folder, path, *words, row=99)


def test_pieces_are_whole_characters_and_together_the_text(tokenizer):
    text = "naïve 😀 say \ufffd 日本"
    ids = tokenizer(text)["input_ids"]
    pieces = pieces_of(TokenizedRow(ids), tokenizer)
    assert "".join(piece.text for piece in pieces) == text
    assert [token for piece in pieces for token in piece.ids] == ids
    assert [piece.text for piece in pieces if "😀" in piece.text] == ["😀"]
    assert [piece.position for piece in pieces] == [sum(len(p.ids) for p in pieces[:i]) for i in range(len(pieces))]


def test_the_spaces_of_a_sentencepiece_tokenizer_are_kept():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<unk>": 0, "▁say": 1, "▁hello": 2}, unk_token="<unk>"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    words = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    pieces = pieces_of(TokenizedRow([1, 2, 2]), words)
    assert [piece.text for piece in pieces] == ["say", " hello", " hello"]


def test_in_colour_supervised_context_special_and_cut_all_look_different():
    kinds = [
        Piece("a", (1,), 0, 1.0), Piece("b", (1,), 0, 0.0), Piece("c", (1,), 0, 0.5),
        Piece("d", (1,), 0, 0.0, special=True), Piece("e", (1,), 0, 1.0, special=True),
        Piece("f", (1,), 0, 1.0, cut=True),
    ]  # fmt: skip
    text = _coloured(tuple(kinds))
    assert text.plain == "abc×0.5def"
    assert len({str(span.style) for span in text.spans}) == 7
    console = Console(force_terminal=True, color_system="truecolor", width=80)
    with console.capture() as capture:
        console.print(text)
    assert "\x1b[" in capture.get()


def test_control_characters_of_the_data_never_reach_the_terminal(model_folder, write):
    path = write("d.jsonl", jsonl([{"text": "say \x1b[31mred\x07"}]))
    printed = shown(str(path), "--model", str(model_folder))
    assert "\x1b" not in printed
    assert "\\x1b[31mred\\x07" in printed


def test_the_page_escapes_what_the_data_hold_and_loads_nothing(tmp_path, model_folder, write):
    path = write("d.jsonl", jsonl([{"prompt": "<b>", "completion": "<script>alert(1)</script>"}]))
    page_path = tmp_path / "p.html"
    assert f"written to {page_path}" in shown(str(path), "--model", str(model_folder), "--html", str(page_path))
    page = page_path.read_text(encoding="utf-8")
    assert "<script" not in page
    assert not any(word in page for word in ("http:", "https:", "src=", "url(", "@import"))
    (one,) = previewed(model_folder, path)
    assert html_page([one], str(path)) == page
    assert "&lt;" in page
    assert "prefers-color-scheme: dark" in page


@pytest.mark.parametrize("name", ["gsm8k_train.jsonl", "alpaca_en_demo.json"])
def test_real_files_are_shown_without_special_handling(shared_data, model_folder, name):
    path = shared_data / name
    text = path.read_text(encoding="utf-8")
    row = json.loads(text)[7] if name.endswith(".json") else json.loads(text.splitlines()[7])
    (one,) = previewed(model_folder, path, row=7)
    supervised = "".join(segment.text for segment in one.segments if segment.weight and not segment.special)
    assert supervised == row["output" if "output" in row else "answer"]


def test_a_real_conversation_with_a_tool_is_shown_with_its_calls_as_text(shared_data, model_folder):
    path = shared_data / "glaive_toolcall_en_demo.json"
    (one,) = previewed(
        model_folder, path, "format={sharegpt: {function_call: content}}", "assistant_only_loss=true", "max_length=4000"
    )
    supervised = [segment.text for segment in one.segments if segment.weight and not segment.special]
    spoken = [turn["value"] for turn in json.loads(path.read_text(encoding="utf-8"))[0]["conversations"]
              if turn["from"] in ("gpt", "function_call")]  # fmt: skip
    assert supervised == spoken


def test_a_folder_that_holds_a_tokenizer_alone_will_do(tokenizer, tmp_path, write):
    tokenizer.save_pretrained(tmp_path / "words")
    path = write("d.jsonl", jsonl([{"text": "say hello"}]))
    (one,) = previewed(tmp_path / "words", path)
    assert "".join(segment.text for segment in one.segments) == "say hello<|im_end|>"
    checked = CliRunner().invoke(cli, ["check", str(path), "--model", str(tmp_path / "words")])
    assert "0 errors" in checked.stdout, checked.output
