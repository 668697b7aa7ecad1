"""What the live view leaves on a terminal, read back from the codes that it writes."""

from __future__ import annotations

import logging
import signal
import sys
import warnings

import click
import pytest
from rich.text import Text

from sftcore.cli import _plain_reports
from sftcore.display import screen as screens
from sftcore.display.figures import Curve, Figures, sparkline
from sftcore.display.live import Live
from sftcore.display.screen import Screen
from sftcore.display.stages import shown_by, stage
from sftcore.train.guard.signals import how_to_continue


@pytest.fixture(autouse=True)
def always_due(monkeypatch):
    monkeypatch.setattr(screens, "OFTEN", 0.0)


def figures(step, loss, **known):
    return Figures(step, 100, loss, left=30.0, **known)


def test_the_newest_figures_and_the_curve_of_all_losses_are_shown(terminal):
    shown = terminal()
    view = Live(shown.console)
    view.open(0, 100)
    for step in range(1, 11):
        view.step(step, 2.0 * step, 200.0 - 2 * step)
        known = {"accuracy": 0.25, "tokens": 2000.0, "supervised": 500.0, "memory": 3 * 2**29, "learning_rate": 2e-5}
        view.logged(figures(step, 11.0 - step, **known))
    view.close()
    first, loss, *rest = shown.text.strip().splitlines()
    assert first.startswith("step 10/100  ━")
    assert first.endswith(" 10%  0:20, left 0:30")
    assert loss.startswith("loss 1.0000  █▇▆▆▅▄▃▃▂▁  from")
    assert loss.endswith("from 10.0000  lowest 1.0000")
    assert rest == ["accuracy 0.250  2,000 tokens/s  25% supervised  memory 1.5 GiB", "learning rate 2e-05"]


@pytest.mark.parametrize("columns", [40, 20])
def test_no_line_is_wider_than_the_terminal(terminal, columns):
    shown = terminal(columns)
    view = Live(shown.console)
    view.open(0, 100)
    for step in range(1, 60):
        view.step(step, 1.0, 1.0)
        view.logged(figures(step, 1 / step, accuracy=0.5, tokens=123456.0, supervised=1.0, memory=2**40,
                            others=(("loss/非常に長い名前の出典" * 5, "1.0"),)))  # fmt: skip
    view.close()
    lines = shown.text.strip().splitlines()
    assert len([line for line in lines if line.startswith("step")]) == 1
    assert len([line for line in lines if line.startswith("loss ")]) == 1
    assert all(len(line) < columns for line in lines)


def test_a_long_run_keeps_the_shape_of_its_curve():
    curve = Curve()
    for step in range(100_000):
        curve.add(float(100_000 - step))
        curve.add(float("nan"))
    assert 512 <= len(curve.values) <= 1024
    assert (curve.first, curve.lowest) == (100_000.0, 1.0)
    assert sparkline(curve.values, 8) == "█▇▆▅▄▃▂▁"


def test_more_lines_than_the_terminal_has_are_left_out(terminal):
    shown = terminal(40, rows=3)
    view = Live(shown.console)
    view.open(0, 100)
    for step in range(1, 20):
        view.step(step, 1.0, 1.0)
        view.logged(figures(step, 1.0, accuracy=0.5, tokens=1.0, supervised=1.0, memory=2**30, learning_rate=1.0))
    view.close()
    assert shown.text.count("step ") == 1


