"""Random combinations of hooks, optimizers, steps and losses of one's own: the gradients of transformers' Trainer.

Each combination trains two steps with both trainers on the same batches. None of them is refused.
"""

from __future__ import annotations

import random

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from tests.conftest import alpaca_rows, make_llama
from tests.train.overrides import subclasses
from tests.train.overrides.twins import assert_same, twins

COMBINATIONS = 200

pytestmark = pytest.mark.slow

HOOKS = {
    "scale": lambda one, seen: one.register_hook(lambda grad: grad * 0.1),
    "clamp": lambda one, seen: one.register_hook(lambda grad: grad.clamp(-1e-3, 1e-3)),
    "rows": lambda one, seen: one.register_hook(lambda grad: grad * (torch.arange(len(grad)) % 2)[:, None]),
    "record": lambda one, seen: one.register_hook(lambda grad: seen.notes.append(grad.norm().item())),
    "accumulated": lambda one, seen: one.register_post_accumulate_grad_hook(
        lambda one: seen.notes.append(one.grad.norm().item())
    ),
    "in place": lambda one, seen: one.register_post_accumulate_grad_hook(lambda one: subclasses.halve(one)),
}
"""What is hung on a parameter of two dimensions."""

ON_MODULES = {
    "forward": lambda head, model, seen: head.register_forward_hook(lambda module, args, output: output * 1.5),
    "backward": lambda head, model, seen: head.register_full_backward_hook(
        lambda module, of_input, of_output: (of_input[0] * 0.5,)
    ),
    "loss": lambda head, model, seen: model.register_forward_hook(subclasses.add_to_loss),
}


def hung(rng):
    """Up to three hooks on the head and elsewhere, as a function that hangs them."""
    on_parameters = [(rng.choice(["head", "norm", "any"]), rng.choice([*HOOKS])) for _ in range(rng.choice([0, 1, 2]))]
    on_module = rng.choice([None, None, None, *ON_MODULES])
    place = rng.random()

    def hang(model, seen):
        causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        head = causal.get_output_embeddings()
        wide = [one for one in model.parameters() if one.requires_grad and one.ndim == 2]
        of_head = [one for one in head.parameters() if one.requires_grad and one.ndim == 2]
        for where, kind in on_parameters:
            chosen = of_head if where == "head" and of_head else wide
            HOOKS[kind](chosen[int(place * len(chosen))], seen)
        if on_module:
            ON_MODULES[on_module](head, causal, seen)

    return hang, {"parameters": on_parameters, "module": on_module}


def adapter(rng):
    kind = rng.choice(["full", "full", "lora", "lora on the head", "head whole"])
    if kind == "full":
        return kind, None
    targets = ["q_proj", "down_proj", *(["lm_head"] if kind == "lora on the head" else [])]
    saved = ["lm_head"] if kind == "head whole" else None
    return kind, LoraConfig(r=2, target_modules=targets, modules_to_save=saved, task_type="CAUSAL_LM")


@pytest.mark.parametrize("seed", range(COMBINATIONS))
def test_a_combination_gives_the_gradients_of_transformers_own_trainer(tmp_path, tokenizer, seed):
    rng = random.Random(seed)
    kind, peft_config = adapter(rng)
    hang, hooks = hung(rng)
    names = [name for name in (rng.choice([None, *subclasses.LOSSES]), rng.choice([None, *subclasses.OTHERS])) if name]
    fields = {
        "gradient_accumulation_steps": rng.choice([1, 1, 2, 4]),
        "gradient_checkpointing": rng.random() < 0.2,
        **rng.choice([{}, {}, {}, {"padding_free": True}, {"packing": True, "max_length": 64}]),
        **({"label_smoothing_factor": 0.1} if rng.random() < 0.3 else {}),
    }
    own_optimizer = rng.random() < 0.3
    tied = rng.random() < 0.4 and kind in ("full", "lora")
    said = {"adapter": kind, "hooks": hooks, "subclass": names, "tied": tied, "optimizer": own_optimizer, **fields}
    model = make_llama(tokenizer, seed, tie_word_embeddings=tied, attn_implementation="eager")
    rows = Dataset.from_list(alpaca_rows(2 * 2 * fields["gradient_accumulation_steps"] + rng.randrange(4)))
    own, other = twins(
        tmp_path, tokenizer, model=model, peft_config=peft_config, hang=hang, rows=rows,
        subclass=subclasses.made_of(*names, *(["create_optimizer"] if own_optimizer else [])), **fields,
    )  # fmt: skip
    try:
        assert_same(own, other)
        assert own.notes == pytest.approx(other.notes, rel=1e-4, abs=1e-6)
    except AssertionError as error:
        raise AssertionError(f"{said}: {error}") from error
