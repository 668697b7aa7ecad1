"""Short runs of SFTTrainer, to be called in a process with the stand-in and in one without."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

STEPS = 3
DOUBLES = Path(__file__).parents[1] / "plugins" / "attention" / "doubles"


def rows(count: int = 16) -> list[dict[str, str]]:
    """Documents of different lengths."""
    return [{"prompt": f"say {i}:", "completion": " hello world" * (1 + i % 4)} for i in range(count)]


def on_device() -> bool:
    """Whether this process has the stand-in."""
    return "ACCELERATE_TORCH_DEVICE" in os.environ


def settings(output: str, **fields: Any) -> dict[str, Any]:
    """What all runs share: two micro-batches in a step, every loss logged."""
    return {
        "output_dir": output, "max_steps": STEPS, "logging_steps": 1, "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2, "learning_rate": 1e-3, "max_length": 32, "save_strategy": "no",
        "report_to": "none", "gradient_checkpointing": False, "bf16": False, "dataset_cache": False,
        "disable_tqdm": True, "use_cpu": not on_device(), **fields,
    }  # fmt: skip


def outcome(trainer: Any) -> dict[str, Any]:
    """Train, and what it came to: losses, notes of the plan, the device, whether the head gathered, the waits."""
    from transformers import TrainerCallback

    from sftcore.testing.standin.waits import counting

    offloaded = []

    class Watch(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            offloaded.append(trainer.offloading.num_bytes if trainer.offloading else 0)

    trainer.add_callback(Watch())
    with counting() as waits:
        trainer.train()
    proof = trainer.shared_rows.proof
    return {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "logged": trainer.state.log_history,
        "notes": list(trainer.loaded.notes),
        "gathers": trainer.bound_loss.gathers,
        "offloaded": offloaded,
        "way": proof and proof.way.name,
        "attention": trainer.model.config.get_text_config()._attn_implementation,
        "device": str(next(trainer.model.parameters()).device),
        "waits": {"total": waits.total, "kinds": dict(waits.kinds), "where": dict(waits.where.most_common())},
    }


def train(
    *,
    model: dict[str, Any] | None = None,
    dtype: str = "float32",
    lora: bool = False,
    also: str = "nothing",
    norm_kernel: bool = False,
    **fields: Any,
) -> dict[str, Any]:
    """Three steps of a tiny Llama.

    Args:
        model: overrides of its configuration.
        dtype: of its weights.
        lora: whether an adapter trains instead of the model.
        also: "evaluation", "metrics" computed from logits in evaluations, or "generation" afterwards.
        norm_kernel: whether the norms are computed by a kernel that takes tensors of the device alone.
        fields: of SFTConfig.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig

    from sftcore import SFTConfig, SFTTrainer
    from tests.conftest import make_llama, make_tokenizer

    if "flash" in (fields.get("plugins") or {}).get("attention", ""):
        _let_flash_run()
    if norm_kernel:
        compute_norms_by_a_kernel()
    tokenizer = make_tokenizer()
    evaluates = also in ("evaluation", "metrics")
    if evaluates:
        fields.update(eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=2)
    with tempfile.TemporaryDirectory() as output, contextlib.redirect_stdout(None):
        trainer = SFTTrainer(
            make_llama(tokenizer, **(model or {})).to(getattr(torch, dtype)),
            SFTConfig(**settings(output, **fields)),
            train_dataset=Dataset.from_list(rows()),
            eval_dataset=Dataset.from_list(rows(5)) if evaluates else None,
            processing_class=tokenizer,
            peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None,
            compute_metrics=_share_of_right_tokens if also == "metrics" else None,
        )
        found = outcome(trainer)
        if also == "generation":
            found["generated"] = _generated(trainer.model, tokenizer)
    return found


def train_images(*, family: str, **fields: Any) -> dict[str, Any]:
    """Three steps of a tiny vision-language model on rows with images and without; `family` as in plugins/vlm/tiny."""
    from datasets import Dataset

    from sftcore import SFTConfig, SFTTrainer
    from sftcore.testing.tiny_vlm import make_vlm
    from tests.plugins.vlm.test_training import mixed

    model, processor = make_vlm(family)
    with tempfile.TemporaryDirectory() as output, contextlib.redirect_stdout(None):
        trainer = SFTTrainer(
            model,
            SFTConfig(**{**settings(output, max_length=512), **fields}),
            train_dataset=Dataset.from_list(mixed() * 2),
            processing_class=processor,
        )
        return outcome(trainer)


def _share_of_right_tokens(prediction: Any) -> dict[str, float]:
    guesses, labels = prediction.predictions.argmax(-1)[..., :-1], prediction.label_ids[..., 1:]
    return {"right": float((guesses == labels)[labels != -100].mean())}


def _generated(model: Any, tokenizer: Any) -> list[int]:
    import torch

    ids = tokenizer("say hello", return_tensors="pt")["input_ids"].to(model.device)
    model.eval()
    with torch.no_grad():
        found: list[int] = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)[0].cpu().tolist()
    return found


@functools.cache
def compute_norms_by_a_kernel() -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    from sftcore.testing.standin.device import kernel

    own = LlamaRMSNorm.forward
    norm = kernel(lambda hidden_states, weight, self: own(self, hidden_states))
    LlamaRMSNorm.forward = lambda self, hidden_states: norm(hidden_states, self.weight, self)


@functools.cache
def _let_flash_run() -> None:
    """Flash kernels for the stand-in: of flash-attn the double, which takes its tensors alone; of torch the plain one.

    What transformers and the plugins ask for before they use a kernel is answered as on a GPU.
    """
    import attrs
    import transformers.modeling_flash_attention_utils as utils
    from sftcore_plugins.attention import flash1, flash2
    from transformers import PreTrainedModel

    from sftcore.testing.standin.device import kernel

    info = Path(tempfile.mkdtemp()) / "flash_attn-2.8.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: flash-attn\nVersion: 2.8.3\n")
    sys.path[:0] = [str(info.parent), str(DOUBLES)]
    import flash_attn

    for name in ("flash_attn_func", "flash_attn_varlen_func"):
        setattr(flash_attn, name, kernel(getattr(flash_attn, name)))
    utils.is_flash_attn_2_available = lambda *args, **kwargs: True
    PreTrainedModel._flash_attn_can_dispatch = lambda *args, **kwargs: True
    flash1.BACKEND = attrs.evolve(flash1.BACKEND, devices=(), dtypes=flash1.HALVES)
    flash2.BACKEND = attrs.evolve(flash2.BACKEND, devices=())
