"""The example packages: one of each kind, each complete, short, and usable as it is installed."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from sftcore.core.types import KINDS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXAMPLES = Path(__file__).parents[2] / "examples" / "plugins"
PACKAGES = sorted(path.parent for path in EXAMPLES.glob("*/pyproject.toml"))


MEDIA = "sftcore-speech"
"""The package of a medium, whose format and collator belong together."""


def plugins_of(package: Path) -> list[tuple[str, str, str]]:
    """Kind, name and class of each plugin of a package."""
    project = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == package.name
    found = []
    for group, entries in project["entry-points"].items():
        ((name, value),) = entries.items()
        assert value.partition(":")[0] == package.name.replace("-", "_")
        found.append((group.removeprefix("sftcore."), name, value.partition(":")[2]))
    return found


def test_there_is_one_of_each_kind():
    alone = [plugins_of(package) for package in PACKAGES if package.name != MEDIA]
    assert {kind for ((kind, _, _),) in alone} == set(KINDS)
    assert [kind for kind, _, _ in plugins_of(EXAMPLES / MEDIA)] == ["format", "collator"]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_a_package_is_complete_and_short(package):
    plugins = plugins_of(package)
    module = package.name.replace("-", "_")
    code = (package / f"{module}.py").read_text(encoding="utf-8").splitlines()
    assert sum(bool(line.strip()) for line in code) <= 60 * len(plugins)
    kind, name, cls = plugins[0]
    tests = (package / "tests" / f"test_{module.removeprefix('sftcore_')}.py").read_text(encoding="utf-8")
    assert re.search(rf"class Test{cls}\({kind.capitalize()}Tests\):\n    plugin = {cls}\n", tests)
    readme = (package / "README.md").read_text(encoding="utf-8")
    assert f"list-plugins --kind {kind}     # {name}, from {package.name}" in readme
    kinds = ", ".join(kind for kind, _, _ in plugins)
    assert f"| {kinds} | [{package.name}]({package.name}) |" in (EXAMPLES / "README.md").read_text(encoding="utf-8")


def test_all_are_usable_side_by_side(sftcore):
    shown = sftcore("list-plugins", "--details", having=tuple(package.name for package in PACKAGES))
    assert shown.returncode == 0, shown.stderr
    for package in PACKAGES:
        for kind, name, _ in plugins_of(package):
            assert re.search(rf"^{kind} +{name} +{package.name} +0\.1\.0 +usable", shown.stdout, re.MULTILINE), name
