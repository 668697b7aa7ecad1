"""A plugin whose own extra is not installed: seen from metadata, and mended by one printed command."""

from __future__ import annotations

import json

import pytest

from sftcore.core.errors import UnavailablePluginError

NAMES = ["absent", "absent_too"]  # packaging writes the second extra as absent-too

LISTED = """
import sys
from sftcore.cli import cli
try:
    cli(["list-plugins", "--json", "--kind", "kernel"], prog_name="sftcore")
finally:
    print("acme_missing" in sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_extra_is_listed_with_its_command_and_without_an_import(python, name):
    shown = python("-c", LISTED, having=("acme-missing",))
    (row,) = [row for row in json.loads(shown.stdout)["plugins"] if row["name"] == name]
    assert row["status"] == "missing"
    assert row["why"] == f'needs sftcore-no-such-library>=2.1: pip install "acme-missing[{name}]"'
    assert shown.stderr.strip() == "False"


@pytest.mark.parametrize("name", NAMES)
def test_a_selected_plugin_without_its_extra_prints_the_exact_command(install, set_up, name):
    install("acme-missing")
    with pytest.raises(UnavailablePluginError) as error:
        set_up(kernel=name)
    assert str(error.value) == (
        f'recipe.yaml: kernel: kernel "{name}" needs sftcore-no-such-library>=2.1. '
        f'Install: pip install "acme-missing[{name}]"'
    )


def put_library(folder, version: str) -> None:
    info = folder / f"sftcore_no_such_library-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: sftcore-no-such-library\nVersion: {version}\n")


def test_a_plugin_whose_extra_is_installed_is_usable(install, set_up, tmp_path, monkeypatch):
    put_library(tmp_path, "2.2")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert install("acme-missing").find("kernel", "absent").missing == ()
    assert "absent" in {one.entry.name for one in set_up(kernel="absent").plugins.bound}


def test_an_extra_that_is_installed_too_old_says_which_version_was_found(install, tmp_path, monkeypatch):
    put_library(tmp_path, "1.9")
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = install("acme-missing").find("kernel", "absent")
    assert entry.missing == ("sftcore-no-such-library>=2.1 (found 1.9)",)
