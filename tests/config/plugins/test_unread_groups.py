"""A group of entry points that is spelt almost right is named where its author looks; another's own groups are not."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from sftcore.cli import cli
from sftcore.config.plugins.unread_groups import GROUPS, near_group, unread_groups
from sftcore.core.errors import PluginError, UnknownPluginError
from sftcore.testing.targets import found
from tests.core.conftest import set_up, write_distribution  # noqa: F401

CODE = "from sftcore import hookimpl, plugin\n"


@pytest.mark.parametrize(
    ("group", "near"),
    [
        ("sftcore.formats", "sftcore.format"),
        ("sftcore_format", "sftcore.format"),
        ("sftcore-format", "sftcore.format"),
        ("sftcore:format", "sftcore.format"),
        ("sftcore/format", "sftcore.format"),
        ("sftcore.Format", "sftcore.format"),
        ("SFTCore.format", "sftcore.format"),
        ("sft_core.format", "sftcore.format"),
        ("stfcore.format", "sftcore.format"),
        ("sftcore.plugins.format", "sftcore.format"),
        ("sftcore.format.plugins", "sftcore.format"),
        ("sftcore.noises", "sftcore.noise"),
        ("sftcore.losses", "sftcore.loss"),
        ("sftcore.collators", "sftcore.collator"),
        ("sftcore.data_collator", "sftcore.collator"),
        ("sftcore.attentions", "sftcore.attention"),
        ("sftcore.kernels", "sftcore.kernel"),
        ("sftcore", "sftcore."),
        ("sftcore.plugins", "sftcore."),
        ("sftcore.optimizer", "sftcore."),
    ],
)
def test_what_is_almost_a_group_is_near_it(group, near):
    assert near_group(group) == near


@pytest.mark.parametrize(
    "group",
    ["console_scripts", "gui_scripts", "pytest11", "sftcore_acme.templates", "mysftcore.format", "transformers.loss",
     "datasets.format", "sphinx.html_themes", "core.format", ""],
)  # fmt: skip
def test_groups_of_others_are_left_alone(group):
    assert near_group(group) == ""


def test_a_group_is_near_itself_alone():
    assert [near_group(group) for group in GROUPS] == list(GROUPS)


@pytest.fixture
def misspelt(write_distribution):  # noqa: F811
    write_distribution("acme_near", CODE, entry_points=b"[sftcore.formats]\nfaq = acme_near:FAQ\n# faq2 = x\n")


def test_those_of_installed_distributions_are_found(misspelt):
    (one,) = [one for one in unread_groups() if one.distribution == "acme-near"]
    assert (one.group, one.names, one.near) == ("sftcore.formats", ("faq",), "sftcore.format")


def test_nothing_is_said_of_distributions_that_are_right(write_distribution):  # noqa: F811
    entries = (
        b"[sftcore.loss]\nfocal = acme_right:F\n[console_scripts]\nacme = acme_right:main\n[sftcore_acme.x]\ny = z\n"
    )
    write_distribution("acme_right", CODE, entry_points=entries)
    assert [one for one in unread_groups() if one.distribution == "acme-right"] == []


def test_list_plugins_warns_and_its_json_lists_them(misspelt):
    shown = CliRunner().invoke(cli, ["list-plugins", "--kind", "loss"], catch_exceptions=False)
    assert 'warning: acme-near 1.0 offers faq in the group "sftcore.formats" of entry points' in shown.stderr
    assert 'Did you mean "sftcore.format"?' in shown.stderr
    listed = CliRunner().invoke(cli, ["list-plugins", "--json"], catch_exceptions=False)
    groups = {one["distribution"]: one for one in json.loads(listed.stdout)["unread_groups"]}
    assert groups["acme-near"]["near"] == "sftcore.format"


def test_a_recipe_that_names_such_a_plugin_is_told_why_it_is_not_there(misspelt, set_up):  # noqa: F811
    with pytest.raises(UnknownPluginError, match=r'no format named "faq"\. acme-near 1\.0 offers faq in the group'):
        set_up(format="faq")


@pytest.mark.parametrize("name", ["faq", "format:faq", "acme-near", "acme_near"])
def test_plugin_test_is_told_too(misspelt, name):
    with pytest.raises(PluginError, match=r'in the group "sftcore\.formats"'), found(name):
        pass


def test_plugin_test_reads_it_in_a_folder(tmp_path):
    project = '[project]\nname = "acme"\n[project.entry-points."sftcore_format"]\nfaq = "acme:FAQ"\n'
    (tmp_path / "pyproject.toml").write_text(project, encoding="utf-8")
    said = r'"sftcore_format", which nobody reads\. Did you mean "sftcore\.format"\?'
    with pytest.raises(PluginError, match=said), found(str(tmp_path)):
        pass
