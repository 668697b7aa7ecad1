"""Three optimizer steps of a small Llama by SFTTrainer, and what they came to; what the checks compare."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.util
from collections.abc import Iterator
from typing import Any

from .models import SHAPES, device, folder_of, on_cuda, output_folder, random_weights, rows
from .worker import NotRun

STEPS = 3
LAYOUTS: dict[str, dict[str, Any]] = {
    "padded": {"padding_free": False},
    "padding-free": {"padding_free": True, "max_length": None},
    "packed": {"packing": True},
}
DTYPES: dict[str, dict[str, Any]] = {
    "autocast": {"model_init_kwargs": {"dtype": "float32"}, "bf16": True},
    "bfloat16": {"model_init_kwargs": {"dtype": "bfloat16"}, "bf16": False},
}
"""float32 weights under bfloat16 autocast, and bfloat16 weights without it."""
IMPLEMENTATIONS = {
    "sdpa": "sdpa", "eager": "eager", "varlen": "sftcore_varlen", "flash-1": "sftcore_fa1",
    "flash-2": "flash_attention_2", "flash-3": "flash_attention_3", "flex": "flex_attention",
}  # fmt: skip
PACKAGES = {"flash-2": ("flash_attn",), "flash-3": ("flash_attn_interface",)}
ON_GPUS_ALONE = ("flash-1", "flash-2", "flash-3", "flex")
TOLERANCE = 2e-2
"""Between losses of different kernels in bfloat16, in nats."""


def need_attention(name: str) -> None:
    """Raises NotRun where this machine lacks what the attention needs."""
    if name in ON_GPUS_ALONE and not on_cuda():
        raise NotRun(f"no GPU for the kernel of {name}")
    need_packages(*PACKAGES.get(name, ()))


def need_packages(*modules: str) -> None:
    """Raises NotRun where one is not installed."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise NotRun(f"{module} is not installed")


def need_cuda(what: str) -> None:
    """Raises NotRun where the device is the stand-in."""
    if not on_cuda():
        raise NotRun(f"no GPU for {what}")


def settings(**fields: Any) -> dict[str, Any]:
    """Fields of SFTConfig that all checks share: two micro-batches in a step, every loss logged."""
    return {
        "output_dir": output_folder(), "max_steps": STEPS, "logging_steps": 1, "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2, "learning_rate": 1e-3, "max_length": 128, "save_strategy": "no",
        "report_to": "none", "gradient_checkpointing": False, "disable_tqdm": True, "seed": 3, **fields,
    }  # fmt: skip


def small() -> str:
    """The name of the shape that is checked; heads of 64, which all kernels take."""
    return "check" if on_cuda() else "tiny"


@contextlib.contextmanager
def trainer_of(
    *, saved: str = "", shape: str = "", lengths: str = "short", lora: bool = False, **fields: Any
) -> Iterator[Any]:
    """A trainer of the small Llama, of another shape, or of that in the folder `saved`; with `lora`, of an adapter."""
    from datasets import Dataset
    from peft import LoraConfig

    from sftcore import SFTConfig, SFTTrainer

    shape = shape or small()
    adapter = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
    with contextlib.nullcontext() if saved else random_weights(), contextlib.redirect_stdout(None):
        yield SFTTrainer(
            saved or folder_of(shape),
            SFTConfig(**settings(**fields)),
            train_dataset=Dataset.from_list(rows(48, lengths, SHAPES[shape].vocab_size)),
            peft_config=adapter,
        )


def train(**options: Any) -> dict[str, Any]:
    """Train, and require that the run took place on the device and that the head saw supervised positions only.

    Returns:
        losses, the attention's implementation, how documents of a row were kept apart, peak_mib.
    """
    with trainer_of(**options) as trainer:
        reset_peak()
        trainer.train()
        model, proof = trainer.model, trainer.shared_rows.proof
        placed = {one.device.type for one in model.parameters()}
        assert placed == {device().type}, f"the model is on {placed}"
        assert trainer.bound_loss.gathers, f"it builds all logits: {trainer.bound_loss.reason}"
        return {
            "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
            "attention": model.config.get_text_config()._attn_implementation,
            "way": proof and proof.way.name,
            "peak_mib": peak_mib(),
            "offloaded_bytes": trainer.offloading.num_bytes if trainer.offloading else 0,
            "notes": list(trainer.loaded.notes),
        }


@functools.cache
def plain_losses(dtype: str, layout: str, lora: bool = False) -> list[float]:
    """The losses with sdpa and without kernels: of padded rows, but of packed ones where they are packed.

    Padding-free batches hold the rows of padded ones.
    """
    layout = "packed" if layout == "packed" else "padded"
    fields = {**DTYPES[dtype], **LAYOUTS[layout], "plugins": {"attention": "sdpa", "loss": "nll"}}
    losses: list[float] = train(lora=lora, **fields)["losses"]
    return losses


def assert_losses(found: list[float], wanted: list[float]) -> None:
    """Each loss, and that something is learnt."""
    assert_same_losses(found, wanted)
    assert found[-1] < found[0], f"nothing is learnt: {found}"


def assert_same_losses(found: list[float], wanted: list[float]) -> None:
    """Each loss."""
    assert len(found) == len(wanted) == STEPS, f"{len(found)} losses in {STEPS} steps"
    gaps = [abs(one - same) for one, same in zip(found, wanted, strict=True)]
    assert max(gaps) <= TOLERANCE, f"the losses are {found}, those of the plain run {wanted}"


def reset_peak() -> None:
    """Count the device's peak memory from here on, without what nobody holds any more."""
    import torch

    gc.collect()
    if on_cuda():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_mib() -> float | None:
    """Since `reset_peak`; None of the stand-in, which counts none."""
    import torch

    return torch.cuda.max_memory_allocated() / 2**20 if on_cuda() else None
