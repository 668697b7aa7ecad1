"""LoRA training of a Llama of real size by one library: tokens per second, peak memory and losses for each batch."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import time
from collections.abc import Iterator
from typing import Any

from .models import SHAPES, folder_of, on_cuda, output_folder, random_weights, rows
from .steps import need_attention, need_cuda, need_packages, peak_mib, reset_peak

WARMUP, MEASURED, RANK = 1, 3, 16


def doubled(*, first: int, most: int, **options: Any) -> Iterator[dict[str, Any]]:
    """`measured` for each batch from `first` on, doubled until memory is full or `most` is reached."""
    batch = first
    while batch <= most:
        try:
            found = measured(batch=batch, **options)
        except RuntimeError as error:
            if not any(words in str(error) for words in ("out of memory", "ALLOC_FAILED")):
                raise
            found = None
        if found is None:  # outside the handler, whose error holds on to the trainer's memory
            _free()
            yield {"batch": batch, "out_of_memory": True}
            return
        yield found
        _free()
        batch *= 2


def measured(
    *,
    side: str,
    model: str,
    batch: int,
    lengths: str = "usual",
    attention: str | None = None,
    chunk: int | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """A first step and three that are measured.

    Args:
        side: sftcore or trl.
        model: a name of SHAPES; its weights are bfloat16.
        batch: rows in a step.
        lengths: a name of LENGTHS.
        attention, chunk: sftcore's attention, and positions of the head's chunk; None for what a run takes by itself.
        fields: of SFTConfig, in which all others have their defaults.

    Returns:
        batch, losses, tokens (of all measured steps), peak_mib, tokens_per_second and model_tflops. On the stand-in,
        whose time and memory mean nothing, the last three are None.
    """
    steps = WARMUP + MEASURED
    texts = rows(batch * steps, lengths, SHAPES[model].vocab_size)
    with random_weights(), contextlib.redirect_stdout(None):
        trainer = _trainer(side, model, texts, batch, attention, chunk, fields)
        clock = _clock(trainer)
        reset_peak()
        trainer.train()
        peak = peak_mib()
    lengths_of_rows = [len(one) for one in trainer.train_dataset["input_ids"]]
    supervised = sum(len(row["completion"].split()) + 1 for row in texts[WARMUP * batch :])
    counted = lengths_of_rows[WARMUP * batch :]
    began, ended = clock
    seconds = ended - began
    trained = sum(one.numel() for one in trainer.model.parameters() if one.requires_grad)
    flops = _flops(model, counted, supervised, trained)
    config = trainer.model.config
    real = on_cuda()
    found = {
        "batch": batch,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "tokens": sum(counted),
        "trained_parameters": trained,
        "attention": config._attn_implementation,
        "peak_mib": peak,
        "tokens_per_second": sum(counted) / seconds if real else None,
        "model_tflops": flops / seconds / 1e12 if real else None,
    }
    if side == "sftcore":
        assert trainer.bound_loss.gathers, f"it builds all logits: {trainer.bound_loss.reason}"
        found |= {"padding_free": trainer.padding_free, "notes": list(trainer.loaded.notes)}
    return found


def _trainer(
    side: str,
    model: str,
    texts: list[Any],
    batch: int,
    attention: str | None,
    chunk: int | None,
    fields: dict[str, Any],
) -> Any:
    from datasets import Dataset
    from peft import LoraConfig

    if fields.get("use_liger_kernel"):
        need_cuda("Liger's kernels")
        need_packages("liger_kernel")
    shared = {
        "max_steps": WARMUP + MEASURED, "per_device_train_batch_size": batch, "learning_rate": 2e-4,
        "lr_scheduler_type": "constant", "logging_steps": 1, "save_strategy": "no", "report_to": "none", "seed": 3,
        "train_sampling_strategy": "sequential", "disable_tqdm": True, "model_init_kwargs": {"dtype": "bfloat16"},
        **fields,
    }  # fmt: skip
    if side == "trl":
        need_packages("trl")
        if importlib.util.find_spec("triton") is not None:
            need_cuda("TRL's kernel, which it calls wherever Triton is installed")
        from trl import SFTConfig, SFTTrainer
    else:
        from sftcore import SFTConfig, SFTTrainer

        if attention is not None:
            need_attention(attention)
        chosen = {"attention": attention, "loss": None if chunk is None else {"nll": {"chunk": chunk}}}
        shared["plugins"] = {kind: name for kind, name in chosen.items() if name is not None}
    adapter = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    return SFTTrainer(
        folder_of(model),
        SFTConfig(output_folder(), **shared),
        train_dataset=Dataset.from_list(texts),
        peft_config=adapter,
    )


def _clock(trainer: Any) -> list[float]:
    """The times at which the first step and the last one are done on the device; in between it is not waited for."""
    import torch
    from transformers import TrainerCallback

    ends: list[float] = []

    class Ticks(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step in (WARMUP, state.max_steps):
                if on_cuda():
                    torch.cuda.synchronize()
                ends.append(time.perf_counter())

    trainer.add_callback(Ticks())
    return ends


def _flops(model: str, lengths: list[int], supervised: int, trained: int) -> float:
    """What the model needs for these rows: what is padded, computed again or built without need does not count.

    For each token 4 for a frozen parameter (forward, and the gradient of its input) and 6 for a trained one; the head
    for supervised tokens alone; causal attention of a document of T tokens 6 x width x T x T in each layer.
    """
    shape, tokens = SHAPES[model], sum(lengths)
    attention = 6 * shape.num_hidden_layers * shape.hidden_size * sum(one * one for one in lengths)
    return float(tokens * (4 * shape.body + 6 * trained) + supervised * 4 * shape.head + attention)


def _free() -> None:
    import torch

    gc.collect()
    if on_cuda():
        torch.cuda.empty_cache()


def matmul_tflops() -> float | None:
    """The speed of a bfloat16 product of two 8,192 x 8,192 matrices on this GPU; None of the stand-in."""
    import torch

    if not on_cuda():
        return None
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(10):
        a @ b
    torch.cuda.synchronize()
    return 10 * 2 * 8192**3 / (time.perf_counter() - begin) / 1e12
