"""`sftcore plugin test` runs the tests of a kind on a folder, a distribution or a plugin, and says what came out."""

from __future__ import annotations

import json

import pytest

from sftcore.core.errors import PluginError, UnknownPluginError
from sftcore.scaffold.new_plugin import new_plugin
from sftcore.testing import targets
from tests.commands import sftcore


def names(target):
    with targets.found(target) as found:
        return [f"{entry.kind}:{entry.name}@{entry.distribution}" for entry in found.entries]


# --- What is tested ---------------------------------------------------------------------------------------------------
def test_a_plugin_is_found_by_its_name_with_its_kind_where_two_have_it():
    assert names("nll") == names("loss:nll") == names("nll@sftcore") == ["loss:nll@sftcore"]
    assert names("loss:liger") == ["loss:liger@sftcore"]
    with pytest.raises(PluginError, match=r'"liger" is the name of 2 plugins\. Write one of "kernel:liger@sftcore"'):
        names("liger")


def test_a_distribution_gives_all_its_plugins():
    assert {"loss:nll@sftcore", "format:alpaca@sftcore", "noise:neftune@sftcore"} <= set(names("sftcore"))


def test_a_folder_need_not_be_installed(tmp_path):
    folder = new_plugin("loss", "bold", tmp_path)
    assert names(str(folder)) == ["loss:bold@sftcore-bold"]
    with pytest.raises(UnknownPluginError, match='named "bold"'):
        names("bold")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "has no pyproject.toml"),
        ("[project", "cannot be read"),
        ('[project]\nname = "x"\n', "offers no plugin"),
        (
            '[project]\nname = "x"\n[project.entry-points."sftcore.fromat"]\na = "b:C"\n',
            'Did you mean "sftcore.format"?',
        ),
    ],
)
def test_a_folder_that_offers_nothing_is_told_so(tmp_path, text, said):
    if text is not None:
        (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(PluginError) as caught:
        names(str(tmp_path))
    assert said in str(caught.value)


def test_an_unknown_name_offers_the_nearest():
    with pytest.raises(UnknownPluginError, match='Did you mean "alpaca"'):
        names("alpacca")


# --- What is said -----------------------------------------------------------------------------------------------------
def test_a_new_plugin_passes_its_own_tests_and_those_of_its_kind(tmp_path):
    folder = new_plugin("format", "my-faq", tmp_path)
    shown = sftcore("plugin", "test", str(folder))
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "format my-faq (sftcore-my-faq 0.1.0)" in shown.stdout
    assert "  passed     what should count counts and nothing else" in shown.stdout
    assert "its own tests\n  passed     other columns are read by options" in shown.stdout
    assert shown.stdout.endswith("15 passed.\n")


@pytest.mark.slow
def test_one_that_trains_passes_where_it_stands(tmp_path):
    folder = new_plugin("noise", "my-hiss", tmp_path)
    shown = sftcore("plugin", "test", str(folder))
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "  passed     a run trains with it, padded" in shown.stdout


def test_what_is_wrong_is_named_and_the_exit_code_is_1(tmp_path):
    folder = new_plugin("format", "my-faq", tmp_path)
    module = folder / "sftcore_my_faq.py"
    module.write_text(module.read_text().replace("def read(row):\n", "def read(row):\n            row = row.copy\n"))
    shown = sftcore("plugin", "test", str(folder))
    assert shown.returncode == 1
    assert "  FAILED     each row becomes examples\n" in shown.stdout
    assert 'format "my-faq": reading row 0' in shown.stdout
    assert "Traceback" not in shown.stdout + shown.stderr


def test_a_module_that_does_not_import_is_named(tmp_path):
    folder = new_plugin("format", "my-faq", tmp_path)
    (folder / "sftcore_my_faq.py").write_text("import nothing_of_this_name\n")
    shown = sftcore("plugin", "test", str(folder))
    assert shown.returncode == 1
    assert "No module named 'nothing_of_this_name'" in shown.stdout
    assert "Traceback" not in shown.stdout + shown.stderr


def test_a_format_without_known_rows_is_tested_with_those_that_are_given(tmp_path):
    folder = new_plugin("format", "my-faq", tmp_path)
    module = folder / "sftcore_my_faq.py"
    module.write_text(module.read_text().replace('str = "question"', 'str = "frage"').replace('"answer"', '"antwort"'))
    (folder / "tests/test_sftcore_my_faq.py").unlink()
    without = sftcore("plugin", "test", str(folder))
    assert without.returncode == 0, without.stdout
    assert "  not tried  each row becomes examples\n             there are no rows to read" in without.stdout
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"frage": "Wo?", "antwort": "Dort drüben."}) + "\n", encoding="utf-8")
    shown = sftcore("plugin", "test", str(folder), "--data", str(rows))
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert shown.stdout.endswith("14 passed.\n")


def test_an_own_plugin_is_tested_by_its_name():
    shown = sftcore("plugin", "test", "format:alpaca")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert shown.stdout.endswith("14 passed.\n")
