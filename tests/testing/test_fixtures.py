"""What `pytest_plugins = "sftcore.testing"` gives, and that nobody gets it unasked."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sftcore import PluginError
from sftcore.core.discovery import discover
from sftcore.testing import isolated, isolated_plugins, run_recipe, tiny_model, tiny_processor  # noqa: F401
from sftcore.testing.fixtures import _tiny_folder  # noqa: F401
from tests.testing.faulty import BadLoss, Unmarked


def test_sftcore_alone_loads_neither_pytest_nor_its_own_tests():
    code = (
        "import sftcore, sftcore.plugin_api, sftcore.cli, sys; print({'pytest', 'sftcore.testing'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_other_distributions_are_hidden_and_what_is_installed_is_seen(isolated_plugins, tmp_path, monkeypatch):  # noqa: F811
    info = tmp_path / "acme-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[sftcore.loss]\nacme = acme:Acme\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert {entry.distribution for entry in discover().entries} == {"sftcore"}
    catalog = isolated_plugins(loss={"bad": BadLoss}, distribution="bad-losses", version="1.2")
    entry = catalog.find("loss", "bad")
    assert (entry.label, entry.version, entry.load()) == ('loss "bad@bad-losses"', "1.2", BadLoss)
    with isolated() as inner:
        assert {"bad", "other"} <= {one.name for one in inner(format={"other": Unmarked}).entries}
    assert "other" not in {one.name for one in discover().entries}
    with isolated() as inner:  # as the tests of a plugin that stands in a folder have it
        assert inner(loss={"bad": BadLoss}).find("loss", "bad").distribution == "bad-losses"


def test_a_class_of_a_function_can_be_installed(isolated_plugins):  # noqa: F811
    from sftcore import plugin

    @plugin
    class Local:
        """A plugin of a test."""

    assert isolated_plugins(kernel={"local": Local}).find("kernel", "local").load() is Local


def test_an_unknown_kind_is_refused(isolated_plugins):  # noqa: F811
    with pytest.raises(TypeError, match="no kind of plugin: fromat"):
        isolated_plugins(fromat={"x": BadLoss})


def test_a_recipe_is_run_and_one_that_is_wrong_is_refused(isolated_plugins, run_recipe):  # noqa: F811
    outcome = run_recipe(max_steps=1)
    assert outcome.losses[0] == pytest.approx(5.86, abs=0.05)
    assert (outcome.folder / "model.safetensors").is_file()
    with pytest.raises(PluginError, match='no loss named "bad"'):
        run_recipe(loss="bad")


def test_the_tiny_model_belongs_to_the_tiny_processor(tiny_model, tiny_processor):  # noqa: F811
    assert tiny_model.get_input_embeddings().weight.shape == (len(tiny_processor), 32)
