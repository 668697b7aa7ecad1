"""A run of two processes that reports to TensorBoard: `tracked_in_two.py MODEL FOLDER CASE`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.distributed.case_runs import INDEX, Run, rows, stream


def write(case: str, run: Run) -> None:
    trainer = run.trainer(
        case, stream(rows(12)), report_to="tensorboard", max_steps=2, eval_dataset=stream(rows(5)), eval_steps=1,
        eval_strategy="steps",
    )  # fmt: skip
    trainer.train()
    (run.folder / f"{case}-{INDEX}.json").write_text(json.dumps(trainer.state.log_history))


if __name__ == "__main__":
    from sftcore.testing.libraries import spare_libraries

    spare_libraries()
    write(sys.argv[3], Run(sys.argv[1], sys.argv[2]))
    Path(sys.argv[2], "done").touch()
