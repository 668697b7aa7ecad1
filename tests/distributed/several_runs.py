"""What several processes have to give as one: `several_runs.py MODEL FOLDER CASE...`, in one process or in several.

Each case is a function that returns what is compared; what it raises is written in its place.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import TrainerCallback

from sftcore import SFTTrainer
from sftcore.testing.libraries import spare_libraries
from tests.distributed.case_runs import INDEX, PADDED, WORLD, Run, equal_rows, logged, rows, stream
from tests.distributed.predicted_runs import GATHERED
from tests.distributed.ranked_runs import LORA, SHARDED


# --- A loss of one's own ----------------------------------------------------------------------------------------------
class OwnMean(SFTTrainer):
    """Takes the mean over the tokens of its own batch."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        wanted = inputs["labels"][:, 1:].flatten()
        loss = F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), wanted)
        return (loss, outputs) if return_outputs else loss


class OwnDivision(SFTTrainer):
    """Divides by hand, which gives NaN also as a gradient."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        wanted = inputs["labels"][:, 1:]
        each = F.cross_entropy(outputs.logits[:, :-1].transpose(1, 2), wanted, reduction="none")
        loss = each.sum() / (wanted != -100).sum()
        return (loss, outputs) if return_outputs else loss


class OwnSum(SFTTrainer):
    """Divides by the tokens of all processes, as it should."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        wanted = inputs["labels"][:, 1:].flatten()
        loss = F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), wanted, reduction="sum")
        loss = loss / (wanted != -100).sum() if num_items_in_batch is None else loss * WORLD / num_items_in_batch
        return (loss, outputs) if return_outputs else loss


