"""`sftcore train` on a terminal, in a pipe, and with lines of JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from sftcore.cli import cli
from sftcore.testing.tiny import save_tiny
from tests.commands import sftcore
from tests.display.terminals import in_terminal

SETTINGS = ("model=model", "data.path=rows.jsonl", "max_steps=4", "logging_steps=1", "use_cpu=true",
            "report_to=none", "save_strategy=no", "per_device_train_batch_size=2", "report_html=false")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("shown")
    save_tiny(made / "model")
    rows = "".join(json.dumps({"text": f"hello {i}"}) + "\n" for i in range(16))
    (made / "rows.jsonl").write_text(rows, encoding="utf-8")
    return made


def log_of(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_each_log_is_a_line_of_json_and_stdout_has_nothing_else(folder, monkeypatch):
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(cli, ["train", *SETTINGS, "output_dir=json", "data.eval_rows=4", "--json-logs"])
    assert result.exit_code == 0, result.output
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert found == log_of(folder / "json")
    assert {"loss", "eval_loss", "train_runtime"} <= {name for one in found for name in one}
    assert "saved in json" in result.stderr


def test_a_recipe_without_bars_has_a_line_for_each_log(folder, monkeypatch, terminal):
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(cli, ["train", *SETTINGS, "output_dir=plain", "disable_tqdm=true"])
    assert result.exit_code == 0, result.output
    assert [line.split("  ")[0] for line in result.stdout.splitlines()[:-1]] == [
        *(f"step {step}/4" for step in range(1, 5))
    ]
    assert result.stdout.splitlines()[-1].endswith("saved in plain")


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 40])
def test_a_terminal_shows_stages_and_training(folder, columns):
    words = (*SETTINGS, "data.eval_rows=4", "dataset_cache=false", f"output_dir=live-{columns}")
    code, screen, text = in_terminal("train", *words, cwd=folder, columns=columns)
    assert code == 0, screen.text
    lines = screen.text.strip().splitlines()
    assert "Preparing train_dataset: 12 of 12 rows in " in screen.text.replace("\n", "")
    assert "0/12 rows" in text
    assert "Loading the model …" in lines
    assert len([line for line in lines if line.startswith("step 4/4  ━")]) == 1
    *_, loss = (one["loss"] for one in log_of(folder / f"live-{columns}") if "loss" in one)
    assert any(line.startswith(f"loss {loss:.4f}  ") and set(line) & set("▁▂▃▄▅▆▇█") for line in lines)
    assert "% supervised" in screen.text
    assert "tokens/s" in screen.text
    assert "memory" in screen.text
    assert f"of training; saved in live-{columns}" in screen.text.replace("\n", "")


@pytest.mark.slow
def test_without_colours_nothing_is_coloured(folder):
    code, screen, text = in_terminal("train", *SETTINGS, "output_dir=grey", cwd=folder, NO_COLOR="1")
    assert code == 0, screen.text
    assert "step 4/4  ━" in screen.text
    assert "\x1b[3" not in text
    assert ";3" not in text


@pytest.mark.slow
def test_a_dumb_terminal_has_a_line_for_each_log(folder):
    code, screen, text = in_terminal("train", *SETTINGS, "output_dir=dumb", cwd=folder, columns=200, TERM="dumb")
    assert code == 0, screen.text
    assert len([line for line in screen.text.splitlines() if line.startswith("step ")]) == 4
    assert "\x1b" not in text


@pytest.mark.slow
def test_errors_go_where_stderr_goes(folder):
    code, screen, _ = in_terminal("train", *SETTINGS, "output_dir=errors", cwd=folder, only=(1,))
    assert code == 0, screen.text
    assert "step 4/4  ━" in screen.text
    assert "model:" not in screen.text
    assert "plugins    format text" in (folder / "2").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(("words", "both"), [((), ""), (("--json-logs",), "2>&1")])
def test_a_reader_that_ends_early_does_not_end_the_run(folder, words, both):
    out = f"headed{len(words)}{len(both)}"
    script = f'set -o pipefail; "$0" -m sftcore "$@" {both} | head -n 1'
    command = ["bash", "-c", script, sys.executable, "train", *SETTINGS, f"output_dir={out}", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    assert (folder / out / "model.safetensors").is_file()
    assert len(log_of(folder / out)) == 5


@pytest.mark.slow
def test_a_pipe_has_a_line_for_each_log(folder):
    done = sftcore("train", *SETTINGS, "output_dir=piped", cwd=folder, FORCE_COLOR="1", COLUMNS="40")
    assert done.returncode == 0, done.stderr
    *logs, last = done.stdout.splitlines()
    assert [line.split("  ")[0] for line in logs] == [f"step {step}/4" for step in range(1, 5)]
    assert last.endswith("of training; saved in piped")
    assert "\x1b" not in done.stdout
