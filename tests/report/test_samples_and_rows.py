"""What the page shows of samples, and of rows that hurt: everything that the files hold, as text."""

from __future__ import annotations

import json
import re

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from sftcore.cli import cli
from sftcore.data.account.table import table_of, write_table
from sftcore.report.page import page_of
from sftcore.report.rows import hurting
from sftcore.report.rows.hurting import hurting_of
from sftcore.report.run import Run, read_run
from tests.report.test_page import HOSTILE, Reader, written

SHOWN = HOSTILE.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")


def answered(step, prompt, answer, **more):
    return {"step": step, "prompt": prompt, "answer": answer, "tokens": len(answer), "ended": True, **more}


def cells(page, kind):
    """The texts of the cells of a table, row by row."""
    table = re.search(rf'<table class="{kind}">(.*?)</table>', page, re.DOTALL)[1]
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    return [["".join(Reader(cell).shown) for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)] for row in rows]


def test_answers_stand_side_by_side_by_step(tmp_path):
    folder = written(tmp_path)
    entries = [answered(step, prompt, f"{prompt} at {step}", ended=step > 2)
               for step in (2, 10) for prompt in ("who", HOSTILE)]  # fmt: skip
    entries.append(answered(10, "who", "the second of this name", row="eval row 3"))
    (folder / "samples.jsonl").write_text("".join(json.dumps(one) + "\n" for one in entries) + '{"step": 3')
    found = cells(page_of(read_run(folder)), "samples")
    assert found[0] == ["asked", "step 2", "step 10"]
    assert found[1] == ["who", "who at 28 tokens, cut off", "who at 109 tokens, ended"]
    assert found[2][0] == SHOWN
    assert found[2][1].startswith(f"{SHOWN} at 2")
    assert found[3] == ["whoeval row 3", "", "the second of this name23 tokens, ended"]


def test_lines_that_no_run_writes_do_not_stop_the_page(tmp_path):
    folder = written(tmp_path)
    lines = [
        '{"step": NaN}',
        '{"step": 1e999, "prompt": "a"}',
        '{"step": 1}',
        "[]",
        '{"step": 2.5, "prompt": 3, "answer": null}',
    ]
    (folder / "samples.jsonl").write_text("\n".join(lines))
    assert cells(page_of(read_run(folder)), "samples") == [
        ["asked", "step 1", "step 2"], ["", "cut off", ""], ["3", "", "Nonecut off"]
    ]  # fmt: skip


def test_a_long_run_shows_steps_at_even_distances_and_stays_small():
    steps = range(0, 20_000, 20)
    run = Run("long", samples=tuple(answered(step, f"{n}?", "word " * 240) for step in steps for n in range(5)))
    page = page_of(run)
    assert len(page.encode()) < 1e6
    shown = cells(page, "samples")[0][1:]
    assert (shown[0], shown[-1]) == ("step 0", "step 19,980")
    gaps = np.diff([int(one.removeprefix("step ").replace(",", "")) for one in shown])
    assert gaps.max() - gaps.min() <= 20


def test_the_last_answers_of_several_runs_are_compared(tmp_path):
    folders = []
    for name in ("one", "two"):
        folder = written(tmp_path / name)
        (folder / "samples.jsonl").write_text(
            "".join(json.dumps(answered(step, "who", f"{name} at {step}")) + "\n" for step in (1, 2))
        )
        folders.append(str(folder))
    output = tmp_path / "both.html"
    assert CliRunner().invoke(cli, ["report", *folders, "-o", str(output)]).exit_code == 0
    assert cells(output.read_text(), "samples") == [
        ["asked", "one, step 2", "two, step 2"],
        ["who", "one at 28 tokens, ended", "two at 28 tokens, ended"],
    ]


@pytest.fixture
def listed(tmp_path):
    """A run with 60 rows of two files, whose losses over three epochs are known."""
    folder = written(tmp_path / "run")
    numbers = np.arange(60)
    losses = [[3.0, 3.0, 3.0 - n / 100] if n % 2 else [2.0, 0.2, 1.0 + n / 100] for n in numbers]
    names = ["a.jsonl" if n < 40 else "b.jsonl" for n in numbers]
    for name, count in (("a.jsonl", 40), ("b.jsonl", 20)):
        rows = [{"text": f"{name} {n} {HOSTILE}"} for n in range(count)]
        (tmp_path / name).write_text("".join(json.dumps(one) + "\n" for one in rows))
    columns = {
        "set": "train", "source": names, "file": [str(tmp_path / name) for name in names], "row": numbers,
        "file_row": [n if n < 40 else n - 40 for n in numbers], "outcome": "kept", "supervised": np.full(60, 7),
        "epochs": pa.array([[1, 2, 3]] * 60, pa.list_(pa.int32())), "loss": pa.array(losses, pa.list_(pa.float32())),
        "loss_tokens": pa.array([[7, 7, 7]] * 60, pa.list_(pa.int32())),
    }  # fmt: skip
    write_table(table_of(columns, 60), folder / "rows.parquet", {"loss": "nll", "epochs": [1, 2, 3], "of": "run"})
    return folder


def test_rows_that_hurt_have_their_file_row_losses_and_text(listed, tmp_path):
    worst, late, jumps = hurting_of(listed)
    assert [one.what for one in (worst, late, jumps)] == ["worst", "late", "jumps"]
    first = worst.rows[0]
    assert first.place == f"{tmp_path / 'a.jsonl'} row 1"
    assert first.losses == pytest.approx((3.0, 3.0, 2.99))
    assert json.loads(first.text) == {"text": f"a.jsonl 1 {HOSTILE}"}
    assert jumps.rows[0].place == f"{tmp_path / 'b.jsonl'} row 18"
    assert late.rows
    assert {row.source for row in worst.rows} == {"a.jsonl", "b.jsonl"}
    page = page_of(read_run(listed))
    found = Reader(page)
    assert len(found.scripts) == 3
    assert [one for one in found.tags if one[0] == "img"] == []
    assert any(f'{{"text": "a.jsonl 1 {SHOWN[:20]}' in one for one in found.shown)


def test_text_of_rows_is_left_out_where_it_would_take_long_or_be_published(listed, monkeypatch):
    (listed / "manifest.json").write_text(json.dumps({"settings": {"push_to_hub": True}}))
    assert all(row.text is None for one in read_run(listed).hurting for row in one.rows)
    monkeypatch.setattr(hurting, "_READ", 10)
    hurting._hurting.cache_clear()
    found = hurting_of(listed)
    assert all(row.text is None for one in found for row in one.rows)
    assert "large" in found[0].notes[0]
    hurting._hurting.cache_clear()


def test_a_list_of_very_many_rows_does_not_hold_up_the_page(listed, monkeypatch):
    monkeypatch.setattr(hurting, "_LISTED", 59)
    hurting._hurting.cache_clear()
    assert hurting_of(listed) == ()
    hurting._hurting.cache_clear()


def test_a_run_without_losses_of_rows_has_no_such_section(tmp_path, listed):
    assert hurting_of(written(tmp_path / "other")) == ()
    (listed / "rows.parquet").write_bytes(b"no list")
    assert hurting_of(listed) == ()
    assert "Rows that hurt" not in page_of(read_run(listed))
