"""The trainers and rows on which the self-test measures single training steps.

`reference_trainer` takes only the model, adapter, loss and data from the recipe: attention is transformers' default,
kernels and noise are off, and rows are padded. The self-test then adds the recipe's features one at a time.
`run_trainer` has all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

from sftcore.core.errors import DataError
from sftcore.core.types import IGNORED, Plan
from sftcore.data.images.pictures import DOCUMENTS
from sftcore.trials.measured import Measured, take_gradients

if TYPE_CHECKING:
    from sftcore.documents.shared_rows import SharedRows
    from sftcore.train.checked import Checked
    from sftcore.train.trainer import SFTTrainer

LONGEST = 96
"""The most tokens in a row; rows are cut to different lengths, so that batches need padding."""
SAMPLED = 16
"""How many raw rows are read for each row needed, since some are dropped or have no supervised tokens."""

SHARDED = ("fsdp", "deepspeed")
_LEFT_OUT = (
    *SHARDED, "fsdp_config", "packing", "eval_packing", "padding_free", "activation_offloading",
    "gradient_checkpointing_kwargs", "activation_checkpointing", "activation_checkpointing_kwargs", "torch_compile",
    "torch_compile_backend", "torch_compile_mode",
    "use_liger_kernel", "liger_kernel_config", "loss_type", "neftune_noise_alpha",
)  # fmt: skip
"""The last four fields select plugins; those of the kinds in _KEPT are selected by name instead."""
_KEPT = ("loader", "adapter", "format", "loss", "noise")
_QUIET: dict[str, Any] = {
    "report_to": "none", "save_strategy": "no", "eval_strategy": "no", "eval_on_start": False,
    "load_best_model_at_end": False, "push_to_hub": False, "dataset_cache": False, "resume_from_checkpoint": None,
}  # fmt: skip


def reference_trainer(checked: Checked, num_rows: int, folder: str) -> SFTTrainer:
    """A trainer for the run without its attention, kernels, packing and checkpointing, which writes nothing."""
    from sftcore.train.run import config_of

    fields = {key: value for key, value in config_of(checked.recipe).items() if key not in _LEFT_OUT}
    kwargs = {key: value for key, value in fields["model_init_kwargs"].items() if key != "attn_implementation"}
    fields |= {"model_init_kwargs": kwargs, "plugins": _plugins(checked.setup.plan), "gradient_checkpointing": False}
    return _trainer(checked, fields, num_rows, folder, collator=padded)


def run_trainer(checked: Checked, num_rows: int, folder: str) -> SFTTrainer:
    """A trainer for the run with everything that its recipe asks for."""
    from sftcore.train.run import config_of

    return _trainer(checked, config_of(checked.recipe), num_rows, folder)


def padded(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A padded batch of the rows."""
    from sftcore.data.collate import pad_rows

    return pad_rows(rows, pad_token_id=0)


# so that rows with images are prepared too; `short_rows` leaves them out
padded.images = True  # type: ignore[attr-defined]


def _plugins(plan: Plan) -> dict[str, dict[str, Any]]:
    """The plugins of a plan that the reference keeps, in the form of `SFTConfig.plugins`."""
    found: dict[str, dict[str, Any]] = {}
    for one in plan.selections:
        if one.kind in _KEPT and not one.default:
            name = f"{one.name}@{one.distribution}" if one.distribution else one.name
            found.setdefault(one.kind, {})[name] = dict(one.options)
    return found


def _trainer(checked: Checked, fields: dict[str, Any], num_rows: int, folder: str, collator: Any = None) -> SFTTrainer:
    from pathlib import Path

    from sftcore.config.sft_config import SFTConfig
    from sftcore.data.mixing.mixture import as_mixture
    from sftcore.data.source.several import load_set, rename
    from sftcore.train.row_locations import place_of
    from sftcore.train.trainer import SFTTrainer

    recipe = checked.recipe
    loaded = load_set(checked.train)
    mixture = as_mixture(loaded) or as_mixture([loaded])
    assert mixture is not None
    each = SAMPLED * num_rows // len(mixture.sources) + 1
    rows = [evolve(one, rows=each, weight=None) for one in mixture.sources]
    args = SFTConfig(**{**fields, **_QUIET, "output_dir": folder})
    name = str(Path(recipe.model.name or "").expanduser())
    try:
        return SFTTrainer(name, args=args, train_dataset=rows, data_collator=collator)
    except DataError as error:
        rename(error, {"train_dataset": checked.train}, place_of)
        raise


