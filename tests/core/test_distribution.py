"""A wheel and an editable installation give the same table of plugins, the one that the checkout declares."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from hatchling.builders.wheel import WheelBuilder

from sftcore.cli import cli
from sftcore.core.discovery import discover

ROOT = Path(__file__).parents[2]

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> dict[str, Path]:
    """The folder that each way of building fills, as pip would unpack it."""
    folders = {}
    for way in ("standard", "editable"):
        folders[way] = tmp_path_factory.mktemp(way)
        (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(folders[way]), versions=[way])
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folders[way])
    return folders


def table(folder: Path, monkeypatch) -> list[dict]:
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(folder))
        shown = CliRunner().invoke(cli, ["list-plugins", "--json"], catch_exceptions=False)
    return [row for row in json.loads(shown.stdout)["plugins"] if row["distribution"] == "sftcore"]


def test_a_wheel_and_an_editable_installation_give_the_table_of_the_checkout(installed, monkeypatch):
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    wanted = {
        (group.removeprefix("sftcore."), name, value)
        for group, entries in declared.items()
        for name, value in entries.items()
    }
    wheel, editable = (table(installed[way], monkeypatch) for way in ("standard", "editable"))
    assert wheel == editable
    assert {(row["kind"], row["name"], row["entry_point"]) for row in wheel} == wanted


def test_a_wheel_holds_every_module_that_its_entry_points_name(installed):
    folder = installed["standard"]
    entries = discover([str(folder)]).entries
    assert len(entries) >= 30
    for entry in entries:
        assert folder.joinpath(*entry.value.partition(":")[0].split(".")).with_suffix(".py").is_file()
    assert (folder / "sftcore_plugins" / "py.typed").is_file()
    assert {path.name for path in folder.iterdir() if path.is_dir() and not path.name.endswith(".dist-info")} == {
        "sftcore", "sftcore_plugins",
    }  # fmt: skip


def test_an_editable_installation_reads_the_checkout(installed):
    (pth,) = installed["editable"].glob("*.pth")
    assert {str(Path(line).resolve()) for line in pth.read_text(encoding="utf-8").split()} >= {
        str(ROOT), str(ROOT / "plugins"),
    }  # fmt: skip
