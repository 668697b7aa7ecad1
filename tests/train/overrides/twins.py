"""A run of sftcore, and the same one of transformers' own Trainer, on the same batches: what each step's gradients are.

A subclass is written once, as a function of the trainer that it extends, and is a subclass of both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from attrs import define, field
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from sftcore import SFTConfig, SFTTrainer
from tests.conftest import alpaca_rows, make_llama

FIELDS = {
    "max_steps": 2, "logging_steps": 1, "use_cpu": True, "report_to": "none", "save_strategy": "no", "optim": "sgd",
    "per_device_train_batch_size": 2, "max_grad_norm": 0.0, "learning_rate": 0.1, "lr_scheduler_type": "constant",
    "disable_tqdm": True, "average_tokens_across_devices": False,
}  # fmt: skip


@define(slots=False)
class Seen:
    """What a run showed: each step's gradients by parameter, its log, and whatever hooks of the test wrote down."""

    gradients: list[dict[str, torch.Tensor]] = field(factory=list)
    logs: list[dict[str, float]] = field(factory=list)
    notes: list[Any] = field(factory=list)
    trainer: Any = None

    @property
    def losses(self) -> list[float]:
        return [entry["loss"] for entry in self.logs if "loss" in entry]


class _Gradients(TrainerCallback):
    def __init__(self, seen: Seen) -> None:
        self.seen = seen

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        named = {name: one.grad for name, one in model.named_parameters() if one.requires_grad}
        self.seen.gradients.append({name: None if one is None else one.clone() for name, one in named.items()})


Prepare = Callable[[Any, Seen], None]
Subclass = Callable[[type, Seen], type]


def twins(
    folder: Any,
    tokenizer: Any,
    *,
    model: Any = None,
    peft_config: Any = None,
    hang: Prepare = lambda model, seen: None,
    subclass: Subclass = lambda base, seen: base,
    trainer: dict[str, Any] | None = None,
    rows: Any = None,
    plain: dict[str, Any] | None = None,
    **fields: Any,
) -> tuple[Seen, Seen]:
    """Train twice, first with sftcore and then with transformers' own Trainer.

    Args:
        folder: of the runs.
        tokenizer: of the rows.
        model: what is trained; a copy of it each. A tiny Llama if not given.
        peft_config: as the trainer takes it.
        hang: hangs something on each model, once its adapter is there.
        subclass: extends each of the two trainers.
        trainer: further arguments of both trainers.
        rows: the data set; eight short rows if not given.
        plain: fields of TrainingArguments where they differ from those of SFTConfig.
        fields: of SFTConfig.
    """
    model = make_llama(tokenizer) if model is None else model
    own, other = Seen(), Seen()
    rows = Dataset.from_list(alpaca_rows(8)) if rows is None else rows
    args = SFTConfig(str(folder), **{**FIELDS, "gradient_checkpointing": False, "dataset_cache": False, **fields})
    ours = subclass(SFTTrainer, own)(
        copy.deepcopy(model), args, train_dataset=rows, processing_class=tokenizer, peft_config=peft_config,
        callbacks=[_Gradients(own)], **(trainer or {}),
    )  # fmt: skip
    causal = copy.deepcopy(ours.model)
    hang(ours.model, own)
    batches: list[Any] = []
    loader = ours.get_train_dataloader
    ours.get_train_dataloader = lambda: _kept(loader(), batches)  # type: ignore[method-assign]
    ours.train()
    own.logs, own.trainer = ours.state.log_history, ours

    hang(causal, other)
    shared = {key: getattr(args, key) for key in (*FIELDS, "gradient_accumulation_steps", "label_smoothing_factor")}
    theirs = _sequential(subclass(Trainer, other))(
        causal,
        TrainingArguments(
            str(folder),
            **{**shared, "per_device_train_batch_size": 1, "remove_unused_columns": False, **(plain or {})},
        ),
        train_dataset=batches, data_collator=lambda one: dict(one[0]), callbacks=[_Gradients(other)],
        processing_class=tokenizer, **(trainer or {}),
    )  # fmt: skip
    theirs.train()
    other.logs, other.trainer = theirs.state.log_history, theirs
    return own, other


def _sequential(base: type) -> type:
    class InOrder(base):  # type: ignore[misc,valid-type]
        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    return InOrder


def _kept(loader: Any, batches: list[Any]) -> Any:
    base = getattr(loader, "base_dataloader", loader)
    collate = base.collate_fn

    def keep(rows: Any) -> Any:
        found = collate(rows)
        batches.append({key: value for key, value in found.items() if key not in ("num_tokens", "weights")})
        return found

    base.collate_fn = keep
    return loader


def assert_same(own: Seen, other: Seen, steps: int = 2) -> None:
    """Hold that all gradients of all steps are the same to 1e-5 of the largest."""
    assert len(own.gradients) == len(other.gradients) == steps
    for ours, theirs in zip(own.gradients, other.gradients, strict=True):
        assert ours.keys() == theirs.keys()
        for name, gradient in theirs.items():
            if gradient is None:
                assert ours[name] is None or not ours[name].any(), name
                continue
            gap = (ours[name] - gradient).abs().max() / max(1.0, float(gradient.abs().max()))
            assert gap <= 1e-5, f"{name}: {gap:.2g}"
