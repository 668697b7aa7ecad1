"""What is found: names, distributions, and errors where a name has no or two owners."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sftcore.core.discovery import Catalog, PluginEntry, discover
from sftcore.core.errors import DuplicatePluginError, PluginError, UnknownPluginError


def test_a_third_partys_plugin_stands_beside_the_built_in_ones(install):
    catalog = install("acme-rope")
    entry = catalog.find("kernel", "acme-rope")
    assert (entry.distribution, entry.version, entry.value) == ("acme-rope", "1.2.0", "acme_rope:Rope")
    assert catalog.find("format", "text").distribution == "sftcore"


def test_a_search_path_leaves_out_what_lies_elsewhere(distributions):
    catalog = discover([str(distributions["acme-loss"])])
    assert [(entry.kind, entry.name) for entry in catalog.entries] == [("kernel", "fused-loss"), ("loss", "smoothed")]


def test_a_distribution_that_stands_twice_on_the_path_counts_once(distributions, tmp_path):
    shutil.copytree(distributions["acme-rope"], tmp_path, dirs_exist_ok=True)
    (entry,) = discover([str(tmp_path), str(distributions["acme-rope"])]).entries
    assert entry.name == "acme-rope"


def test_a_name_of_sftcore_keeps_its_meaning_when_another_distribution_offers_it(install):
    assert install("acme-chat").find("format", "chat").distribution == "sftcore"
    assert discover().find("format", "chat", "acme-chat").distribution == "acme-chat"


def test_a_name_from_two_distributions_is_an_error_that_lists_both():
    entries = tuple(PluginEntry("format", "faq", name, "1.0", f"{name}:Faq") for name in ("acme", "zeta"))
    with pytest.raises(DuplicatePluginError) as error:
        Catalog(entries).find("format", "faq", where="recipe.yaml: format")
    text = str(error.value)
    assert text.startswith('recipe.yaml: format: 2 distributions offer format "faq": faq@acme, faq@zeta')


def test_a_name_that_one_distribution_declares_twice_is_an_error_that_names_both_places():
    entries = tuple(PluginEntry("format", "faq", "acme", "1.0", f"acme.{name}:Faq") for name in ("one", "two"))
    with pytest.raises(DuplicatePluginError, match=r'acme declares format "faq" twice: "acme.one'):
        Catalog(entries).find("format", "faq")


def test_a_plugin_for_a_newer_sftcore_is_told_so(write_distribution, set_up):
    code = "from sftcore import hookimpl, plugin\n@plugin\nclass New:\n    'New.'\n    @hookimpl\n"
    code += "    def make_formatter(self, columns):\n        return len\n"
    metadata = "Requires-Dist: sftcore>=99\n"
    write_distribution("newer_acme", code, entry_points=b"[sftcore.format]\nnew = newer_acme:New\n", metadata=metadata)
    with pytest.warns(UserWarning, match=r'format "new@newer_acme" 1.0 needs sftcore>=99, and this is .* pip install'):
        set_up(format="new")


def test_the_list_shows_a_shared_name_as_ambiguous_and_how_to_write_it(sftcore):
    shown = sftcore("list-plugins", "--json", "--kind", "format", having=("acme-chat",))
    rows = [row for row in json.loads(shown.stdout)["plugins"] if row["name"] == "chat"]
    assert {row["distribution"]: (row["status"], row["why"]) for row in rows} == {
        "acme-chat": ("ambiguous", "also from sftcore: write chat@acme-chat"),
        "sftcore": ("usable", "also from acme-chat: write chat@acme-chat for that"),
    }


@pytest.mark.parametrize("distribution", ["sftcore", "acme-chat"])
def test_name_at_distribution_picks_one_of_two(install, set_up, distribution):
    install("acme-chat")
    (chosen,) = [one for one in set_up(format=f"chat@{distribution}").plugins.bound if one.entry.kind == "format"]
    assert chosen.entry.distribution == distribution
    assert type(chosen.plugin).__module__ == {"sftcore": "sftcore_plugins.formats.chat", "acme-chat": "acme_chat"}[
        distribution
    ]  # fmt: skip


def test_a_distribution_is_compared_by_its_normalised_name(install):
    assert install("acme-chat").find("format", "chat", "Acme_Chat").distribution == "acme-chat"


def test_a_distribution_that_does_not_offer_the_name_is_refused_with_those_that_do():
    with pytest.raises(UnknownPluginError, match='no format named "chat" in the distribution "acme"') as error:
        discover().find("format", "chat", "acme")
    assert 'It comes from: "sftcore"' in str(error.value)


def test_an_unknown_plugin_offers_the_nearest_name(set_up):
    with pytest.raises(UnknownPluginError) as error:
        set_up(adapter="lorra")
    assert str(error.value) == (
        'recipe.yaml: adapter: there is no adapter named "lorra". Did you mean "lora"? '
        "All names: sftcore list-plugins --kind adapter."
    )


def test_an_unknown_plugin_without_a_near_name_offers_none(set_up):
    with pytest.raises(UnknownPluginError, match='no noise named "xyzzy"') as error:
        set_up(noise="xyzzy")
    assert "Did you mean" not in str(error.value)


def test_a_third_partys_name_is_offered_too(install, set_up):
    install("sftcore-alpaca-zh")
    with pytest.raises(UnknownPluginError, match='Did you mean "alpaca-zh"'):
        set_up(format="alpaca-hz")


def test_several_faults_are_shown_at_once(set_up):
    with pytest.raises(ValueError, match="2 problems were found") as error:
        set_up(adapter="lorra", noise="xyzzy")
    assert not isinstance(error.value, PluginError)
    assert 'no adapter named "lorra"' in str(error.value)
    assert 'no noise named "xyzzy"' in str(error.value)


def test_an_installed_plugin_that_nobody_named_is_not_part_of_the_run(install, set_up):
    install("acme-rope", "bolt-kernels", "acme-loss")
    assert {one.entry.distribution for one in set_up().plugins.bound} == {"sftcore"}


def test_the_core_names_no_built_in_module():
    core = Path(__file__).parents[2] / "sftcore"
    assert [str(file) for file in core.rglob("*.py") if "sftcore_plugins" in file.read_text(encoding="utf-8")] == []
