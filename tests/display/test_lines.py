"""Plain lines, lines of JSON, and streams whose reader is gone."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys

import numpy as np
import pytest
from rich.console import Console

from sftcore.display import lines
from sftcore.display.choice import view_for
from sftcore.display.figures import Figures, evaluation_in, others_in
from sftcore.display.lines import JsonLines, Lines
from sftcore.display.live import Live
from sftcore.display.stages import shown_by, stage
from sftcore.display.streams import lasting_streams, say, stdout_alone


def test_a_log_is_one_line_with_all_that_is_known():
    out = io.StringIO()
    known = {"accuracy": 0.25, "tokens": 200.0, "supervised": 50.0, "memory": 3 * 2**29}
    Lines(out).logged(Figures(3, 10, 1.25, left=65.0, others=(("loss/a", "1.5"),), **known))
    Lines(out).logged(Figures(4, 10, float("nan"), left=3725.0))
    assert out.getvalue().splitlines() == [
        "step 3/10  loss 1.2500  accuracy 0.250  200 tokens/s (50 supervised)  memory 1.5 GiB  loss/a 1.5  left 1:05",
        "step 4/10  loss nan  left 1:02:05",
    ]


def test_metrics_of_the_runs_own_are_not_lost():
    logs = {"loss": 1.0, "grad_norm": 2.0, "loss/[red]a": 1.5, "tokens/[red]a": 50.0, "mine\x1b[31m": 7, "epoch": 1.0}
    assert others_in(logs) == (("loss/[red]a", "1.5000"), ("mine\\x1b[31m", "7"))
    logs = {"eval_dev_loss": 2.0, "eval_dev_mean_token_accuracy": 0.5, "eval_dev_f1": 0.25, "eval_dev_runtime": 1.0}
    assert evaluation_in(4, logs) == "step 4: eval_dev_loss 2.0000, accuracy 0.500, eval_dev_f1 0.2500"
    assert evaluation_in(4, {"train_runtime": 1.0, "train_loss": 2.0, "epoch": 1.0}) == ""
    assert evaluation_in(4, {"mine": "two\nlines"}) == "step 4: mine two lines"


def test_a_name_of_several_lines_is_one():
    assert others_in({"loss/a\nb\tc": 1.5}) == (("loss/a b c", "1.5000"),)
    logs = {"eval_a\nb_loss": 2.0, "eval_a\nb_f1": 1.5}
    assert evaluation_in(4, logs) == "step 4: eval_a b_loss 2.0000, eval_a b_f1 1.5000"


def test_an_entry_is_a_line_that_any_json_parser_reads():
    out = io.StringIO()
    entry = {"loss": 1.5, "grad_norm": float("nan"), "f1": np.float32(0.5), "rows": np.array([1, 2]), "who": "ü\n\x1b"}
    JsonLines(out).entry(entry)
    JsonLines(out).logged(Figures(3, 10, 1.25, left=65.0))
    (line,) = out.getvalue().splitlines()

    def refuse(name):
        raise ValueError(name)

    found = json.loads(line, parse_constant=refuse)
    assert found == {"loss": 1.5, "grad_norm": None, "f1": 0.5, "rows": [1, 2], "who": "ü\n\x1b"}


def test_long_stages_tell_how_far_they_are(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(lines.time, "monotonic", lambda: now[0])
    with shown_by(Lines()), stage("Preparing train_dataset", 1000) as advance:
        for _ in range(10):
            now[0] += 10.0
            advance(100)
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines() == [
        "Preparing train_dataset: 300 of 1,000 rows, left 1:10",
        "Preparing train_dataset: 600 of 1,000 rows, left 0:40",
        "Preparing train_dataset: 900 of 1,000 rows, left 0:10",
    ]


@pytest.mark.parametrize(
    ("changed", "kind"),
    [({}, Live), ({"TERM": "dumb"}, Lines), ({"TERM": "unknown"}, Lines), ({"NO_COLOR": "1"}, Live)],
)
def test_lines_are_drawn_on_what_can_draw(terminal, monkeypatch, changed, kind):
    for name, value in changed.items():
        monkeypatch.setenv(name, value)
    assert type(view_for(terminal().console, draws=True)) is kind
    assert type(view_for(Console(), draws=False)) is Lines
    assert view_for(Console(quiet=True), draws=True) is None


def test_a_forced_colour_makes_no_terminal_of_a_file(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert type(view_for(Console(file=io.StringIO()), draws=True)) is Lines


@pytest.fixture
def broken():
    """A stream to a reader that has ended."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", encoding="utf-8") as stream:
        yield stream


def test_a_reader_that_ends_is_told_once_and_does_no_harm(broken, monkeypatch, recwarn):
    monkeypatch.setattr(sys, "stdout", broken)
    for _ in range(3):
        say("a line", sys.stdout)
    assert [str(one.message) for one in recwarn] == [
        "stdout takes no more text (Broken pipe); the run goes on, and its log is in its output folder."
    ]


def test_what_anybody_prints_to_a_reader_that_ends_does_no_harm(broken, monkeypatch, recwarn):
    monkeypatch.setattr(sys, "stderr", broken)
    with lasting_streams():
        print("a plugin prints", file=sys.stderr, flush=True)
        sys.stderr.writelines(["x\n"] * 100_000)
        assert sys.stderr.fileno() == broken.fileno()
    assert sys.stderr is broken
    assert not recwarn


def test_an_error_that_is_none_of_the_streams_is_raised(monkeypatch):
    with lasting_streams(), pytest.raises(TypeError):
        sys.stdout.write(b"bytes")


def test_stdout_is_for_the_lines_alone(tmp_path, monkeypatch):
    with open(tmp_path / "out", "w", encoding="latin-1") as out, open(tmp_path / "err", "w", encoding="utf-8") as err:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        print("before", flush=True)
        with contextlib.suppress(KeyError), stdout_alone() as alone:
            print("a plugin prints", flush=True)
            os.write(out.fileno(), b"C code prints\n")
            say("日", alone)
            raise KeyError
        print("behind", flush=True)
        assert sys.stdout is out
    assert (tmp_path / "out").read_text(encoding="utf-8").splitlines() == ["before", "日", "behind"]
    assert (tmp_path / "err").read_text(encoding="utf-8").splitlines() == ["a plugin prints", "C code prints"]


def test_stdout_of_python_alone_is_for_the_lines_alone(capsys):
    with stdout_alone() as alone:
        print("a plugin prints")
        say("a line", alone)
    found = capsys.readouterr()
    assert (found.out, found.err) == ("a line\n", "a plugin prints\n")
