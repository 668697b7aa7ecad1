"""All of sftcore's own plugins pass the tests that it gives to others."""

from __future__ import annotations

from typing import Any

import pytest

from sftcore.core.discovery import discover
from sftcore.testing import short_runs
from sftcore.testing.conformance.trained import TrainedTests
from sftcore.testing.conformance.under_test import import_of
from sftcore.testing.report import suite
from sftcore.testing.samples import rows_for

OWN = [entry for entry in discover().entries if entry.distribution == "sftcore"]
TRIED_WITH: dict[str, dict[str, Any]] = {
    "format chat": {"supervised": ["hello world", "hello world\nhello world"]},
    "collator flattened": {"recipe": {"padding_free": True}},
    # reloading in 4 and 8 bits: tests/model/test_quantised.py
    "adapter qlora": {"on_standin": False, "reloads": False},
    # Triton's kernels run on a GPU or in its interpreter: tests/plugins/kernels
    "loss liger": {"on_standin": False},
}
"""What some of them are tried with."""
ELSEWHERE = {
    "format vlm": "rows with images: tests/plugins/vlm",
    "collator vlm": "rows with images: tests/plugins/vlm",
    "attention hub": "kernels of the hub: tests/plugins/attention",
    "kernel compile": "minutes of compiling: tests/plugins/kernels",
    "loader gguf": "files of GGUF: tests/plugins/loaders",
}


def _suites() -> dict[str, type]:
    found = {}
    for entry in OWN:
        key = f"{entry.kind} {entry.name}"
        if key not in ELSEWHERE:
            attributes = dict(TRIED_WITH.get(key, {}))
            if entry.kind == "format":
                attributes["rows"] = rows_for(entry, entry.load())
            found["Test_" + key.replace(" ", "_").replace("-", "_")] = suite(entry, **attributes)
    return found


globals().update(_suites())


@pytest.fixture(scope="module", autouse=True)
def imported_at_once():
    """All modules in one process, and not each in its own."""
    first, *others = [entry.value.partition(":")[0] for entry in OWN]
    import_of(first, *others)


def test_every_own_plugin_is_tested():
    tried = {name for name in globals() if name.startswith("Test_")}
    assert len(tried) + len(ELSEWHERE) == len(OWN)


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