def test_what_others_print_stands_above_in_whole_lines(terminal):
    shown = terminal()
    handler = logging.StreamHandler(sys.stderr)
    logging.getLogger("of.a.library").addHandler(handler)
    view = Live(shown.console)
    view.open(0, 2)
    print("a plugin", "prints")
    view.step(1, 1.0, 1.0)
    sys.stderr.write("begun, ")
    view.step(1, 1.0, 1.0)
    sys.stderr.writelines(["and ended\n", "two\nlines\n"])
    logging.getLogger("of.a.library").error("a library logs")
    for part in (10, 50, 100):
        sys.stdout.write(f"\r{part}%")
        sys.stdout.flush()
    print("\nlast", end="")
    view.step(2, 2.0, 0.0)
    view.close()
    logging.getLogger("of.a.library").removeHandler(handler)
    *above, last = shown.text.strip().splitlines()
    assert above == ["a plugin prints", "begun, and ended", "two", "lines", "a library logs", "100%", "last"]
    assert last.startswith("step 2/2")
    assert sys.stdout is shown.stream
    assert handler.stream is shown.stream


def test_warnings_of_the_command_line_stand_above(terminal):
    shown = terminal()
    view = Live(shown.console)
    with _plain_reports():
        view.open(0, 2)
        warnings.warn("a plugin \x1b[2J warns", UserWarning, stacklevel=1)
        click.echo("said on stdout")
        view.step(2, 1.0, 1.0)
        view.close()
    first, second, last = shown.text.strip().splitlines()
    assert (first, second) == ("warning: a plugin \\x1b[2J warns", "said on stdout")
    assert last.startswith("step 2/2")


def test_a_bar_of_another_is_seen_while_it_moves(terminal):
    shown = terminal()
    view = Live(shown.console)
    view.open(0, 2)
    sys.stderr.write("\r 30%|###   | 3/10")
    view.step(1, 1.0, 1.0)
    assert shown.text.strip().splitlines()[-1] == " 30%|###   | 3/10"
    sys.stderr.write("\r                  \r")
    view.step(2, 1.0, 1.0)
    view.close()
    assert "30%" not in shown.text


def test_codes_and_markup_are_text(terminal):
    shown = terminal()
    view = Live(shown.console)
    view.open(0, 2)
    print("\x1b[31mred\x1b[0m, \x1b[2J\x1b[H\x07 cleared, \x1bc reset, \x9b2J")
    view.evaluated("step 1: eval_[red]x[/red] 1.0")
    view.logged(figures(1, 1.0, others=(("loss/[bold]a[/bold]", "1.0"),)))
    view.close()
    text = shown.text
    assert "red, \\x1b[2J\\x1b[H\\x07 cleared, \\x1bc reset, \\x9b2J" in text
    assert "step 1: eval_[red]x[/red] 1.0" in text
    assert "loss/[bold]a[/bold] 1.0" in text


def test_an_evaluation_has_a_bar_that_goes_away(terminal):
    shown = terminal()
    view = Live(shown.console)
    view.open(0, 2)
    view.evaluating(3, 10)
    assert "evaluating  " in shown.text
    assert "3/10 batches" in shown.text
    view.evaluated("step 1: eval_loss 1.0000")
    view.evaluation_over()
    view.close()
    assert shown.text.strip().splitlines()[0] == "step 1: eval_loss 1.0000"
    assert "evaluating" not in shown.text


def test_rows_are_counted_while_they_are_prepared(terminal):
    shown = terminal()
    with shown_by(Live(shown.console)):
        with stage("Preparing train_dataset", 16) as advance:
            assert "0/16 rows" in shown.text
            advance(10)
            assert "10/16 rows" in shown.text
            assert " 62%" in shown.text
            print("a format prints")
            advance(6)
        with stage("Loading the model"):
            print("a library's own bar")
    lines = shown.text.strip().splitlines()
    assert lines[0] == "a format prints"
    assert lines[1].startswith("Preparing train_dataset: 16 of 16 rows in ")
    assert lines[2:] == ["Loading the model …", "a library's own bar"]


def test_rows_that_fail_leave_the_count_and_the_streams(terminal):
    shown = terminal()

    def prepare():
        with shown_by(Live(shown.console)), stage("Preparing", 16) as advance:
            advance(10)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        prepare()
    print("after it")
    assert "10/16 rows" in shown.text.splitlines()[0]
    assert shown.text.strip().splitlines()[-1] == "after it"
    assert sys.stdout is shown.stream


