"""Every feature of a run against the plain path of transformers, on the run's own model and rows: `sftcore selftest`.

The plain path is that of `sftcore.selftest.equivalence`. Features are put on one at a time, so that the line that
fails names the one that is wrong; the last line is the run with all of them.
"""

from __future__ import annotations

import gc
import tempfile
from typing import TYPE_CHECKING

import attrs

from sftcore.selftest.bench import (
    Bench,
    plain_trainer,
    short_rows,
)
from sftcore.selftest.equivalence import (
    Line,
    Measured,
    Report,
    Row,
    digest,
    num_items,
    random_state,
    tolerance_of,
    without_dropout,
)
from sftcore.selftest.features import Features

if TYPE_CHECKING:
    from sftcore.train.checked import Checked


def selftest(checked: Checked, *, num_rows: int = 4, processes: bool = True) -> Report:
    """Compare each feature of a run with the plain path; nothing is trained, and nothing is written.

    Args:
        checked: a recipe that passed `check_recipe`.
        num_rows: how many rows, cut short.
        processes: also in two processes, each of which loads the model.

    Raises:
        SFTCoreError: the run itself would be refused.
    """
    from sftcore.selftest.two_processes import compared

    checked.setup.plugins.all("prepare", plan=checked.setup.plan)
    with random_state(), tempfile.TemporaryDirectory(prefix="sftcore-selftest-") as folder:
        report, rows, wanted = _in_one_process(checked, num_rows, folder)
        if not processes:
            return report
        gc.collect()  # the model of this process, so that there are two of it and not three
        line = compared(checked, rows, wanted, report.tolerance)
    return attrs.evolve(report, lines=(*report.lines, line))


def _in_one_process(checked: Checked, num_rows: int, folder: str) -> tuple[Report, list[Row], Measured]:
    trainer = plain_trainer(checked, num_rows, folder)
    rows = short_rows(trainer, num_rows, checked.train.label)
    bench = Bench.of(trainer)
    autocast = "bfloat16" if trainer.args.bf16 else "float16" if trainer.args.fp16 else None
    tolerance, dtype = tolerance_of(trainer.model, autocast)
    test = Features(checked, bench, rows, tolerance, autocast)
    with without_dropout(trainer.model):
        test.reference()
        before = digest(trainer.model)
        lines = tuple(test.lines())
        if digest(trainer.model) != before:
            lines = (*lines, Line("the weights after all of this", "FAILED", why="they are not what they were"))
    found = Report(
        checked.recipe.model.name or "",
        len(rows),
        sum(len(row["input_ids"]) for row in rows),
        num_items(rows),
        dtype,
        tolerance,
        test.spelled,
        test.wanted.loss,
        lines,
        tuple(test.notes),
    )
    return found, list(rows), test.wanted
