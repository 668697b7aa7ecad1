"""Which tests of the built-ins are slow, and which of them share a process with the stand-in accelerator."""

from __future__ import annotations

import pytest

SLOW = ("test_a_run_trains_with_it", "test_worker_processes", "test_what_it_trained_is_saved", "test_an_accelerator")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name == "test_builtins.py" and item.name.startswith(SLOW):
            item.add_marker(pytest.mark.slow)
            if item.name.startswith("test_an_accelerator"):
                item.fixturenames.append("accelerated")
