"""Compare every feature of a run with plain transformers, on the run's own model and rows: `sftcore selftest`.

The reference is described in `sftcore.selftest.equivalence`. Features are switched on one at a time, so that a line
that fails names the feature that is wrong. The last lines are the run with all of its features.
"""

from __future__ import annotations

import gc
import tempfile
from typing import TYPE_CHECKING

import attrs

from sftcore.selftest.equivalence import Line, Report, Row, fill_zero_parameters, num_items
from sftcore.selftest.features import Features
from sftcore.selftest.trainers import reference_trainer, short_rows
from sftcore.trials.measured import Measured, preserved_random_state, tolerance_of, weights_hash, without_dropout

if TYPE_CHECKING:
    from sftcore.train.checked import Checked


def selftest(checked: Checked, *, num_rows: int = 4, processes: bool = True) -> Report:
    """Compare each feature of a run with the reference, without training or writing anything.

    Args:
        checked: a recipe that passed `check_recipe`.
        num_rows: how many rows to compare on; each is shortened.
        processes: also compare two processes, each of which loads the model.

    Raises:
        SFTCoreError: the run itself would be refused.
    """
    from sftcore.selftest.processes import compare_two_processes

    checked.setup.plugins.all("prepare", plan=checked.setup.plan)
    with preserved_random_state(), tempfile.TemporaryDirectory(prefix="sftcore-selftest-") as folder:
        report, rows, wanted = _in_one_process(checked, num_rows, folder)
        if not processes:
            return report
        gc.collect()  # frees the model of this process, so that only the two others are in memory
        line = compare_two_processes(checked, rows, wanted, report.tolerance)
    return attrs.evolve(report, lines=(*report.lines, line))


def _in_one_process(checked: Checked, num_rows: int, folder: str) -> tuple[Report, list[Row], Measured]:
    trainer = reference_trainer(checked, num_rows, folder)
    rows = short_rows(trainer, num_rows, checked.train.label)
    trainer.prove(plugins=False)  # what fails is a line of the report
    filled = fill_zero_parameters(trainer.model)
    autocast = "bfloat16" if trainer.args.bf16 else "float16" if trainer.args.fp16 else None
    tolerance, dtype = tolerance_of(trainer.model, autocast)
    test = Features(checked, trainer, rows, tolerance, autocast, filled)
    with without_dropout(trainer.model):
        test.compute_reference()
        before = weights_hash(trainer.model)
        lines = tuple(test.lines())
        if weights_hash(trainer.model) != before:
            lines = (*lines, Line("the weights after all comparisons", "FAILED", why="they have changed"))
    found = Report(
        checked.recipe.model.name or "",
        len(rows),
        sum(len(row["input_ids"]) for row in rows),
        num_items(rows),
        dtype,
        tolerance,
        test.description,
        test.reference.loss,
        lines,
        tuple(test.notes),
    )
    return found, list(rows), test.reference
