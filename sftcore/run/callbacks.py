"""What a run leaves behind while it goes: the log of metrics, and the manifest."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from transformers import TrainerCallback

from sftcore.chat_tokens import supervised_ids
from sftcore.eos import trained_stop
from sftcore.parity import record_of, saved_parity
from sftcore.run import manifest
from sftcore.run.checkpoints import final_place
from sftcore.run.summary import plan_lines

if TYPE_CHECKING:
    from sftcore.trainer import SFTTrainer


class RunRecorder(TrainerCallback):
    """Writes `metrics.jsonl`, a line for each log, `manifest.json` and `ledger.json`, on the first rank.

    `extra` is added to the manifest: the command line puts recipe and data files there.
    """

    def __init__(self, trainer: SFTTrainer) -> None:
        self._trainer = trainer
        self._data_hash: str | None = None
        self.extra: dict[str, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Say what the run will do, and start a new log unless the run is resumed."""
        if state.is_world_process_zero:
            for line in plan_lines(self._trainer):
                print(line, file=sys.stderr)
            folder = Path(args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            if state.global_step == 0:
                (folder / "metrics.jsonl").write_text("", encoding="utf-8")
            self.write_manifest(folder)
            ledgers = [ledger.as_dict() for ledger in self._trainer.data.ledgers]
            (folder / "ledger.json").write_text(
                json.dumps({"schema": 1, "ledgers": ledgers}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Append what was logged."""
        if state.is_world_process_zero and logs and self._trainer.is_in_train:
            with (Path(args.output_dir) / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")

    def check_parity(self, folder: Path) -> None:
        """Record what the run trains with, and warn where the folder, as it was saved, would be served otherwise."""
        trainer = self._trainer
        tokenizer = trainer.data.tokenizer
        trained = record_of(
            tokenizer, trainer.loaded.model, trained_stop(tokenizer, supervised_ids(trainer.train_dataset))
        )
        checks = saved_parity(folder, trained)
        self.extra["chat"] = trained.as_dict()
        self.extra["parity"] = [attrs.asdict(check) for check in checks]
        for check in checks:
            if check.state == "differs":
                saved = final_place(folder)
                warnings.warn(f"{saved} would be served otherwise than it was trained: {check}", stacklevel=2)

    def write_manifest(self, folder: Path) -> None:
        """Write the manifest as it stands now."""
        trainer = self._trainer
        # What goes to the hub does not say how the folders of this machine are named
        spelled = manifest.public if trainer.args.push_to_hub else dict
        manifest.write(
            folder,
            spelled(
                {
                    "versions": manifest.versions(),
                    **manifest.describe(trainer.setup),
                    "model_class": type(trainer.loaded.model).__name__,
                    "notes": list(trainer.loaded.notes),
                    "seed": trainer.args.seed,
                    "data": {
                        "train_rows_sha256": self._rows_hash(),
                        "formats": {name: manifest.describe_plugin(one) for name, one in trainer.data.formats.items()},
                        "ledgers": [ledger.summary() for ledger in trainer.data.ledgers],
                    },
                    **({"documents": proof.record()} if (proof := trainer.shared_rows.proof) else {}),
                    "steps": trainer.state.global_step,
                    **self.extra,
                }
            ),
        )

    def _rows_hash(self) -> str | None:
        from datasets import Dataset

        rows = self._trainer.train_dataset
        if self._data_hash is None and isinstance(rows, Dataset) and "input_ids" in rows.column_names:
            self._data_hash = manifest.sha256_of_rows(rows)
        return self._data_hash
