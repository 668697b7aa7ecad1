"""What a run leaves behind while it goes: the log of metrics, and the manifest."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from transformers import TrainerCallback

from sftcore.chat.served.parity import record_of, saved_parity
from sftcore.chat.stops import trained_stop
from sftcore.config.recipe import AUTO
from sftcore.core.visible import visible
from sftcore.model.attention import running_attention
from sftcore.model.tokens import supervised_ids
from sftcore.train.checkpoint.folders import final_place
from sftcore.train.checkpoint.other_run import held_run
from sftcore.train.checkpoint.state import rewind_log
from sftcore.train.parts.streams import reset, say, sum_up
from sftcore.train.record import manifest
from sftcore.train.record.environment import environment, fingerprint, sources
from sftcore.train.record.summary import plan_lines
from sftcore.util.disk import replace_text, writing
from sftcore.util.plain import describe_plugin, public
from sftcore.util.versions import versions
from sftcore.util.warned import warn

if TYPE_CHECKING:
    from sftcore.train.view import RunView

_RESUME = f"then resume from the last checkpoint with resume_from_checkpoint: {AUTO}"


class RunRecorder(TrainerCallback):
    """Writes `metrics.jsonl`, a line for each log, `manifest.json` and `ledger.json`, on the first rank.

    In a folder that holds another run they are written once the first step was taken: until then the new run might
    fail, and what is there describes the weights beside it. `extra` is added to the manifest: the command line puts
    recipe and data files there. `train_files_sha256` are those of the training set, where it was read from files.
    `first_step` is the step behind which the last call of `train` began.
    """

    def __init__(self, trainer: RunView) -> None:
        self._trainer = trainer
        self._data_hash: str | None = None
        self._model_sha256 = fingerprint(trainer.setup.plan.model.name)  # as it was loaded, whatever happens to it
        self.extra: dict[str, Any] = {}
        self.train_files_sha256: Sequence[str] = ()
        self.begun = self._rows_due = False
        self.first_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Say what the run will do, and start a new log unless the run is resumed."""
        reset(self._trainer.data)
        self.first_step = state.global_step
        if not state.is_world_process_zero:
            return
        for line in plan_lines(self._trainer):
            print(visible(line), file=sys.stderr)
        self.begun = False
        if state.global_step > 0 or not held_run(Path(args.output_dir)):
            self._begin(Path(args.output_dir), state)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the log of a run that takes the place of another."""
        if state.is_world_process_zero and not self.begun:
            self._begin(Path(args.output_dir), state)

    def _begin(self, folder: Path, state: Any) -> None:
        self.begun = True
        with writing("manifest and ledger", folder):
            folder.mkdir(parents=True, exist_ok=True)
            rewind_log(folder / "metrics.jsonl", state.log_history)
            self._write_facts(folder)

    def _write_facts(self, folder: Path) -> None:
        data = self._trainer.data
        self.write_manifest(folder)
        told = {"schema": 1, "ledgers": [one.as_dict() for one in data.ledgers], **self._streams()}
        replace_text(folder / "ledger.json", f"{json.dumps(told, indent=2, ensure_ascii=False)}\n")
        self._write_rows(folder)

    def _write_rows(self, folder: Path) -> None:
        self._trainer.rows_file.write(folder, self._trainer.row_losses.measured)

    def _streams(self) -> dict[str, Any]:
        """What became of the rows of streams, once a run has read them."""
        found = [one.total.as_dict() for one in self._trainer.data.streams.values() if one.total is not None]
        return {"streams": found} if found else {}

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the losses of the epoch's rows with the next log, which waits for the device anyway."""
        self._rows_due = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the losses of the rows, and say what became of those of streams, which is known only now."""
        self._trainer.row_losses.collect()
        if state.is_world_process_zero and self.begun:
            self._write_rows(Path(args.output_dir))
        totals = sum_up(self._trainer.data, args.world_size)
        if not totals or not state.is_world_process_zero:
            return
        say([one for one in totals if one.rows_read])
        if self.begun:
            with writing("manifest and ledger", Path(args.output_dir)):
                self._write_facts(Path(args.output_dir))

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Say which rows of a stream an evaluation has left out; those within a run are counted with it."""
        if self._trainer.is_in_train:
            return
        totals = sum_up(self._trainer.data, args.world_size)
        if state.is_world_process_zero:
            say([one for one in totals if one.dropped])
        reset(self._trainer.data)

    def on_predict(self, args: Any, state: Any, control: Any, *_: Any, **__: Any) -> None:
        """The same for predictions."""
        self.on_evaluate(args, state, control)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Append what was logged."""
        if self.begun and logs and self._trainer.is_in_train:
            path = Path(args.output_dir) / "metrics.jsonl"
            with writing("the log", path, otherwise=_RESUME), path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")
            if self._rows_due and "loss" in logs:
                self._rows_due = False
                self._write_rows(Path(args.output_dir))

    def check_parity(self, folder: Path) -> None:
        """Record what the run trains with, and warn if serving the saved folder would differ from training."""
        trainer = self._trainer
        tokenizer = trainer.data.tokenizer
        trained = record_of(
            tokenizer, trainer.loaded.model, trained_stop(tokenizer, supervised_ids(trainer.train_dataset))
        )
        checks = saved_parity(folder, trained)
        self.extra["chat"] = trained.as_dict()
        if final_place(folder).resolve() == Path(trainer.args.output_dir).resolve():
            self.extra["weights_sha256"] = manifest.weights_sha256(folder)
        self.extra["parity"] = [attrs.asdict(check) for check in checks]
        for check in checks:
            if check.state == "differs":
                saved = final_place(folder)
                warn(f"serving {saved} would differ from training: {check}")

    def write_manifest(self, folder: Path) -> None:
        """Write the manifest as it stands now."""
        trainer = self._trainer
        # What goes to the hub does not say how the folders of this machine are named
        spelled = public if trainer.args.push_to_hub else dict
        manifest.write(
            folder,
            spelled(
                {
                    "versions": versions(),
                    "environment": environment(),
                    "sources_sha256": sources([*trainer.setup.plugins.bound, *trainer.data.formats.values()]),
                    **manifest.describe(trainer.setup),
                    "model_class": type(trainer.loaded.model).__name__,
                    "attention": running_attention(trainer.loaded.model),
                    "notes": list(trainer.loaded.notes),
                    "model_sha256": self._model_sha256,
                    "seed": trainer.args.seed,
                    "data": {
                        "train_rows_sha256": self.rows_hash(),
                        "formats": {name: describe_plugin(one) for name, one in trainer.data.formats.items()},
                        "ledgers": [ledger.summary() for ledger in trainer.data.ledgers],
                        **self._streams(),
                    },
                    **({"nonfinite": found} if (found := trainer.nonfinite.as_dict())["count"] else {}),
                    **({"documents": proof.record()} if (proof := trainer.shared_rows.proof) else {}),
                    "steps": trainer.state.global_step,
                    "max_steps": trainer.state.max_steps,
                    **self.extra,
                }
            ),
        )

    def rows_hash(self) -> str | None:
        """Hash of the prepared training rows; None for a stream."""
        from datasets import Dataset

        rows = self._trainer.train_dataset
        if self._data_hash is None and isinstance(rows, Dataset) and "input_ids" in rows.column_names:
            self._data_hash = manifest.sha256_of_rows(rows)
        return self._data_hash


class StopAt(TrainerCallback):
    """Ends a run after so many steps, on the schedule of a longer one."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop once they are done."""
        if state.global_step >= self._steps:
            control.should_training_stop = True
