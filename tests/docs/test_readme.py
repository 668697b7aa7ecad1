"""What the README says is true: its examples run, its table is complete, and it stays short."""

from __future__ import annotations

import json
import re
from pathlib import Path

from sftcore.config.recipe import parse_recipe
from sftcore.config.yaml12 import load
from sftcore.core.discovery import discover
from sftcore.core.types import KINDS
from tests.conftest import alpaca_rows

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_readme_has_at_most_120_lines():
    assert len(README.splitlines()) <= 120


def test_every_built_in_stands_in_the_table():
    for kind in KINDS:
        names = [entry.name for entry in discover().of_kind(kind) if entry.distribution == "sftcore"]
        row = next((line for line in README.splitlines() if line.startswith(f"| {kind} |")), "")
        assert sorted(re.findall(r"`([a-z0-9-]+)`", row)) == sorted(names), kind


def test_the_python_example_runs(tmp_path, monkeypatch, model_folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in alpaca_rows(4)))
    example = blocks("python")[0].replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(model_folder))
    exec(example, {})
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_the_recipe_is_one():
    recipe = parse_recipe(load(blocks("yaml")[0], where="README"))
    assert recipe.chosen[0].options == {"prompt": "question", "completion": "answer"}


def test_the_plugin_example_reads_a_row():
    namespace: dict = {}
    source = blocks("python")[1]
    assert len([line for line in source.splitlines() if line.strip()]) <= 16
    exec(source, namespace)
    read = namespace["AlpacaZh"]().make_formatter(("问题", "回答"))
    assert read({"问题": "你好吗", "回答": "我很好"}).messages[1].content == "我很好"


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / target).exists(), target
