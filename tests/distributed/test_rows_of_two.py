"""Two processes list the rows that one lists, each with the same loss."""

from __future__ import annotations

import json

import pytest

from sftcore.data.account.table import read_table
from tests.distributed import accounted_runs
from tests.distributed.accounted_runs import CASES, ROWS
from tests.distributed.ranked_runs import start

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def both(tmp_path_factory, model_folder):
    folder = tmp_path_factory.mktemp("rows")
    return start(folder / "both", model_folder, *CASES, script=accounted_runs.__file__)


def listed(folder):
    rows = read_table(folder)[0].to_pylist()
    return {(row["source"], row["row"]): row for row in rows}


@pytest.mark.parametrize("case", CASES)
def test_each_row_has_the_loss_that_one_process_gives_it(both, case, tmp_path, model_folder):
    accounted_runs.run(case, str(model_folder), tmp_path)
    one, two = listed(tmp_path / case), listed(both / case)
    assert one.keys() <= two.keys()  # of a stream one process reads fewer in as many steps
    assert len(two) == len(ROWS) + 3 * (case == "mixed")
    for key, row in one.items():
        first = row["epochs"].index(1)
        assert two[key]["loss"][0] == pytest.approx(row["loss"][first], abs=1e-4)
        assert two[key]["loss_tokens"][0] == row["loss_tokens"][first]


def test_sources_are_logged_over_both_processes(both):
    logs = [json.loads(line) for line in (both / "mixed" / "metrics.jsonl").read_text().splitlines()]
    last = [log for log in logs if "loss" in log][-1]
    assert last["tokens/all"] + last["tokens/few"] == last["num_tokens"]
