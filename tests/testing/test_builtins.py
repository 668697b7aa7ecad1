"""All of sftcore's own plugins pass the tests that it gives to others."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from sftcore.core.discovery import discover
from sftcore.testing import short_runs
from sftcore.testing.conformance.trained import TrainedTests
from sftcore.testing.conformance.under_test import import_of
from sftcore.testing.report import TESTS, suite
from sftcore.testing.samples import rows_for
from tests.testing.given import ROWS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
OWN = [entry for entry in discover().entries if entry.distribution == "sftcore"]
TRIED_WITH: dict[str, dict[str, Any]] = {
    "format chat": {"supervised": ["hello world", "hello world\nhello world"]},
    "format segments": {"supervised": [" hello world"]},
    "collator flattened": {"recipe": {"padding_free": True}},
    # reloading in 4 and 8 bits: tests/model/test_quantised.py
    "adapter qlora": {"on_standin": False, "reloads": False},
    # Unsloth makes the model that its adapter goes into, and knows no device of Python
    "adapter unsloth-lora": {"recipe": {"loader": "unsloth"}, "on_standin": False},
    # Triton's kernels run on a GPU or in its interpreter: tests/plugins/kernels
    "loss liger": {"on_standin": False},
    # what is compiled is the same for each backend; inductor's takes minutes: tests/plugins/kernels
    "kernel compile": {"options": {"backend": "eager"}},
    "loader gguf": {"writer": "tests.testing.given:gguf_file"},
    "collator vlm": {"reads_images": True, "recipe": {"max_length": 256}},
}
"""What some of them are tried with."""


ELSEWHERE = {
    "loader unsloth": "tests/real/test_unsloth.py",
    "adapter unsloth-lora": "tests/real/test_unsloth.py",
    "attention flash-2": "tests/plugins/attention",
    "attention flash-3": "tests/plugins/attention",
    "attention hub": "tests/plugins/attention",
    "loss cce": "tests/plugins/losses",
    "kernel liger": "tests/plugins/kernels",
    "loss liger": "tests/plugins/kernels",
}
"""Where those train whose library may be missing, which skips a part of the tests here: with the library itself, by
scripts/check-extras, or with a double that takes what it takes and refuses what it refuses."""


def _suites() -> dict[str, type]:
    found = {}
    for entry in OWN:
        key = f"{entry.kind} {entry.name}"
        attributes = dict(TRIED_WITH.get(key, {}))
        if entry.kind == "format":
            attributes["rows"] = rows_for(entry, entry.load()) or ROWS[entry.name]()
        found["Test_" + key.replace(" ", "_").replace("-", "_")] = suite(entry, **attributes)
    return found


globals().update(_suites())


@pytest.fixture(scope="module", autouse=True)
def imported_at_once():
    """All modules in one process, and not each in its own."""
    first, *others = [entry.value.partition(":")[0] for entry in OWN]
    import_of(first, *others)


def test_every_plugin_of_this_project_passes_all_tests_of_its_kind():
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    offered = {
        (group.removeprefix("sftcore."), name, value)
        for group, entries in groups.items()
        if group.startswith("sftcore.")
        for name, value in entries.items()
    }
    classes = [one for name, one in globals().items() if name.startswith("Test_")]
    tested = {(one.kind, one.name, f"{one.plugin.__module__}:{one.plugin.__qualname__}") for one in classes}
    assert tested == offered
    for one in classes:
        whole = TESTS[one.kind]
        assert issubclass(one, whole)
        for test in (name for name in dir(whole) if name.startswith("test_")):
            assert getattr(one, test) is getattr(whole, test), f"{one.name}: {test} is another"


def test_what_some_are_tried_with_is_for_plugins_that_there_are():
    known = {f"{entry.kind} {entry.name}" for entry in OWN}
    assert set(TRIED_WITH) | set(ELSEWHERE) <= known


def test_what_is_not_installed_trains_elsewhere():
    missing = {f"{entry.kind} {entry.name}" for entry in OWN if entry.missing}
    assert missing <= set(ELSEWHERE)
    script = (ROOT / "scripts" / "check-extras").read_text(encoding="utf-8")
    assert "tests/testing/test_builtins.py" in script
    for one, place in ELSEWHERE.items():
        assert (ROOT / place).exists(), one
        assert place.startswith("tests/plugins/") or place in script, one


def test_the_examples_pass_their_tests_in_ci():
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    assert "scripts/check-examples" in workflow


@pytest.fixture(scope="module")
def accelerated():
    """What is asked of the stand-in for all plugins, asked of one process and not of one for each."""
    if short_runs.standin_missing():
        return
    calls = []
    for one in _suites().values():
        if issubclass(one, TrainedTests) and one.on_standin:
            try:
                calls += one().calls_on_accelerator(one().tested)
            except pytest.skip.Exception:
                continue
    short_runs.there(calls)
