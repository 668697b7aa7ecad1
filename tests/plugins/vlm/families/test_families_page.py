"""The page of families says what their tests found, of every family and column."""

import importlib
import json
from pathlib import Path

import pytest

from tests.plugins.vlm.families.family_table import COLUMNS, FAMILIES

ROOT = Path(__file__).parents[4]
FOUND = json.loads(Path(__file__).with_name("results.json").read_text(encoding="utf-8"))


def test_the_page_is_up_to_date(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    script = importlib.import_module("gen_families")
    page = script.PAGE.read_text(encoding="utf-8")
    assert script.table() in page, "run python scripts/gen_families.py"


def test_every_family_has_a_result_for_every_column():
    assert {family: set(columns) for family, columns in FOUND.items()} == {
        family.name: set(COLUMNS) for family in FAMILIES
    }


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_results_are_what_the_table_of_families_expects(family):
    for column, outcome in FOUND[family.name].items():
        refused = column in family.refused or "*" in family.refused
        faulty = column in family.faults or "*" in family.faults
        assert outcome.partition(":")[0] == ("not yet" if faulty else "refused" if refused else "yes"), column
