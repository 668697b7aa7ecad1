"""Two processes that save, lose a file, go on and meet a full disk: `torchrun two_ranks.py FOLDER`."""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

from transformers import TrainerCallback

from sftcore.testing.libraries import spare_libraries
from tests.faults import runs


class Watcher(TrainerCallback):
    """Notes where a run begins; from `full_at` on, no file of the first rank can be longer than 100 kB."""

    def __init__(self, *, full_at: int | None = None) -> None:
        self.began: int | None = None
        self.full_at = full_at

    def on_train_begin(self, args, state, control, **_):
        self.began = state.global_step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.full_at and state.is_world_process_zero:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))


def main(folder: Path) -> None:
    spare_libraries()
    rank, out = int(os.environ["RANK"]), folder / "out"
    whole = runs.trainer(out)
    whole.train()
    if rank == 0:
        os.truncate(out / "checkpoint-6" / "rng_state_1.pth", 9)
    watcher = Watcher()
    resumed = runs.trainer(out)
    resumed.add_callback(watcher)
    resumed.accelerator.wait_for_everyone()
    resumed.train(resume_from_checkpoint="auto")
    same = all((a == b).all() for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))
    (folder / f"{rank}.json").write_text(json.dumps({"began": watcher.began, "same": bool(same)}))
    full = runs.trainer(folder / "full")
    full.add_callback(Watcher(full_at=3))
    full.train()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
