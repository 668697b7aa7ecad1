"""Distributions that are odd in ways that pip would not let pass, or that only show when their code runs."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from sftcore.cli import cli
from sftcore.core.errors import BrokenPluginError

PLUGIN = '''
import attrs
from sftcore import Example, hookimpl, plugin

print("acme says hello")

@plugin
class Odd:
    """An odd format."""

    first: str = "a"
    second: str = attrs.Factory(lambda self: self.first * 2, takes_self=True)

    @hookimpl
    def make_formatter(self, {arguments}):
        return lambda row: Example(text=row["text"])
'''


def test_metadata_with_a_requirement_that_cannot_be_parsed_hide_no_plugin(write_distribution):
    catalog = write_distribution(
        "odd_requirement", "", entry_points=b"[sftcore.format]\nodd = odd_requirement:Odd\n",
        metadata='Requires-Dist: no requirement at all (>=2); extra == "odd"\n',
    )  # fmt: skip
    assert catalog.find("format", "text").distribution == "sftcore"
    assert catalog.find("format", "odd").missing


def test_entry_points_that_are_no_utf8_hide_no_plugin(write_distribution):
    catalog = write_distribution("odd_bytes", "", entry_points=b"[sftcore.format]\n\xff\xfe = odd_bytes:Odd\n")
    assert catalog.find("format", "text").distribution == "sftcore"


def test_json_stays_json_when_a_plugins_module_prints(write_distribution):
    write_distribution(
        "odd_printer",
        PLUGIN.format(arguments="columns").replace(
            "attrs.Factory(lambda self: self.first * 2, takes_self=True)", "'b'"
        ),
        entry_points=b"[sftcore.format]\nodd = odd_printer:Odd\n",
    )
    with pytest.warns(UserWarning, match=r'format "odd@odd_printer" 1.0 prints when it is imported: "acme says hello"'):
        shown = CliRunner().invoke(cli, ["list-plugins", "--details", "--json", "--kind", "format"])
    assert "odd" in {row["name"] for row in json.loads(shown.stdout)["plugins"]}


def test_a_default_that_depends_on_another_option_is_listed(write_distribution):
    write_distribution(
        "odd_default",
        PLUGIN.format(arguments="columns").replace('print("acme says hello")', ""),
        entry_points=b"[sftcore.format]\nodd = odd_default:Odd\n",
    )
    shown = CliRunner().invoke(cli, ["list-plugins", "--details", "--json", "--kind", "format"])
    (row,) = [row for row in json.loads(shown.stdout)["plugins"] if row["name"] == "odd"]
    assert row["status"] == "usable"
    assert [(option["name"], option["default"]) for option in row["options"]] == [("first", "a"), ("second", "aa")]


def test_a_keyword_only_hook_argument_is_refused_by_its_name(write_distribution, set_up):
    write_distribution(
        "odd_keyword", PLUGIN.format(arguments="*, columns"), entry_points=b"[sftcore.format]\nodd = odd_keyword:Odd\n"
    )
    with pytest.raises(BrokenPluginError) as error:
        set_up(format="odd")
    text = str(error.value)
    assert 'format "odd@odd_keyword" does not fit the hooks' in text
    assert "columns" in text
