"""Overrides and hooks that several processes and one have to answer alike: `own_code_runs.py MODEL FOLDER CASE...`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, TrainerCallback

from sftcore import ConflictError, SFTTrainer
from sftcore.testing.libraries import spare_libraries
from tests.distributed.case_runs import INDEX, WORLD, Run, equal_rows, logged, rows
from tests.train.overrides.subclasses import made_of

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "distillation.md"
SPLIT = {"gradient_accumulation_steps": 2, "batch": 4}
SHARDED = {"fsdp": True} if WORLD > 1 else {}
HEAD = "lm_head.weight"
LORA = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM", init_lora_weights=False)


def trained(run: Run, name: str, kind: type = SFTTrainer, hang: Any = None, count: int = 12, **given: Any) -> Any:
    """What is logged in two steps, the last with fewer rows, and what the weights are then."""
    fields = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 2, "max_grad_norm": 0.0, **given}
    trainer = run.trainer(name, Dataset.from_list(rows(count)), kind=kind, **fields)
    if hang:
        hang(trainer.model)
    trainer.train()
    whole = {name: getattr(one, "full_tensor", lambda one=one: one)() for name, one in trainer.model.named_parameters()}
    weights = [[one.sum().item(), one.norm().item()] for one in whole.values() if one.requires_grad]
    return {"logged": logged(trainer), "weights": weights}


def scale(name: str) -> Any:
    return lambda model: model.get_parameter(name).register_hook(lambda grad: grad * 0.1)


def halve(one: torch.Tensor) -> None:
    one.grad.mul_(0.5)  # type: ignore[union-attr]


def halve_all(model: Any) -> None:
    for one in model.parameters():
        one.register_post_accumulate_grad_hook(halve)


class OnShards(TrainerCallback):
    def on_train_begin(self, args, state, control, model=None, **_):
        halve_all(model)


class BeforeTheStep(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        for one in model.parameters():
            halve(one)


class TwoPasses(SFTTrainer):
    """A step of its own with two backward passes, on the outputs too."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        inputs, total = self._prepare_inputs(inputs), torch.zeros(())
        for share in (0.25, 0.75):
            loss = self.compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)[0]
            self.accelerator.backward(share * loss)
            total += share * loss.detach()
        return total


def distillation(run: Run, name: str, **given: Any) -> Any:
    """As the page has it."""
    page: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0], page)
    torch.manual_seed(5)
    teacher = AutoModelForCausalLM.from_config(AutoModelForCausalLM.from_pretrained(run.model).config)

    class Distilled(page["Distillation"]):  # type: ignore[misc,name-defined]
        def __init__(self, *args, **kwargs):
            super().__init__(*args, teacher=teacher, hidden=0.3, **kwargs)

    return trained(run, name, Distilled, **given)


def refused(run: Run, name: str) -> Any:
    """Hooks on parameters that shards are put in the place of."""
    said = []
    for number, hang in enumerate((scale(HEAD), halve_all) if WORLD > 1 else ()):
        try:
            trained(run, f"{name}{number}", hang=hang, **SHARDED)
        except ConflictError as error:
            said.append(str(error))
    return said


def dispatched(run: Run, name: str) -> Any:
    """Rows that accelerate cannot join to one batch, and rows that it can."""
    said = []
    options = {"accelerator_config": {"dispatch_batches": True}, "max_steps": 1}
    for number, given in enumerate(({}, {"dataloader_drop_last": True}, {"packing": True, "max_length": 32})):
        try:
            trained(run, f"{name}{number}", count=24, **options, **given)
        except ConflictError as error:
            said.append(str(error))
    trainer = run.trainer(f"{name}-equal", Dataset.from_list(equal_rows(16)), **options)
    trainer.train()
    return {"said": said, "logged": logged(trainer)}


CASES = {
    "distilled": distillation,
    "distilled_split": lambda run, name: distillation(run, name, **SPLIT),
    "distilled_packed": lambda run, name: distillation(run, name, packing=True, max_length=32, batch=2, count=24),
    "distilled_shards": lambda run, name: distillation(run, name, **SHARDED),
    "hook": lambda run, name: trained(run, name, hang=scale(HEAD), **SPLIT),
    "hook_lora": lambda run, name: trained(
        run, name, hang=scale("base_model.model.lm_head.lora_B.default.weight"), peft_config=LORA
    ),
    "halved": lambda run, name: trained(run, name, hang=halve_all),
    "two_passes": lambda run, name: trained(run, name, TwoPasses, hang=scale(HEAD)),
    "two_passes_shards": lambda run, name: trained(run, name, TwoPasses, **SHARDED),
    "twofold": lambda run, name: trained(run, name, made_of("twofold_step", "create_optimizer")(SFTTrainer, None)),
    "on_shards": lambda run, name: trained(run, name, callbacks=[OnShards()], **SHARDED),
    "before_the_step": lambda run, name: trained(run, name, callbacks=[BeforeTheStep()], **SHARDED),
    "refused": refused,
    "dispatched": dispatched,
}


def write(name: str, run: Run) -> None:
    (run.folder / f"{name}-{INDEX}.json").write_text(json.dumps(CASES[name](run, name)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    spare_libraries()
    for _name in sys.argv[3:]:
        write(_name, Run(*sys.argv[1:3]))
    if WORLD > 1:
        torch.distributed.barrier()