def test_a_poor_encoding_gets_letters(terminal):
    shown = terminal()
    shown.stream.encoding = "latin-1"
    view = Live(shown.console)
    view.open(0, 100)
    for step in (1, 2):
        view.step(step, 1.0, 1.0)
        view.logged(figures(step, 3.0 - step, others=(("loss/日", "1"),)))
    view.close()
    text = shown.text
    assert text.isascii()
    assert "loss 1.0000  @_" in text


def test_a_signal_is_told_above(terminal):
    shown = terminal()
    view = Live(shown.console)
    view.open(0, 9)
    how_to_continue(signal.SIGINT, 3, None)
    view.step(4, 1.0, 1.0)
    view.close()
    first, last = shown.text.strip().splitlines()
    assert first.startswith("stopped by SIGINT after step 3.")
    assert last.startswith("step 4/9")


def test_a_signal_in_the_middle_of_a_drawing_is_told_after_it(terminal):
    shown = terminal()
    screen = Screen(shown.console)
    screen.open()
    write = shown.stream.write

    def interrupted(text: str) -> int:
        shown.stream.write = write
        assert screens.interrupted("a signal")
        return write(text)

    shown.stream.write = interrupted
    screen.draw([Text("the line")])
    screen.close()
    assert shown.text.strip().splitlines() == ["a signal", "the line"]


def test_what_a_forked_process_prints_stands_above(terminal):
    shown = terminal()
    view = Live(shown.console)
    view.open(0, 2)
    sys.stdout.write("begun before the fork")
    before = shown.stream.getvalue()
    for one in (sys.stdout, screens._open[-1]):
        one._process += 1  # as in a process that is not this one
    print("a worker", "prints")
    assert not screens.interrupted("a signal")
    assert shown.stream.getvalue() == before
    print("x" * 5000)  # more than a pipe takes in one piece
    assert shown.stream.getvalue() == before + "x" * 5000 + "\n"
    for one in (sys.stdout, screens._open[-1]):
        one._process -= 1
    view.step(1, 1.0, 1.0)
    view.close()
    assert "a worker prints" in shown.text.splitlines()


def test_a_full_pipe_makes_no_worker_wait(terminal):
    shown = terminal()
    view = Live(shown.console)
    view.open(0, 2)
    sys.stdout._process += 1
    for _ in range(2000):
        print("x" * 99)
    sys.stdout._process -= 1
    view.close()
    assert shown.stream.getvalue().count("x" * 99) == 2000


def test_a_terminal_that_becomes_narrower_keeps_one_view(terminal, monkeypatch):
    shown = terminal(80)
    screen = Screen(shown.console)
    screen.open()
    screen.draw([Text("x" * 70), Text("y")])
    monkeypatch.setattr(screen, "_size", lambda: (40, 24))
    assert screen._up() == "\r\x1b[3A"
    screen.close()


def test_many_prints_do_not_keep_the_view_from_moving(terminal, monkeypatch):
    shown = terminal()
    now = [100.0]
    monkeypatch.setattr(screens, "OFTEN", 0.25)
    monkeypatch.setattr(screens.time, "monotonic", lambda: now[0])
    view = Live(shown.console)
    view.open(0, 100)
    for step in range(1, 11):
        now[0] += 0.1
        print("a plugin prints")
        view.step(step, 1.0, 1.0)
    assert "step 9/100" in shown.text
    view.close()


def test_a_terminal_that_is_gone_ends_the_view_and_not_the_run(terminal):
    shown = terminal()
    view = Live(shown.console)
    view.open(0, 2)
    real = shown.stream.write

    def gone(text: str) -> int:
        raise OSError(5, "Input/output error")

    shown.stream.write = gone
    view.step(1, 1.0, 1.0)
    shown.stream.write = real
    view.step(2, 1.0, 1.0)
    view.close()
    assert sys.stdout is shown.stream
