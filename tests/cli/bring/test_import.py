"""`sftcore import`, and what `sftcore train` says of another tool's file."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from sftcore.cli import cli
from sftcore.core.errors import SFTCoreError
from sftcore.importers.bring import PEERS
from tests.importers.world import CONFIGS, FILES


def run(*words):
    return CliRunner().invoke(cli, list(map(str, words)))


def test_the_recipe_goes_to_the_output_and_the_summary_to_stderr():
    done = run("import", "axolotl", CONFIGS / "axolotl-chat.yml", "--without-gpu")
    assert done.exit_code == 0
    assert done.stdout.startswith("# Made of axolotl-chat.yml by `sftcore import axolotl`.")
    assert "settings used" in done.stderr
    assert "left out, because it needs a GPU: flash attention" in done.stderr


def test_a_recipe_file_is_written_once(tmp_path):
    target = tmp_path / "recipe.yaml"
    assert run("import", "trl", CONFIGS / "trl-lora.yaml", "-o", target).exit_code == 0
    before = target.read_text()
    with pytest.raises(SFTCoreError, match="exists already"):
        CliRunner().invoke(
            cli, ["import", "trl", str(CONFIGS / "trl-lora.yaml"), "-o", str(target)], catch_exceptions=False
        )
    assert target.read_text() == before


def test_the_account_says_what_became_of_every_line():
    done = run("import", "swift", CONFIGS / "swift-lora.sh", "--account")
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert {line[1] for line in lines} == {"used", "equivalent", "named"}
    assert ["line 14", "used", "learning_rate: 0.0001: learning_rate"] in lines


def test_an_unknown_tool_is_answered_with_the_known_ones():
    done = run("import", "axolotel", CONFIGS / "axolotl-chat.yml")
    assert 'Did you mean "axolotl"?' in str(done.exception)


@pytest.mark.parametrize("name", FILES)
def test_train_names_the_verb_for_a_file_of_another_tool(name):
    done = run("train", CONFIGS / name)
    tool = name.partition("-")[0]
    said = f"{done.exception}{done.stderr}"
    assert done.exit_code != 0
    assert f"sftcore import {tool} " in said
    assert PEERS[tool].title in said


def test_train_keeps_its_own_words_for_a_recipe_with_a_wrong_key(write):
    done = run("train", write("recipe.yaml", "model: tiny\ndata: rows.jsonl\nlora_rank: 8\ncutoff_len: 128\n"))
    assert "sftcore import" not in str(done.exception)
    assert "adapter.lora.r" in str(done.exception)
