"""`sftcore new-plugin` writes distributions whose tests pass as they stand, and refuses names that cannot be had."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from sftcore.cli import cli
from sftcore.core.errors import RecipeError
from sftcore.core.types import KINDS
from sftcore.scaffold.new_plugin import new_plugin

FILES = {"pyproject.toml", "README.md", ".gitignore", ".github/workflows/tests.yml", "tests/conftest.py"}


def pytest_of(folders, *arguments):
    """Run the tests of new distributions in a process of their own, in which they are not installed."""
    path = os.pathsep.join([*map(str, folders), *filter(None, sys.path)])
    tests = [str(folder / "tests") for folder in folders]
    # a part of what was captured is enough: torch.compile would fill it
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--show-capture=no", *arguments, *tests]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folders[0], env=environment, capture_output=True, text=True)


@pytest.fixture
def written(tmp_path):
    return {kind: new_plugin(kind, f"my-{kind}", tmp_path) for kind in KINDS}


def test_each_kind_is_a_complete_distribution(written):
    for kind, folder in written.items():
        module = f"sftcore_my_{kind}"
        found = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
        assert found == {*FILES, f"{module}.py", f"tests/test_{module}.py"}
        text = "".join(file.read_text(encoding="utf-8") for file in folder.rglob("*") if file.is_file())
        for word in ("kind", "name", "module", "distribution", "class", "summary", "use"):
            assert f"@{word}@" not in text
        assert f'[project.entry-points."sftcore.{kind}"]\nmy-{kind} = "{module}:My{kind.capitalize()}"' in text
        lines = (folder / f"{module}.py").read_text(encoding="utf-8").splitlines()
        assert sum(1 for line in lines if line.strip()) < 40


def test_the_code_is_as_ruff_would_have_it(written):
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "E,F,I,B,UP,W", "--line-length", "120"]
    known = "--config=lint.isort.known-first-party=['sftcore']"
    done = subprocess.run([*command, known, *map(str, written.values())], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_tests_pass_as_they_are_written(written):
    done = pytest_of([*written.values()], "-k", "not accelerator and not trains and not worker and not saved_loaded")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "failed" not in done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_the_tests_that_train_pass_as_they_are_written(written):
    done = pytest_of([*written.values()], "-k", "accelerator or trains or worker or saved_loaded")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "skipped" not in done.stdout.splitlines()[-1]


# --- Names ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("fromat", "faq", 'no kind of plugin named "fromat". Did you mean "format"?'),
        ("format", "My FAQ", ": my-faq"),
        ("format", "my_faq", ": my-faq"),
        ("format", "MyFAQ", ": my-faq"),
        ("format", "-faq", ": faq"),
        ("format", "faq-", ": faq"),
        ("format", "9lives", ": lives"),
        ("format", "", "cannot be the name"),
        ("format", "日本", "cannot be the name"),
        ("format", "../faq", ": faq"),
        ("format", "auto", "leaves a choice open"),
        ("format", "alpaca", r'format "alpaca" is installed already, by sftcore .*my-alpaca'),
        ("format", "prompt-completion", "is installed already"),
    ],
)
def test_a_name_that_no_plugin_can_have_is_refused(tmp_path, kind, name, said):
    with pytest.raises(RecipeError, match=said):
        new_plugin(kind, name, tmp_path)
    assert not [*tmp_path.iterdir()]


def test_a_folder_that_exists_is_left_alone(tmp_path):
    (tmp_path / "sftcore-faq").mkdir()
    with pytest.raises(RecipeError, match="exists"):
        new_plugin("format", "faq", tmp_path)


def test_the_name_of_one_kind_may_be_that_of_another(tmp_path):
    assert new_plugin("noise", "alpaca", tmp_path).name == "sftcore-alpaca"


@pytest.mark.parametrize(("kind", "name"), [("format", "example"), ("loss", "token-loss"), ("noise", "none")])
def test_a_name_that_the_code_has_already_gets_the_kind_behind_it(tmp_path, kind, name):
    folder = new_plugin(kind, name, tmp_path)
    (module,) = folder.glob("*.py")
    compile(module.read_text(encoding="utf-8"), str(module), "exec")
    assert f"{kind.capitalize()}:" in module.read_text(encoding="utf-8")


def test_the_command_says_what_it_wrote_and_what_comes_next(tmp_path):
    shown = CliRunner().invoke(cli, ["new-plugin", "loss", "sftcore-bold", "--path", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    assert f"written: {tmp_path / 'sftcore-bold'}" in shown.output
    assert "  tests/test_sftcore_bold.py" in shown.output
    assert "sftcore plugin test" in shown.output
