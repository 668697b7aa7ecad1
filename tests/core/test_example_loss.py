"""The example loss passes its own tests once installed, a run takes it by its name, and it stays short."""

from __future__ import annotations

from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples/plugins/sftcore-focal"
HAVING = ("sftcore-focal",)


def test_the_example_package_passes_its_own_tests(python):
    shown = python(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(EXAMPLE), str(EXAMPLE / "tests"),
        "-k", "not TestFocal",  # which scripts/check-examples runs
        having=HAVING,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stdout


def test_a_run_takes_it_by_its_name(sftcore, write):
    rows = write("rows.jsonl", '{"text": "a"}\n')
    shown = sftcore("explain", "model=some/model", f"data={rows}", "loss=focal", having=HAVING)
    assert shown.returncode == 0, shown.stderr
    (line,) = [line for line in shown.stdout.splitlines() if line.split()[:1] == ["make_loss"]]
    assert line.split()[1] == "focal@sftcore-focal"


def test_the_module_stays_as_short_as_its_readme_says():
    code = (EXAMPLE / "sftcore_focal.py").read_text(encoding="utf-8").splitlines()
    assert sum(1 for line in code if line.strip()) == 13
    assert "with 13 lines of Python" in (EXAMPLE / "README.md").read_text(encoding="utf-8")
