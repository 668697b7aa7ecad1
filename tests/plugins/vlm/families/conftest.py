"""Keeps what each family did, for the table of docs/how-to/vision-language.md.

With SFTCORE_WRITE_FAMILIES=1 the results of what was tried are written into results.json, those of everything else
stay; then `python scripts/gen_families.py` writes the page. It takes torchvision and `-m "slow or not slow"`.
"""

import json
import os
from pathlib import Path

import pytest

RESULTS = Path(__file__).with_name("results.json")
_FOUND: dict[str, dict[str, str]] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    given = item.callspec.params if hasattr(item, "callspec") else {}
    if call.when == "call" and "column" in given:
        columns = _FOUND.setdefault(given["family"].name, {})
        if report.passed:
            columns[given["column"]] = dict(report.user_properties).get("refused", "yes")
        elif hasattr(report, "wasxfail"):
            columns[given["column"]] = f"not yet: {report.wasxfail}"
    return report


def pytest_sessionfinish(session):
    if os.environ.get("SFTCORE_WRITE_FAMILIES") and _FOUND:
        known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        for family, columns in _FOUND.items():
            known[family] = {**known.get(family, {}), **columns}
        RESULTS.write_text(json.dumps(known, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
