"""A broken plugin hurts nobody who did not select it, and stops a run that did: named, with its cause."""

from __future__ import annotations

import json

import pytest

from sftcore.cli import cli
from sftcore.core.errors import BrokenPluginError

CHAT_ROW = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}\n'


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(CHAT_ROW, encoding="utf-8")
    return path


def test_an_import_error_is_a_broken_line_in_the_details(sftcore):
    shown = sftcore("list-plugins", "--kind", "format", "--details", having=("acme-broken",))
    assert shown.returncode == 0, shown.stderr
    (line,) = [line for line in shown.stdout.splitlines() if "acme-broken" in line]
    assert line.split()[:5] == ["format", "broken", "acme-broken", "1.2.0", "broken"]
    assert "ImportError: libacme.so.3: cannot open shared object file" in line


def test_the_list_without_details_imports_no_broken_plugin(sftcore):
    shown = sftcore("list-plugins", "--json", "--kind", "format", having=("acme-broken",))
    (row,) = [row for row in json.loads(shown.stdout)["plugins"] if row["name"] == "broken"]
    assert (row["status"], row["why"]) == ("usable", "")


def test_a_broken_plugin_that_nobody_selected_stops_no_run(sftcore, rows):
    shown = sftcore("explain", "model=some/model", f"data={rows}", "format=chat", having=("acme-broken",))
    assert (shown.returncode, shown.stderr) == (0, "")


def test_a_selected_plugin_that_does_not_import_stops_the_run_with_its_cause(install, set_up):
    install("acme-broken")
    with pytest.raises(BrokenPluginError) as error:
        set_up(format="broken")
    assert isinstance(error.value.__cause__, ImportError)
    text = str(error.value)
    assert text.startswith('recipe.yaml: format: format "broken@acme-broken" cannot be imported')
    assert "ImportError: libacme.so.3: cannot open shared object file" in text


@pytest.mark.parametrize("verb", ["train", "explain"])
def test_the_command_line_shows_a_broken_plugin_as_one_message(sftcore, rows, verb):
    shown = sftcore(verb, "model=some/model", f"data={rows}", "format=broken", having=("acme-broken",))
    assert shown.returncode == 1
    assert shown.stderr.startswith('error: command line: format: format "broken@acme-broken" cannot be imported')
    assert "Traceback" not in shown.stderr


HEAVY = """
import sys
from sftcore.config.plugins.observed import loaded
from sftcore.core.discovery import discover
from sftcore.core.errors import BrokenPluginError
catalog = discover()
loaded(catalog.find("format", "text"))
loaded(catalog.find("format", "alpaca-zh"))
print("torch" in sys.modules)
heavy = catalog.find("format", "heavy")
for _ in range({times}):
    try:
        loaded(heavy)
    except BrokenPluginError as error:
        print(error)
print("torch" in sys.modules)
"""


def test_a_module_that_imports_torch_at_its_top_is_refused(python):
    shown = python("-c", HEAVY.format(times=1), having=("acme-heavy", "sftcore-alpaca-zh"))
    before, refusal, after = shown.stdout.splitlines()
    assert (before, after) == ("False", "True"), "torch comes from this plugin and from nothing before it"
    assert refusal.startswith('format "heavy@acme-heavy" imports torch at the top of a module it loads')
    assert refusal.endswith("Move that import into the hook that needs it.")


def test_a_module_that_was_refused_for_torch_stays_refused(python):
    shown = python("-c", HEAVY.format(times=2), having=("acme-heavy", "sftcore-alpaca-zh"))
    before, *refusals, after = shown.stdout.splitlines()
    assert (before, after) == ("False", "True")
    assert len(refusals) == 2
    assert refusals[0] == refusals[1]


def test_a_run_that_selects_a_module_with_torch_at_its_top_is_stopped(sftcore, rows):
    shown = sftcore("explain", "model=some/model", f"data={rows}", "format=heavy", having=("acme-heavy",))
    assert shown.returncode == 1
    assert 'format "heavy@acme-heavy" imports torch at the top' in shown.stderr


def test_a_misspelled_hook_is_refused_with_kind_distribution_and_nearest_hook(install, set_up):
    install("acme-misspelled")
    with pytest.raises(BrokenPluginError) as error:
        set_up(format="misspelled")
    text = str(error.value)
    assert 'format "misspelled@acme-misspelled" implements "make_formater"' in text
    assert 'Did you mean "make_formatter"?' in text


def test_a_stray_hook_argument_is_refused_by_its_name(install, set_up):
    install("acme-stray")
    with pytest.raises(BrokenPluginError) as error:
        set_up(format="stray")
    text = str(error.value)
    assert 'format "stray@acme-stray" does not fit the hooks' in text
    assert "tokenizer" in text


def test_a_class_that_is_no_plugin_is_refused_with_the_decorator_to_add(install, set_up):
    install("acme-undecorated")
    with pytest.raises(BrokenPluginError) as error:
        set_up(format="undecorated")
    text = str(error.value)
    assert 'format "undecorated@acme-undecorated" points to acme_undecorated:Undecorated' in text
    assert "Decorate the class with @sftcore.plugin." in text


def test_a_plugin_that_fails_to_say_what_it_claims_is_named(install, set_up):
    install("acme-raising")
    with pytest.raises(BrokenPluginError) as error:
        set_up(kernel="raising")
    text = str(error.value)
    assert 'kernel "raising@acme-raising"' in text
    assert "ZeroDivisionError: acme divided by zero" in text


@pytest.mark.parametrize(
    ("distribution", "cause"),
    [
        ("acme-misspelled", "make_formater"),
        ("acme-stray", "tokenizer"),
        ("acme-undecorated", "not a plugin class"),
        ("acme-raising", "acme divided by zero"),
    ],
)
def test_the_details_show_each_misfit_as_broken(install, distribution, cause):
    from click.testing import CliRunner

    install(distribution)
    kind = "kernel" if distribution == "acme-raising" else "format"
    shown = CliRunner().invoke(cli, ["list-plugins", "--kind", kind, "--details", "--json"])
    (row,) = [row for row in json.loads(shown.stdout)["plugins"] if row["distribution"] == distribution]
    assert row["status"] == "broken"
    assert cause in row["why"]
