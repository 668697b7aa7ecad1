"""What a checkpoint holds beside transformers' own files, and the log of metrics brought back to a checkpoint.

transformers saves model, optimizer, schedule, random numbers and the lines that were logged. `run_state_RANK.json`
holds what else a curve needs to continue as if nothing had happened: sums since the last log, running totals, the place
in the data, and what was due and not yet done.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from attrs import define, field

from sftcore.util.disk import replace_text

SCHEMA = 1


@define
class RunState:
    """One rank's part of a run between two steps.

    `loss_sum` and `logged_at` belong to the loss that is logged next, `total_loss` to the mean over the whole run.
    `epoch` and `batches` are the place in the data, `stream` the state of a stream's own reader there, `ended` whether
    it has no more rows. `epoch_random` is torch's random state at the epoch's start, from which the order is drawn.
    `evaluate` and `end_epoch` were due when the checkpoint was saved.
    """

    loss_sum: float = 0.0
    logged_at: int = 0
    total_loss: float = 0.0
    metrics: dict[str, Any] = field(factory=dict)
    grad_norm: float | None = None
    learning_rate: float | None = None
    epoch: int = 0
    batches: int = 0
    stream: dict[str, Any] | None = None
    ended: bool = False
    epoch_random: str = ""
    evaluate: bool = False
    end_epoch: bool = False
    watch: dict[str, Any] = field(factory=dict)
    facts: dict[str, Any] = field(factory=dict)
    rows: dict[str, Any] = field(factory=dict)

    def write(self, folder: Path, rank: int) -> None:
        """Write it into a checkpoint."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {"schema": SCHEMA, **attrs.asdict(self)}
        (folder / _name(rank)).write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path, rank: int) -> RunState | None:
        """The state in a checkpoint; None where it has none that this version can read."""
        try:
            found = json.loads((folder / _name(rank)).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if found.pop("schema", None) != SCHEMA:
            return None
        known = {one.name for one in attrs.fields(cls)}
        return cls(**{name: value for name, value in found.items() if name in known})


def _name(rank: int) -> str:
    return f"run_state_{rank}.json"


def storable(state: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state of a stream as JSON keeps it; None where something in it would come back as something else."""
    try:
        found: dict[str, Any] = json.loads(json.dumps(state))
    except (TypeError, ValueError):
        return None
    return found if found == state else None


def rewind_log(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Bring `metrics.jsonl` to the lines that a checkpoint knows: later ones go, lost or broken ones come back.

    Args:
        path: the file, which need not be there.
        history: `trainer.state.log_history`, each entry with its "step".
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    kept = []
    for number, entry in enumerate(history):
        wanted = {"step": entry["step"], **entry}
        line = lines[number] if number < len(lines) else ""
        kept.append(line if _read(line) == wanted else json.dumps(wanted))
    replace_text(path, "".join(f"{line}\n" for line in kept))


def _read(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def source_of(loader: Any, is_stream: Callable[[Any], bool]) -> Any:
    """The stream below a loader's shards and wrappers; None where there is none."""
    found = loader.dataset
    while found is not None and not is_stream(found):
        found = getattr(found, "dataset", None) or getattr(found, "source", None)
    return found


class NothingLeft(Exception):
    """A run resumes from a checkpoint at or behind its last step; says so in a sentence."""


def refuse_no_step(step: int, max_steps: int, output_dir: Path) -> None:
    """Stop a resumed run that has no step to take, before it writes anything.

    A run that ended between its last checkpoint and its end is not stopped: an evaluation may be due, and the model.

    Raises:
        NothingLeft: the checkpoint is behind the last step, or at it, and the run that wrote it came to its end.
    """
    if step > max_steps or (step == max_steps and _ended(output_dir / "metrics.jsonl", step)):
        raise NothingLeft(
            f"the checkpoint is at step {step:,}, and the run has {max_steps:,}: nothing is left to train"
        )


def _ended(log: Path, step: int) -> bool:
    """Whether the log has the line that transformers writes when a run is over."""
    try:
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return False
    return any("train_runtime" in line and line.get("step") == step for line in lines)
