"""Third-party distributions, built and installed, one folder each, so that a test chooses which are present."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from sftcore.config.recipe import parse_recipe
from sftcore.config.setup import Setup, set_up_recipe
from sftcore.core.discovery import Catalog, discover
from tests.conftest import made_once

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    folder for where in ("tests/fixtures/distributions", "examples/plugins") for folder in (ROOT / where).glob("*/")
)


@pytest.fixture(scope="session")
def distributions(tmp_path_factory) -> Mapping[str, Path]:
    """The folder of each installed distribution, by its name."""
    together = made_once(tmp_path_factory, "together", _install)
    apart = tmp_path_factory.mktemp("apart")
    folders = {}
    for distribution in importlib.metadata.distributions(path=[str(together)]):
        name = distribution.metadata["Name"]
        folders[name] = apart / name
        for file in distribution.files or ():
            target = folders[name] / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(together / file, target)
    return folders


def _install(together: Path) -> None:
    """What pip does with a wheel of pure Python; scripts/check-examples has pip itself do it, which takes longer."""
    from hatchling.builders.wheel import WheelBuilder

    together.mkdir()
    for source in SOURCES:
        if (source / "pyproject.toml").is_file():
            (wheel,) = WheelBuilder(str(source)).build(directory=str(together), versions=["standard"])
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(together)
            Path(wheel).unlink()


@pytest.fixture
def install(monkeypatch, distributions):
    """Put distributions on this process's path; the answer is what discovery then finds."""

    def put(*names: str) -> Catalog:
        for name in names:
            monkeypatch.syspath_prepend(str(distributions[name]))
        return discover()

    return put


@pytest.fixture
def write_distribution(tmp_path, monkeypatch):
    """Put a distribution on the path that pip would never make, or that is not worth a build: files as given."""

    def write_files(name: str, code: str, *, entry_points: bytes, metadata: str = "") -> Catalog:
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{metadata}", "utf-8")
        (info / "entry_points.txt").write_bytes(entry_points)
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        return discover()

    return write_files


@pytest.fixture
def python(distributions):
    """Run a fresh Python in which the named distributions are installed beside sftcore."""

    def run(
        *arguments: str, having: tuple[str, ...] = (), env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        own = [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
        path = os.pathsep.join([*(str(distributions[name]) for name in having), *own])
        return subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8", **(env or {})},
            capture_output=True,
            encoding="utf-8",
            timeout=120,
        )

    return run


@pytest.fixture
def sftcore(python):
    """Run the command line in a fresh Python."""

    def run(*words: str, **options) -> subprocess.CompletedProcess[str]:
        return python("-m", "sftcore", *words, **options)

    return run


def _set_up(**keys) -> Setup:
    return set_up_recipe(parse_recipe({"model": "some/model", "data": "rows.jsonl", **keys}, place="recipe.yaml"))


@pytest.fixture
def set_up():
    """Resolve a run from recipe keys, as `sftcore train` does before it looks at data or model."""
    return _set_up