# --- Rows -----------------------------------------------------------------------------------------------------------
def short_rows(trainer: SFTTrainer, num_rows: int, where: str) -> list[dict[str, Any]]:
    """A few of the trainer's rows of different lengths, cut around their supervised tokens.

    Packed rows are split into documents, and rows with images are left out. The first label of each row is set, as it
    is in plain texts, because a collator has to remove it.

    Raises:
        DataError: fewer than two rows have supervised tokens.
    """
    found: list[dict[str, Any]] = []
    for prepared in trainer.train_dataset:
        for row in _documents(prepared):
            if (cut := _cut(row, LONGEST - LONGEST // 5 * (len(found) % 4))) is not None and len(found) < num_rows:
                found.append(cut)
    if len(found) < 2:
        raise DataError(
            f"only {len(found)} of the first {SAMPLED * num_rows} rows can be used, but the self-test needs several.",
            where=where,
            fix="Give at least 2 rows with supervised tokens and without images.",
        )
    return found


def _documents(prepared: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    columns = ("input_ids", "labels", "weights")
    row = {key: list(prepared[key]) for key in columns if prepared.get(key) is not None}
    row.setdefault("labels", list(row["input_ids"]))
    start = 0
    lengths = prepared.get("seq_lengths") or [len(row["input_ids"])]
    for length, carried in zip(lengths, prepared.get(DOCUMENTS) or [None] * len(lengths), strict=True):
        if carried is None or not carried["images"]:
            yield {key: values[start : start + length] for key, values in row.items()}
        start += length


def _cut(row: Mapping[str, Any], longest: int) -> dict[str, Any] | None:
    """The row cut to `longest` tokens, up to half of them before the first supervised one; None without such tokens."""
    weights = row.get("weights") or [1.0] * len(row["labels"])
    counted = [i for i, label in enumerate(row["labels"]) if i and label != IGNORED and weights[i] > 0]
    if not counted:
        return None
    start = max(0, counted[0] - longest // 2)
    cut = {key: values[start : start + longest] for key, values in row.items()}
    cut["labels"][0] = cut["input_ids"][0]
    if "weights" in cut:
        cut["weights"][0] = 1.0
    return cut


def blocks(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows packed into two blocks, without the first label of each document, as data preparation makes them."""
    half = (len(rows) + 1) // 2
    found = []
    for part in filter(None, (rows[:half], rows[half:])):
        block = {key: [value for row in part for value in row[key]] for key in part[0]}
        block["labels"] = [label for row in part for label in (IGNORED, *row["labels"][1:])]
        block["seq_lengths"] = [len(row["input_ids"]) for row in part]
        found.append(block)
    return found


# --- The trainer's own step ------------------------------------------------------------------------------------------
@frozen
class Step:
    """The micro-batches of one training step, and how documents that share a row are kept apart in them."""

    batches: Sequence[Mapping[str, Any]]
    shared: SharedRows | None = None


def measure_step(trainer: SFTTrainer, step: Step, model: Any = None) -> Measured:
    """The loss and the gradients of one step, computed by the trainer; `model` may be a wrapper of its model."""
    import torch

    from sftcore.documents.shared_rows import SharedRows

    trainer.shared_rows = step.shared or SharedRows()
    batches = [dict(batch) for batch in step.batches]
    trainer.current_gradient_accumulation_steps = len(batches)
    total = trainer.items_of_step(batches)
    trainer.model.zero_grad()
    losses = [trainer.training_step(model or trainer.model, batch, total) for batch in batches]
    scaler = trainer.accelerator.scaler
    scale = float(scaler.get_scale()) if scaler is not None else 1.0
    return Measured(float(torch.stack(losses).sum()), take_gradients(trainer.model, scale))


@contextmanager
def checkpointing(trainer: SFTTrainer, kept: str | None = None, **options: Any) -> Iterator[None]:
    """Gradient checkpointing inside; with `kept`, it is selective and keeps those results."""
    from sftcore.model.memory.checkpointing import checkpoint_selectively
    from sftcore.model.unwrap import causal_model

    causal = causal_model(trainer.model)
    was_selective = "_set_gradient_checkpointing" in vars(causal)
    if kept is not None:
        checkpoint_selectively(causal, kept)
    name = "activation" if hasattr(causal, "activation_checkpointing_enable") else "gradient"
    getattr(causal, f"{name}_checkpointing_enable")({"use_reentrant": False, **options})
    try:
        yield
    finally:
        getattr(causal, f"{name}_checkpointing_disable")()
        if kept is not None and not was_selective:
            del causal._set_gradient_checkpointing


def checkpoints(settings: Mapping[str, Any]) -> bool:
    """Whether a run with these settings uses gradient checkpointing, which it does by default."""
    given = [settings.get(name) for name in ("activation_checkpointing", "gradient_checkpointing")]
    return next((value for value in given if value is not None), True) is not False


def run_batches(
    collator: Any, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
    """The micro-batches that the run's own collator makes of the rows, at least two if there are several rows."""
    items = blocks(rows) if settings.get("packing") else list(rows)
    size = min(settings.get("per_device_train_batch_size") or 8, (len(items) + 1) // 2)
    return [collator([dict(row) for row in items[at : at + size]]) for at in range(0, len(items), size)]
