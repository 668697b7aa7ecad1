"""`sftcore plugin test`: run the tests of their kinds on plugins, and those of their authors, and say what came out."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from attrs import define, field

from sftcore.core.discovery import PluginEntry
from sftcore.core.errors import SFTCoreError
from sftcore.core.types import Row
from sftcore.testing.conformance.adapters import AdapterTests
from sftcore.testing.conformance.attentions import AttentionTests
from sftcore.testing.conformance.base import PluginTests
from sftcore.testing.conformance.collators import CollatorTests
from sftcore.testing.conformance.formats import FormatTests
from sftcore.testing.conformance.kernels import KernelTests
from sftcore.testing.conformance.loaders import LoaderTests
from sftcore.testing.conformance.losses import LossTests
from sftcore.testing.conformance.noises import NoiseTests
from sftcore.testing.conformance.under_test import fail
from sftcore.testing.samples import rows_for
from sftcore.testing.targets import Target

TESTS: dict[str, type[PluginTests]] = {
    one.kind: one
    for one in (
        FormatTests, CollatorTests, LoaderTests, AdapterTests, AttentionTests, KernelTests, LossTests, NoiseTests,
    )
}  # fmt: skip
FILE = "from sftcore.testing.report import Suites\nglobals().update(Suites.made())\n"


@define
class Result:
    """What came of one test: `outcome` is passed, failed or skipped, `said` why, if it has not passed."""

    group: str
    test: str
    outcome: str
    said: str = ""


@define
class Suites:
    """For each plugin that no class of its author's tests is about, the class of tests of its kind."""

    entries: Sequence[PluginEntry]
    rows: Sequence[Row] | None

    now: ClassVar[Suites | None] = None
    """What the file that pytest collects asks for."""

    @classmethod
    def made(cls) -> dict[str, type]:
        assert cls.now is not None
        covered = {f"{one.__module__}:{one.__qualname__}" for one in PluginTests.covered}
        entries = [one for one in cls.now.entries if one.value not in covered]
        return {f"Test_{number}": _suite(one, cls.now.rows) for number, one in enumerate(entries)}


def suite(entry: PluginEntry, **attributes: Any) -> type[PluginTests]:
    """The class of tests of an installed plugin."""
    return type(entry.label, (TESTS[entry.kind],), {"plugin": entry.load(), "name": entry.name, **attributes})


def _suite(entry: PluginEntry, rows: Sequence[Row] | None) -> type:
    try:
        plugin = entry.load()
        attributes = {"rows": rows_for(entry, plugin) if rows is None else rows} if entry.kind == "format" else {}
        return suite(entry, **attributes)
    except SFTCoreError as error:
        message = str(error)

    def test_it_can_be_imported(self: Any) -> None:
        fail(message)

    return type(entry.label, (), {"__module__": __name__, "test_it_can_be_imported": test_it_can_be_imported})


@define(eq=False)
class _Collected:
    """A pytest plugin that keeps what came of each test."""

    results: list[Result] = field(factory=list)
    groups: dict[str, str] = field(factory=dict)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            owner = getattr(item, "cls", None)
            if owner is not None and issubclass(owner, PluginTests):
                self.groups[item.nodeid] = owner().tested.label
            elif owner is not None and owner.__module__ == __name__:
                self.groups[item.nodeid] = owner.__name__

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            lines = [line for line in str(report.longrepr).splitlines() if line.startswith("E ")]
            said = lines[-1][1:].strip() if lines else _last_line(report)
            self.results.append(Result("its own tests", f"{report.nodeid} can be imported", "failed", said))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            name = report.nodeid.rpartition("::")[2]
            said = "" if report.outcome == "passed" else _last_line(report)
            group = self.groups.get(report.nodeid, "its own tests")
            self.results.append(Result(group, _sentence(name), report.outcome, said))


def report_on(target: Target, rows: Sequence[Row] | None = None) -> list[Result]:
    """Test plugins in this process.

    Args:
        target: which.
        rows: those that formats are tested with; by default those of their author's tests, or of a shape they know.
    """
    collected = _Collected()
    Suites.now = Suites(target.entries, rows)
    with tempfile.TemporaryDirectory(prefix="sftcore-plugin-test-") as folder:
        file = Path(folder) / "test_of_sftcore.py"
        file.write_text(FILE, encoding="utf-8")
        root = target.folder or Path(folder)
        config = root / "pyproject.toml" if target.folder else Path(folder) / "pytest.ini"
        if not config.exists():
            config.write_text("[pytest]\n")
        own = [str(target.tests)] if target.tests else []
        arguments = [
            *own,
            str(file),
            "--rootdir",
            str(root),
            "-c",
            str(config),
            "-o",
            "addopts=",
            "--continue-on-collection-errors",
        ]
        quiet = ["-p", "no:cacheprovider", "-p", "no:terminal", "-p", "no:randomly", "--import-mode=importlib"]
        code = pytest.main([*arguments, *quiet, "-p", "sftcore.testing"], plugins=[collected])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and not collected.results:
        collected.results.append(Result("its own tests", "the tests can be collected", "failed", f"pytest: {code!r}"))
    return collected.results


def _sentence(name: str) -> str:
    """`test_its_claims_hold[padded]` as `its claims hold, padded`."""
    words, bracket, parameters = name.removeprefix("test_").partition("[")
    return words.replace("_", " ") + (f", {parameters.rstrip(']')}" if bracket else "")


def _last_line(report: Any) -> str:
    """What a test failed or was skipped with, without its traceback."""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(getattr(report.longrepr, "reprcrash", None), "message", None)
    text = str(crash or report.longrepr).strip()
    return text.removeprefix("Failed: ")


def counts(results: Sequence[Result]) -> Mapping[str, int]:
    """How many tests had each outcome."""
    return {outcome: sum(one.outcome == outcome for one in results) for outcome in ("passed", "failed", "skipped")}
