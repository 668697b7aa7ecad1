"""The checks of `python benchmarks/gpu.py` on a GPU, one by one.

python -m pytest tests/gpu
"""

from __future__ import annotations

import importlib

import pytest
import torch
from gpu_run import checks
from gpu_run.worker import NotRun

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none")


@pytest.fixture(scope="session", autouse=True)
def _temporary_files(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("gpu")))
        yield


@pytest.mark.parametrize("task", [pytest.param(one, id=one.name) for one in checks.tasks(standin=False)])
def test_on_a_gpu(task):
    module, _, name = task.function.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)(**task.arguments)
    except NotRun as reason:
        pytest.skip(str(reason))
    assert isinstance(found, dict)
