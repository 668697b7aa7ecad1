"""What must be right on a GPU before a speed counts: each check is a function that raises where something is wrong."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

from . import attention_checks
from .models import device, folder_of, on_cuda, output_folder
from .steps import (
    DTYPES,
    IMPLEMENTATIONS,
    LAYOUTS,
    STEPS,
    assert_losses,
    assert_same_losses,
    need_attention,
    need_cuda,
    need_packages,
    plain_losses,
    small,
    train,
    trainer_of,
)
from .worker import Task

ON_STANDIN = (("varlen", "autocast", "padding-free"), ("flash-2", "bfloat16", "packed"))
COMPILED = ("flex",)
"""Attentions that are compiled anew for each kind of run, which takes long: of these one run for each dtype."""


def tasks(*, standin: bool) -> list[Task]:
    """All checks, in the order in which they are made, those that compile last; on the stand-in one of a kind."""
    found = [*_attention_tasks(standin=standin), *_waits_tasks(standin=standin)]
    for dtype in DTYPES if not standin else ("bfloat16",):
        for layout in LAYOUTS if not standin else ("packed",):
            options = {"dtype": dtype, "layout": layout}
            found.append(Task(f"kernels and loss of Liger, {dtype}, {layout}", "gpu_run.checks:liger", options))
            found.append(Task(f"loss cce, {dtype}, {layout}", "gpu_run.checks:cce", options))
    found.append(Task("logits of Liger's loss not fused", "gpu_run.checks:liger", {"fused": False}))
    found.append(Task("activation offloading", "gpu_run.checks:offloading"))
    found.append(Task("NF4", "gpu_run.checks:four_bits"))
    found.append(Task("evaluation and generation", "gpu_run.checks:evaluation"))
    found.extend(attention_checks.tasks(standin=standin))
    return sorted(found, key=lambda one: any(slow in one.name for slow in COMPILED))


def _attention_tasks(*, standin: bool) -> Iterator[Task]:
    for attention in IMPLEMENTATIONS:
        for dtype in DTYPES:
            for layout in LAYOUTS:
                refused = attention == "flash-1" and layout == "padded"
                repeated = attention in COMPILED and layout != "packed"
                # of the stand-in the tests try every pair
                beyond = standin and (attention, dtype, layout) not in ON_STANDIN
                if not (refused or repeated or beyond):
                    options = {"attention": attention, "dtype": dtype, "layout": layout}
                    yield Task(f"attention {attention}, {dtype}, {layout}", "gpu_run.checks:attention", options)


def _waits_tasks(*, standin: bool) -> Iterator[Task]:
    for layout in LAYOUTS if not standin else ("packed",):
        for lora in (False, True) if not standin else (True,):
            name = f"no waits in a step, {'LoRA' if lora else 'full'}, {layout}"
            yield Task(name, "gpu_run.checks:waits", {"lora": lora, "layout": layout})


def attention(*, attention: str, dtype: str, layout: str) -> dict[str, Any]:
    """Constructor and three steps, with the head gathered, have the losses of sdpa in the same dtype."""
    need_attention(attention)
    found = train(**DTYPES[dtype], **LAYOUTS[layout], plugins={"attention": attention})
    assert found["attention"] == IMPLEMENTATIONS[attention], f"the model ran with {found['attention']}"
    assert (found["way"] is None) is (layout == "padded"), f"documents are kept apart by {found['way']}"
    assert_losses(found["losses"], plain_losses(dtype, layout))
    return found


def liger(*, dtype: str = "bfloat16", layout: str = "padded", fused: bool = True) -> dict[str, Any]:
    """Liger's kernels and loss have the losses of the plain path."""
    need_cuda("Liger's kernels")
    need_packages("liger_kernel")
    unfused = {} if fused else {"liger_kernel_config": {"cross_entropy": True}}
    found = train(**DTYPES[dtype], **LAYOUTS[layout], use_liger_kernel=True, **unfused)
    assert any("rms_norm" in note for note in found["notes"]), f"no kernel was put in: {found['notes']}"
    assert_losses(found["losses"], plain_losses(dtype, layout))
    return found


def cce(*, dtype: str, layout: str) -> dict[str, Any]:
    """Cut cross-entropy has the losses of the plain path."""
    need_cuda("cut cross-entropy")
    need_packages("cut_cross_entropy")
    found = train(**DTYPES[dtype], **LAYOUTS[layout], plugins={"loss": "cce"})
    assert_losses(found["losses"], plain_losses(dtype, layout))
    return found


