"""What a run does beside training steps, to be called in a process with the stand-in and in one without."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

from tests.standin.strictness import dtypes_of, errors_of, places_of, waits_of
from tests.standin.training import compute_norms_by_a_kernel, on_device, rows, settings, train, train_images

OF_OTHER_MODULES = {one.__name__: one for one in (dtypes_of, errors_of, places_of, waits_of, train, train_images)}


def run(name: str, **options: Any) -> Any:
    """The function of this name, so that one process can run several."""
    with contextlib.redirect_stdout(None):
        return (globals() | OF_OTHER_MODULES)[name](**options)


def make(output: str, **fields: Any) -> Any:
    """A trainer of a tiny Llama, with evaluation rows."""
    from datasets import Dataset

    from sftcore import SFTConfig, SFTTrainer
    from tests.conftest import make_llama, make_tokenizer

    tokenizer = make_tokenizer()
    return SFTTrainer(
        make_llama(tokenizer),
        SFTConfig(**settings(output, **fields)),
        train_dataset=Dataset.from_list(rows()),
        eval_dataset=Dataset.from_list(rows(5)),
        processing_class=tokenizer,
    )


def evaluated_first(**fields: Any) -> dict[str, Any]:
    """An evaluation before any step, with norms that are computed on the device alone, and steps after it."""
    if on_device():
        compute_norms_by_a_kernel()
    with tempfile.TemporaryDirectory() as output:
        trainer = make(output, packing=True, plugins={"attention": "sdpa"}, **fields)
        evaluated = trainer.evaluate()["eval_loss"]
        proof = trainer.shared_rows.proof
        trainer.train()
    return {
        "evaluated": evaluated,
        "way": proof.way.name,
        "losses": [one["loss"] for one in trainer.state.log_history if "loss" in one],
        "notes": list(trainer.loaded.notes),
    }


def resumed(**fields: Any) -> dict[str, Any]:
    """Two steps saved, two more from there; and four at once. With the weights that were saved at the end."""
    import torch
    from safetensors.torch import load_file

    fields["lr_scheduler_type"] = "constant"  # another would depend on the number of steps
    with tempfile.TemporaryDirectory() as output:
        make(output, max_steps=2, save_strategy="steps", save_steps=2, **fields).train()
        trainer = make(output, max_steps=4, save_strategy="steps", save_steps=2, **fields)
        trainer.train(resume_from_checkpoint="last")
        trainer.save_model()
        saved = load_file(Path(output) / "model.safetensors")
        weights = {name: one.detach().cpu() for name, one in trainer.model.named_parameters()}
    with tempfile.TemporaryDirectory() as output:
        whole = make(output, max_steps=4, **fields)
        whole.train()
    curves = [[one["loss"] for one in each.state.log_history if "loss" in one] for each in (trainer, whole)]
    return {
        "resumed": curves[0],
        "whole": curves[1],
        "differing": [name for name, one in saved.items() if not torch.equal(one, weights[name])],
    }


def predicted() -> dict[str, Any]:
    """The logits of the evaluation rows."""
    with tempfile.TemporaryDirectory() as output:
        trainer = make(output)
        found = trainer.predict(trainer.eval_dataset)
    return {"shape": list(found.predictions.shape), "sum": float(abs(found.predictions).sum())}


def perplexity() -> dict[str, Any]:
    """The perplexity of two rows."""
    import torch

    from sftcore import TokenizedRow
    from sftcore.tools.quantization.perplexity import perplexity as compute
    from tests.conftest import make_llama, make_tokenizer

    model = make_llama(make_tokenizer())
    if on_device():
        model.to(torch.device("standin:0"))
    found = compute(model, [TokenizedRow([5, 6, 7, 8], [-100, -100, 7, 8]), TokenizedRow([9, 10, 11])])
    return {"supervised": found.supervised, "every": found.every}


def made_with_liger(**fields: Any) -> dict[str, Any]:
    """A trainer with Liger's kernels and loss, whose model must not be called while it is made."""
    os.environ["TRITON_INTERPRET"] = "0"  # as where there is a GPU
    from transformers import LlamaForCausalLM

    def called(*_: Any, **__: Any) -> None:
        raise AssertionError("the constructor called the model")

    forward, LlamaForCausalLM.forward = LlamaForCausalLM.forward, called
    try:
        with tempfile.TemporaryDirectory() as output:
            trainer = make(output, use_liger_kernel=True, **fields)
    finally:
        LlamaForCausalLM.forward = forward
    return {"notes": list(trainer.loaded.notes), "loss": type(trainer.bound_loss.loss.function).__name__}


def restored_randomness(*, every: bool) -> list[Any]:
    """What a device is given back of its random state; some have one state, some one for each device."""
    from sftcore.testing.standin.device_module import DeviceModule
    from sftcore.train.parts.randomness import Randomness

    class Module(DeviceModule):
        """A device that draws its own random numbers."""

    import torch

    given: list[Any] = []
    Module.get_rng_state, Module.set_rng_state = staticmethod(lambda: "state"), staticmethod(given.append)
    if every:
        Module.get_rng_state_all, Module.set_rng_state_all = (
            staticmethod(lambda: ["a", "b"]),
            staticmethod(given.extend),
        )
    before, torch.standin = torch.standin, Module() if every else _Single(Module())
    torch.get_device_module.cache_clear()
    try:
        Randomness.now().restore()
    finally:
        torch.standin = before
        torch.get_device_module.cache_clear()
    return given


def offloaded_without_streams() -> str:
    """What a run says that is asked to offload activations on a device without streams, as Apple's is."""
    from sftcore import ConflictError
    from sftcore.testing.standin.device_module import DeviceModule

    stream = DeviceModule.Stream
    del DeviceModule.Stream
    try:
        with tempfile.TemporaryDirectory() as output:
            make(output, activation_offloading=True)
    except ConflictError as error:
        return str(error)
    finally:
        DeviceModule.Stream = stream
    return "nothing"


class _Single:
    """A device module without the functions for several devices, as torch.mps is."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        if name.endswith("_all"):
            raise AttributeError(name)
        return getattr(self._module, name)
