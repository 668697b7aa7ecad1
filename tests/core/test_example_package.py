"""The example package passes its own tests once installed, and a run finds it by its columns."""

from __future__ import annotations

from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples/plugins/sftcore-alpaca-zh"


def test_the_example_package_passes_its_own_tests(python):
    shown = python(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(EXAMPLE), str(EXAMPLE / "tests"),
        "-k", "not TestAlpacaZh",  # which scripts/check-examples runs
        having=("sftcore-alpaca-zh",),
    )  # fmt: skip
    assert shown.returncode == 0, shown.stdout


def test_its_rows_are_read_by_format_auto(sftcore):
    shown = sftcore("explain", "model=some/model", f"data={EXAMPLE / 'examples.jsonl'}", having=("sftcore-alpaca-zh",))
    assert shown.returncode == 0, shown.stderr
    (line,) = [line for line in shown.stdout.splitlines() if line.split()[:1] == ["make_formatter"]]
    assert line.split()[1] == "alpaca-zh@sftcore-alpaca-zh"


def test_a_row_without_its_answer_is_named_by_file_and_number(sftcore, write):
    rows = write("rows.jsonl", '{"问题": "一？", "回答": "一。"}\n{"问题": "二？"}\n')
    shown = sftcore("train", "model=some/model", f"data={rows}", having=("sftcore-alpaca-zh",))
    assert shown.returncode == 1
    assert f'{rows} row 1: the column "回答" is missing' in shown.stderr


def test_the_module_stays_as_short_as_its_readme_says():
    code = (EXAMPLE / "sftcore_alpaca_zh.py").read_text(encoding="utf-8").splitlines()
    assert sum(1 for line in code if line.strip()) == 16
    assert "with 16 lines of Python" in (EXAMPLE / "README.md").read_text(encoding="utf-8")
