"""Blocking: from the command line, the recipe and the environment, and patterns that would block nothing."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from sftcore.cli import cli
from sftcore.config.plugins.blocked import Blocklist
from sftcore.core.errors import BlockedPluginError, RecipeError
from sftcore.data.format import choose_format

RUN = ["explain", "model=some/model", "data=owner/set", "format=alpaca"]
BLOCKED = 'format "alpaca" is blocked'


@pytest.fixture(autouse=True)
def nothing_blocked_outside(monkeypatch):
    monkeypatch.delenv("SFTCORE_BLOCK", raising=False)


def test_the_command_line_blocks_a_plugin():
    assert CliRunner().invoke(cli, RUN).exit_code == 0
    result = CliRunner().invoke(cli, [*RUN, "--block", "format:alpaca"])
    assert isinstance(result.exception, BlockedPluginError)
    assert BLOCKED in str(result.exception)


@pytest.mark.parametrize("block", ["format:alpaca", ["adapter:lora", "format:alpaca"], ["format:alpaca@sftcore"]])
def test_a_recipe_blocks_a_plugin(set_up, block):
    with pytest.raises(BlockedPluginError, match=f"recipe.yaml: format: {BLOCKED}"):
        set_up(format="alpaca", block=block)


@pytest.mark.parametrize("value", ["format:alpaca", "adapter:lora,format:alpaca", "adapter:lora  format:alpaca"])
def test_the_environment_blocks_a_plugin(set_up, monkeypatch, value):
    monkeypatch.setenv("SFTCORE_BLOCK", value)
    with pytest.raises(BlockedPluginError, match=BLOCKED):
        set_up(format="alpaca")


def test_the_command_line_adds_to_what_the_recipe_blocks(write):
    recipe = write("recipe.yaml", "{model: some/model, data: owner/set, format: alpaca, block: 'format:alpaca'}")
    result = CliRunner().invoke(cli, ["explain", str(recipe), "--block", "adapter:lora"])
    assert isinstance(result.exception, BlockedPluginError)


def test_a_blocked_default_is_an_error_too(set_up):
    with pytest.raises(BlockedPluginError, match='loss "nll" is blocked'):
        set_up(block="loss:nll")


def test_a_pattern_with_a_distribution_leaves_the_same_name_from_another(install, set_up):
    install("acme-chat")
    setup = set_up(format="chat@sftcore", block="format:chat@acme-chat")
    assert "chat" in {one.entry.name for one in setup.plugins.bound}
    with pytest.raises(BlockedPluginError, match='format "chat@acme-chat" is blocked'):
        set_up(format="chat@acme-chat", block="format:chat@Acme_Chat")


def test_format_auto_does_not_ask_a_blocked_format(install, set_up):
    install("acme-chat")
    setup = set_up(block="format:chat@acme-chat")
    chosen = choose_format(setup, ["messages"], "rows.jsonl")
    assert chosen.entry.distribution == "sftcore"


@pytest.mark.parametrize("pattern", ["alpaca", "format:", ":alpaca", "formats:alpaca", "format/alpaca"])
def test_a_malformed_pattern_is_refused_with_its_shape(set_up, pattern):
    with pytest.raises(RecipeError) as error:
        set_up(block=[pattern])
    text = str(error.value)
    assert text.startswith(f'recipe.yaml: block: cannot block "{pattern}".')
    assert "Write kind:name, such as kernel:liger." in text


@pytest.mark.parametrize("pattern", ["format:@sftcore", "format: alpaca"])
def test_a_pattern_that_can_match_no_plugin_is_refused(set_up, pattern):
    with pytest.raises(RecipeError, match="cannot block"):
        set_up(block=[pattern])


def test_a_malformed_pattern_in_the_environment_names_the_variable(set_up, monkeypatch):
    monkeypatch.setenv("SFTCORE_BLOCK", "alpaca")
    with pytest.raises(RecipeError, match=r'^SFTCORE_BLOCK: cannot block "alpaca"\.'):
        set_up()


def test_a_malformed_pattern_offers_the_nearest_kind():
    with pytest.raises(RecipeError, match='Did you mean "kernel"'):
        Blocklist.parse(["kernels:liger"], where="--block")


def test_a_blocklist_takes_any_iterable():
    assert Blocklist.parse(iter(["format:alpaca"]), where="--block").patterns == ("format:alpaca",)


def test_the_list_shows_a_blocked_plugin():
    shown = CliRunner().invoke(cli, ["list-plugins", "--kind", "format", "--block", "format:alpaca"])
    (line,) = [line for line in shown.stdout.splitlines() if line.split()[:2] == ["format", "alpaca"]]
    assert line.split()[4:] == ["blocked", "format:alpaca"]


@pytest.mark.parametrize(
    ("pattern", "near"),
    [("attention:spda", "sdpa"), ("format:alpca@sftcore", "alpaca"), ("format:alpaca@elsewhere", "alpaca")],
    ids=["name", "name with a distribution", "distribution"],
)
def test_a_pattern_that_no_installed_plugin_has_is_said_with_the_near_name(set_up, pattern, near):
    with pytest.warns(UserWarning, match=f'block "{pattern}" has no effect.*Did you mean "{near}"'):
        set_up(block=[pattern])


def test_a_pattern_that_a_plugin_has_is_not_warned_of(set_up, recwarn):
    set_up(block=["format:alpaca", "noise:neftune@sftcore"])
    assert [str(one.message) for one in recwarn if "has no effect" in str(one.message)] == []