class OwnTerm(SFTTrainer):
    """Adds a term to the loss of the plugin."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        wanted = inputs["labels"][:, 1:].flatten()
        loss = loss + 0.1 * F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), wanted)
        return (loss, outputs) if return_outputs else loss


def own(run: Run, kind: type, name: str, *, as_stream: bool = False, **given: Any) -> Any:
    """17 rows: the last round of an epoch has one, and the second process none."""
    make = stream if as_stream else Dataset.from_list
    trainer = run.trainer(
        name, make(equal_rows(17)), kind=kind, eval_dataset=make(equal_rows(5)), eval_strategy="steps", eval_steps=3,
        shuffle_dataset=False, train_sampling_strategy="sequential",
        **{**PADDED, "num_train_epochs": 2, "max_steps": 6, **given},
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(run.folder / name))
    return logged(trainer)


def own_mean(run: Run) -> Any:
    return own(run, OwnMean, "own_mean")


def own_mean_stream(run: Run) -> Any:
    return own(run, OwnMean, "own_mean_stream", as_stream=True)


def own_mean_skip(run: Run) -> Any:
    return own(run, OwnMean, "own_mean_skip", on_nonfinite="skip")


def own_division(run: Run) -> Any:
    return own(run, OwnDivision, "own_division")


def own_sum(run: Run) -> Any:
    return own(run, OwnSum, "own_sum")


def own_term(run: Run) -> Any:
    return own(run, OwnTerm, "own_term")


# --- Decisions --------------------------------------------------------------------------------------------------------
class Sets(TrainerCallback):
    """Sets flags of the control on one process alone."""

    def __init__(self, event: str, step: int, *flags: str, rank: int) -> None:
        self._step, self._flags, self._rank = step, flags, rank
        setattr(self, event, self._set)

    def _set(self, args, state, control, **_):
        if state.global_step == self._step and (WORLD == 1 or self._rank == INDEX):
            for flag in self._flags:
                setattr(control, flag, True)
        return control


class Evaluations(TrainerCallback):
    """Counts evaluations and saves."""

    def __init__(self) -> None:
        self.evaluated: list[int] = []
        self.saved: list[int] = []

    def on_evaluate(self, args, state, control, **_):
        self.evaluated.append(state.global_step)

    def on_save(self, args, state, control, **_):
        self.saved.append(state.global_step)


def flags(run: Run) -> Any:
    """What becomes of flags that one process alone sets, at each event that may set one."""
    cases = {
        "save": ("on_step_end", 2, "should_save"),
        "evaluate": ("on_step_end", 2, "should_evaluate", "should_log"),
        "stop": ("on_step_end", 2, "should_training_stop"),
        "epoch": ("on_step_end", 1, "should_epoch_stop"),
        "log": ("on_log", 2, "should_save"),
        "evaluated": ("on_evaluate", 2, "should_training_stop", "should_save"),
        "substep": ("on_substep_end", 1, "should_training_stop"),
        "saved": ("on_save", 3, "should_training_stop"),
        "epoch_end": ("on_epoch_end", 4, "should_save"),
    }
    found = {}
    for number, (name, (event, step, *names)) in enumerate(cases.items()):
        counts = Evaluations()
        given = {"save_strategy": "steps", "save_steps": 3} if name == "saved" else {}
        trainer = run.trainer(
            f"flags-{name}", Dataset.from_list(rows(32)), eval_dataset=Dataset.from_list(rows(4)),
            **{"max_steps": 6, "eval_strategy": "steps", "eval_steps": 1 if name == "evaluated" else 100,
               "gradient_accumulation_steps": 2 if name == "substep" else 1, "callbacks": [counts], **given},
        )  # fmt: skip
        trainer.add_callback(Sets(event, step, *names, rank=number % 2))
        trainer.train()
        found[name] = [trainer.state.global_step, counts.evaluated, counts.saved]
    return found


# --- The best checkpoint ----------------------------------------------------------------------------------------------
def best(run: Run, name: str, **given: Any) -> Any:
    """The checkpoints that each state calls the best, what is left, and the steps of the weights that were saved."""
    if WORLD > 1:
        given |= {"fsdp": True, "fsdp_config": WHOLE if "whole" in name else SHARDED}
    fields = {
        "save_strategy": "steps", "eval_strategy": "steps", "load_best_model_at_end": True, "max_steps": 6,
        "save_steps": 2, "eval_steps": 2, "save_total_limit": 2,
    }  # fmt: skip
    trainer = run.trainer(
        name, Dataset.from_list(equal_rows(16)), eval_dataset=Dataset.from_list(equal_rows(8)),
        **{**fields, **PADDED, **given},
    )  # fmt: skip
    trainer.train()
    states = {
        one.name: json.loads((one / "trainer_state.json").read_text()) for one in trainer_folders(run.folder / name)
    }
    trainer.save_model(str(run.folder / name / "final"))
    return {
        "best": Path(trainer.state.best_model_checkpoint).name,
        "metric": trainer.state.best_metric,
        "named": {one: Path(state["best_model_checkpoint"] or "none").name for one, state in states.items()},
        "evaluated": [one["eval_loss"] for one in trainer.state.log_history if "eval_loss" in one],
    }


WHOLE = {**SHARDED, "state_dict_type": "FULL_STATE_DICT"}


def trainer_folders(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"))


def saved_weights(folder: Path) -> dict[str, torch.Tensor]:
    [found] = folder.glob("*model.safetensors")
    return load_file(found)


ADAPTED = {"plugins": {**LORA, "attention": "sdpa"}}


def best_lora(run: Run) -> Any:
    return best(run, "best_lora", **ADAPTED, save_steps=1, eval_steps=1)


def best_full(run: Run) -> Any:
    return best(run, "best_full")


def best_worse(run: Run) -> Any:
    """The best one is neither the first nor the last."""
    scores = iter((1.0, 3.0, 2.0))
    given = {"metric_for_best_model": "score", "greater_is_better": True}
    return best(run, "best_worse", compute_metrics=lambda _: {"score": next(scores)}, **given)


def best_whole(run: Run) -> Any:
    return best(run, "best_whole", **ADAPTED, save_steps=1, eval_steps=1)


def half(run: Run) -> Any:
    """In bfloat16 what is logged, of DDP and of FSDP2."""
    found = {}
    for name in ("ddp", "fsdp") if WORLD > 1 else ("ddp",):
        sharding = {"fsdp": True, "fsdp_config": WHOLE} if name == "fsdp" else {}
        trainer = run.trainer(
            f"half-{name}", Dataset.from_list(equal_rows(16)), eval_dataset=Dataset.from_list(equal_rows(8)),
            eval_strategy="steps", eval_steps=2, max_steps=2, bf16=True, **PADDED, **sharding,
        )  # fmt: skip
        trainer.train()
        names = ("loss", "eval_loss", "entropy", "eval_entropy")
        found[name] = [one[key] for one in trainer.state.log_history for key in names if key in one]
    return found


TRAINED = (own_mean, own_mean_stream, own_mean_skip, own_division, own_sum, own_term, flags)
BEST = (best_lora, best_full, best_worse, best_whole, half)
CASES = {one.__name__: one for one in (*GATHERED, *TRAINED, *BEST)}


def write(name: str, run: Run) -> None:
    try:
        found = CASES[name](run)
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {error}"}
        if WORLD == 1:
            raise
    (run.folder / f"{name}-{INDEX}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    spare_libraries()
    for _name in sys.argv[3:]:
        write(_name, Run(*sys.argv[1:3]))
    if WORLD > 1:
        torch.distributed.barrier()