# --- Waits ------------------------------------------------------------------------------------------------------------
def waits(*, lora: bool, layout: str) -> dict[str, Any]:
    """No operation of a step makes the host wait, but for one read before the optimizer of whether to take the step.

    The first step, in which kernels are compiled and chosen, is not watched.
    """
    from transformers import TrainerCallback

    fields = {**DTYPES["bfloat16"], **LAYOUTS[layout]}
    with trainer_of(lora=lora, **{**fields, "max_steps": STEPS + 1, "logging_steps": 100}) as trainer:
        guard, reads = trainer.guard, []
        look = guard.before_optimizer

        def look_once(norm: Any) -> None:
            reads.append(trainer.state.global_step)
            with waiting_allowed():
                look(norm)

        guard.before_optimizer = look_once

        class Watch(TrainerCallback):  # type: ignore[misc]
            def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step:
                    forbidden.enter_context(waiting_forbidden())

            def on_step_end(self, *_: Any, **__: Any) -> None:
                forbidden.close()

        trainer.add_callback(Watch())
        with contextlib.ExitStack() as forbidden:
            trainer.train()
        assert reads == [*range(STEPS + 1)], f"the guard has read in the steps {reads}"
        return {"attention": trainer.model.config._attn_implementation}


@contextlib.contextmanager
def waiting_forbidden() -> Iterator[None]:
    """Inside, what makes the host wait for the device raises an error.

    torch finds reads, copies that block and operations whose result has a size that the host must know.
    """
    import torch

    if on_cuda():
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
        return
    from sftcore.testing.standin.waits import counting

    with counting() as found:
        yield
    assert not found.total, f"the host waits: {dict(found.where)}"


@contextlib.contextmanager
def waiting_allowed() -> Iterator[None]:
    """Inside `waiting_forbidden`, an exception to it."""
    import torch

    if on_cuda():
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("default")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
        return
    from sftcore.testing.standin.waits import counting

    with counting():
        yield


# --- Memory and the rest ----------------------------------------------------------------------------------------------
def offloading() -> dict[str, Any]:
    """With activations in host memory, the losses are the same and the peak is lower."""
    # gigabytes of activations: of less, what is being copied would hide what is saved
    large = {"shape": "wide", "lengths": "usual", "max_length": 1024, "per_device_train_batch_size": 8}
    sizes = {**large, "gradient_accumulation_steps": 1} if on_cuda() else {}
    fields = {**DTYPES["bfloat16"], **LAYOUTS["padded"], **sizes, "lora": True, "plugins": {"attention": "sdpa"}}
    kept, moved = (train(**fields, activation_offloading=one) for one in (False, True))
    assert kept["offloaded_bytes"] == 0 < moved["offloaded_bytes"], "nothing was moved"
    assert_same_losses(moved["losses"], kept["losses"])
    if on_cuda():
        assert moved["peak_mib"] < kept["peak_mib"], f"peak {moved['peak_mib']} MiB, {kept['peak_mib']} without it"
    return {"peak_mib": [kept["peak_mib"], moved["peak_mib"]], "offloaded_bytes": moved["offloaded_bytes"]}


def four_bits() -> dict[str, Any]:
    """An adapter trains on an NF4 base."""
    need_cuda("an NF4 base")
    need_packages("bitsandbytes")
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = folder_of(small())  # bitsandbytes quantises what it reads from files
    saved = shutil.copytree(folder, output_folder(), dirs_exist_ok=True)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig.from_pretrained(folder)).to(torch.bfloat16).save_pretrained(saved)
    found = train(saved=saved, **DTYPES["bfloat16"], plugins={"adapter": {"qlora": {"r": 8}}})
    assert found["losses"][-1] < found["losses"][0], f"nothing is learnt: {found['losses']}"
    return found


def evaluation() -> dict[str, Any]:
    """After training a model evaluates, and generates without the loss in its forward."""
    import torch

    with trainer_of(**DTYPES["bfloat16"], eval_strategy="no") as trainer:
        trainer.train()
        evaluated = trainer.evaluate(trainer.train_dataset.select(range(8)))["eval_loss"]
        trained = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-1]
        ids = torch.arange(3, 11, device=device())[None]
        with torch.no_grad():
            written = trainer.model.eval().generate(input_ids=ids, max_new_tokens=4, do_sample=False)
    assert abs(evaluated - trained) < 0.5, f"the evaluation's loss is {evaluated}, the last of training {trained}"
    assert written.shape[1] > ids.shape[1], "nothing was generated"
    return {"eval_loss": evaluated}
