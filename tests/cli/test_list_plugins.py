"""`sftcore list-plugins`: its JSON is a schema, and it imports nothing heavy."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from sftcore.cli import cli
from sftcore.core.errors import RecipeError
from sftcore.core.types import KINDS

KEYS = ["kind", "name", "distribution", "version", "entry_point", "status", "why"]
DETAILS = ["summary", "options", "hooks", "slots"]
HEAVY = {"torch", "transformers", "datasets", "peft", "accelerate", "rich", "yaml", "numpy"}

MODULES = """
import json, sys
looked = []
sys.addaudithook(lambda event, given: event in ("open", "os.listdir", "os.scandir") and looked.append(str(given[0])))
from sftcore.cli import cli
try:
    cli(sys.argv[1:], prog_name="sftcore")
finally:
    print(json.dumps([sorted(sys.modules), looked]), file=sys.stderr)
"""


def listed(*words: str) -> list[dict]:
    result = CliRunner().invoke(cli, ["list-plugins", "--json", *words], catch_exceptions=False)
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert list(answer) == ["schema", "plugins", "unread_groups"]
    assert answer["schema"] == 1
    return answer["plugins"]


def in_a_fresh_python(*words: str, path: str = "") -> tuple[str, set[str], list[str]]:
    """What the verb prints, the modules that were imported for it, and the files and folders that it looked into."""
    shown = subprocess.run(
        [sys.executable, "-c", MODULES, *words],
        env={**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=True,
    )
    modules, looked = json.loads(shown.stderr.splitlines()[-1])
    return shown.stdout, set(modules), looked


def test_each_row_has_exactly_the_keys_of_the_schema():
    rows = listed()
    assert rows
    assert all(list(row) == KEYS for row in rows)
    assert all(isinstance(value, str) for row in rows for value in row.values())


def test_a_row_says_what_is_installed_and_from_where():
    (row,) = [row for row in listed() if row["name"] == "lora"]
    assert row == {
        "kind": "adapter",
        "name": "lora",
        "distribution": "sftcore",
        "version": importlib.metadata.version("sftcore"),
        "entry_point": "sftcore_plugins.adapters.lora:LoRA",
        "status": "usable",
        "why": "",
    }


def test_details_add_summary_options_hooks_and_slots():
    rows = listed("--details", "--kind", "loss")
    assert all(list(row) == [*KEYS, *DETAILS] for row in rows)
    (row,) = [row for row in rows if row["name"] == "nll"]
    assert row["summary"] == "Mean negative log-likelihood over supervised tokens, the head applied in chunks."
    assert row["options"] == [{"name": "chunk", "type": "int | None", "default": None}]
    assert row["hooks"] == ["claims", "make_loss"]
    assert row["slots"] == ["loss.cross_entropy"]


def test_details_say_that_third_party_code_runs():
    result = CliRunner().invoke(cli, ["list-plugins", "--json", "--details", "--kind", "loss"])
    assert "third-party code runs" in result.stderr
    assert "third-party" not in result.stdout


def test_every_built_in_plugin_can_be_had_in_detail():
    broken = [row for row in listed("--details") if row["distribution"] == "sftcore" and row["status"] == "broken"]
    assert broken == []


@pytest.mark.parametrize("kind", ["format", "loader", "loss"])
def test_kind_leaves_out_all_others(kind):
    rows = listed("--kind", kind)
    assert rows
    assert {row["kind"] for row in rows} == {kind}
    assert rows == [row for row in listed() if row["kind"] == kind]


def test_an_unknown_kind_is_refused_with_the_known_ones():
    result = CliRunner().invoke(cli, ["list-plugins", "--kind", "formats"])
    assert result.exit_code == 2
    assert all(kind in result.stderr for kind in KINDS)


def test_the_plain_list_has_one_line_a_plugin_under_a_head():
    lines = CliRunner().invoke(cli, ["list-plugins"]).stdout.splitlines()
    assert lines[0].split() == ["kind", "name", "distribution", "version", "status", "why"]
    assert [tuple(line.split()[:3]) for line in lines[1:]] == [
        (row["kind"], row["name"], row["distribution"]) for row in listed()
    ]


def test_rows_are_sorted_by_kind_then_name():
    rows = listed()
    assert rows == sorted(rows, key=lambda row: (KINDS.index(row["kind"]), row["name"], row["distribution"]))


def test_a_malformed_block_pattern_is_refused():
    result = CliRunner().invoke(cli, ["list-plugins", "--block", "liger"])
    assert isinstance(result.exception, RecipeError)
    assert str(result.exception).startswith('--block: cannot block "liger".')


@pytest.mark.parametrize("words", [["list-plugins"], ["list-plugins", "--json"], ["--help"]], ids=" ".join)
def test_nothing_heavy_is_imported_when_the_output_is_no_terminal(words):
    shown, modules, _ = in_a_fresh_python(*words)
    assert shown
    assert modules & HEAVY == set()
    assert not any(name.startswith("sftcore_plugins") for name in modules)


def test_the_details_of_the_built_in_plugins_import_no_torch():
    _, modules, _ = in_a_fresh_python("list-plugins", "--details")
    assert "sftcore_plugins.losses.nll" in modules
    assert modules & {"torch", "transformers", "datasets", "peft", "accelerate"} == set()


def test_five_hundred_distributions_are_listed_without_importing_one(tmp_path):
    for i in range(500):
        info = tmp_path / f"fake_{i:03}-0.{i}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: fake-{i:03}\nVersion: 0.{i}\n\nName: readme\n")
        group = f"sftcore.{KINDS[i % len(KINDS)]}" if i % 2 else "console_scripts"
        (info / "entry_points.txt").write_text(f"[{group}]\nplugin-{i:03} = fake_{i:03}:Plugin\n")
    shown, modules, looked = in_a_fresh_python("list-plugins", "--json", path=str(tmp_path))
    rows = {row["name"]: row for row in json.loads(shown)["plugins"] if row["distribution"] != "sftcore"}
    assert sorted(rows) == [f"plugin-{i:03}" for i in range(1, 500, 2)]
    assert rows["plugin-009"] == {
        "kind": KINDS[1],
        "name": "plugin-009",
        "distribution": "fake-009",
        "version": "0.9",
        "entry_point": "fake_009:Plugin",
        "status": "usable",
        "why": "",
    }
    assert modules & HEAVY == set()
    assert not any(name.startswith("fake_") for name in modules)
    # what takes time is counted, since a clock says something else on every machine: each distribution's entry points
    # are read once, the metadata of those with plugins once, and no folder is searched a second time
    here = [os.path.relpath(one, tmp_path) for one in looked if one.startswith(str(tmp_path))]
    assert sorted(Path(one).name for one in here if one != ".") == ["METADATA"] * 250 + ["entry_points.txt"] * 500
    assert len(set(here)) == len(here)
    assert len(modules) < 300
