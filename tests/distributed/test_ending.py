"""Processes that have trained together end with exit code 0, whatever gloo's threads still hold."""

from __future__ import annotations

import pytest

from tests.distributed import ending_runs
from tests.distributed.ranked_runs import start

pytestmark = pytest.mark.slow


def test_a_process_ends_well_where_gloo_still_holds_a_tensor(tmp_path, model_folder):
    start(tmp_path, model_folder, script=ending_runs.__file__)
