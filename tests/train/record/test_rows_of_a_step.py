"""What the plan says of the rows of a step is how many are trained, however batches reach the processes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from accelerate.utils import DataLoaderConfiguration

from sftcore.data.ranks import shares_of_batches
from sftcore.train.record.summary import _steps


def said(accumulated: int = 1, world: int = 2, tp: int = 1, **config: bool) -> str:
    args = SimpleNamespace(
        per_device_train_batch_size=12, gradient_accumulation_steps=accumulated, world_size=world, process_index=0,
        accelerator_config=SimpleNamespace(**{"split_batches": False, "dispatch_batches": None, **config}),
        model_init_kwargs={"tp_plan": "auto", "tp_size": tp} if tp > 1 else None, parallelism_config=None,
    )  # fmt: skip
    assert set(config) <= set(vars(DataLoaderConfiguration()))
    shared, replicas = shares_of_batches(args)
    assert shared * replicas * tp == world
    return _steps(args, 3)


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("3, each of 12 rows", {"world": 1}),
        ("3, each of 24 rows (12 x 2 processes)", {}),
        ("3, each of 72 rows (12 x 3 accumulated x 2 processes)", {"accumulated": 3}),
        ("3, each of 36 rows (12 x 3 processes)", {"world": 3, "dispatch_batches": True}),
        ("3, each of 12 rows (each batch is split among 3 processes)", {"world": 3, "split_batches": True}),
        (
            "3, each of 24 rows (12 x 2 accumulated, each batch is split among 2 processes)",
            {"accumulated": 2, "split_batches": True, "dispatch_batches": True},
        ),
        ("3, each of 12 rows", {"world": 1, "split_batches": True}),
        ("3, each of 24 rows (12 x 2 processes)", {"world": 4, "tp": 2}),
    ],
)
def test_the_rows_of_a_step_are_those_that_are_trained(line, fields):
    assert said(**fields) == line
