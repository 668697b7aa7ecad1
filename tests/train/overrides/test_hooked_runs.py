"""Whoever hangs a hook on what trains in the head sees what transformers' own Trainer shows: one whole gradient."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from sftcore import ConflictError, SFTConfig, SFTTrainer
from sftcore.train.refusals import refuse_lost_hooks
from tests.conftest import alpaca_rows, make_llama
from tests.model.test_bound_loss import build
from tests.train.overrides.twins import FIELDS, assert_same, twins


def scale(parameter, seen):
    parameter.register_hook(lambda grad: grad * 0.1)


def clamp(parameter, seen):
    parameter.register_hook(lambda grad: grad.clamp(-1e-3, 1e-3))


def noise(parameter, seen):
    generator = torch.Generator().manual_seed(1)
    parameter.register_hook(lambda grad: grad + torch.randn(grad.shape, generator=generator))


def record(parameter, seen):
    parameter.register_hook(lambda grad: seen.notes.append(grad.norm().item()))


def after_accumulation(parameter, seen):
    parameter.register_post_accumulate_grad_hook(lambda one: seen.notes.append(one.grad.norm().item()))


def on_the_node(parameter, seen):
    seen.node = parameter.view_as(parameter).grad_fn.next_functions[0][0]
    seen.node.register_prehook(lambda grads: seen.notes.append(grads[0].norm().item()))


def of_several(parameter, seen):
    from torch.autograd.graph import register_multi_grad_hook

    register_multi_grad_hook([parameter], lambda grads: seen.notes.append(grads[0].norm().item()))


def on(name, *hooks):
    def hang(model, seen):
        for hook in hooks:
            hook(model.get_parameter(name), seen)

    return hang


HEAD = "lm_head.weight"
LORA = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
OF_LORA = "base_model.model.lm_head.lora_B.default.weight"
WHOLE = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
OF_WHOLE = "base_model.model.lm_head.modules_to_save.default.weight"


def held(own, other):
    assert_same(own, other)
    assert own.notes == pytest.approx(other.notes, rel=1e-4)


@pytest.mark.parametrize("tied", [False, True])
def test_all_kinds_of_hooks_at_once_see_one_gradient_of_each_step(tmp_path, tokenizer, tied, capsys):
    hooks = record, clamp, scale, record, after_accumulation, on_the_node, of_several
    model = make_llama(tokenizer, tie_word_embeddings=tied)
    own, other = twins(tmp_path, tokenizer, model=model, hang=on("model.embed_tokens.weight" if tied else HEAD, *hooks))
    held(own, other)
    assert len(own.notes) == 10
    said = [line for line in capsys.readouterr().err.splitlines() if "on the head's weight" in line]
    assert len(said) == 1
    assert "computed a second time in the backward pass" in said[0]


VARIANTS = [
    ({"peft_config": LORA}, on(OF_LORA, record, scale)),
    ({"peft_config": WHOLE}, on(OF_WHOLE, record, clamp)),
    ({"gradient_accumulation_steps": 4, "max_steps": 1}, on(HEAD, record, noise)),
    ({"packing": True, "max_length": 64}, on(HEAD, clamp, record)),
    ({"label_smoothing_factor": 0.1}, on(HEAD, scale, record)),
    ({}, on("model.norm.weight", record, scale)),
    ({"gradient_checkpointing": True}, on(HEAD, noise)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("fields", "hang"), VARIANTS)
def test_variants_of_hooked_runs(tmp_path, tokenizer, fields, hang):
    rows = Dataset.from_list(alpaca_rows(16))
    own, other = twins(tmp_path, tokenizer, hang=hang, rows=rows, **fields)
    assert_same(own, other, fields.get("max_steps", 2))
    assert own.notes == pytest.approx(other.notes, rel=1e-4)


def on_a_parametrized_head(model, seen):
    class Twice(torch.nn.Module):
        def forward(self, weight):
            return weight * 2

    torch.nn.utils.parametrize.register_parametrization(model.lm_head, "weight", Twice())
    for hook in (record, scale):
        hook(model.lm_head.parametrizations.weight.original, seen)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "hang"),
    [
        ("Gemma2", on(HEAD, record, scale)),
        ("Cohere", on(HEAD, record, clamp)),
        ("Granite", on(HEAD, record, noise)),
        ("Llama", on_a_parametrized_head),
    ],
)
def test_other_heads(tmp_path, tokenizer, family, hang):
    """With a soft-cap, a scale and a divisor, and with a weight that is computed anew in each call."""
    model = make_llama(tokenizer) if family == "Llama" else build(family)
    model.resize_token_embeddings(len(tokenizer))
    held(*twins(tmp_path, tokenizer, model=model, hang=hang))


def test_hooks_on_modules_see_all_logits_and_their_gradient(tmp_path, tokenizer, capsys):
    def hang(model, seen):
        def forward(module, args, output):
            if torch.is_grad_enabled():  # not what is tried before the first step
                seen.shapes = [*getattr(seen, "shapes", []), tuple(output.shape)]

        model.lm_head.register_forward_hook(forward)
        model.lm_head.register_full_backward_hook(lambda module, of_input, of_output: seen.notes.append(
            of_output[0].norm().item()
        ))  # fmt: skip
        model.register_forward_hook(lambda module, args, output: setattr(seen, "last", type(output)))

    own, other = twins(tmp_path, tokenizer, hang=hang)
    held(own, other)
    assert own.shapes[-2:] == other.shapes == [(2, 28, len(tokenizer))] * 2
    assert own.last is other.last
    said = capsys.readouterr().err
    assert said.count("a forward hook on the head: the forward pass builds all logits, 2 x 28 x 318 (0.1 MiB") == 1


def test_a_hook_on_the_model_is_given_its_outputs_and_may_add_to_the_loss(tmp_path, tokenizer):
    def hang(model, seen):
        def add(module, args, output):
            if torch.is_grad_enabled():
                seen.notes.append(output.loss.item())
                output.loss = output.loss + 3 * (output.logits**2).mean()
                output.logits = output.logits * 2

        model.register_forward_hook(add)

    held(*twins(tmp_path, tokenizer, hang=hang))


def test_a_run_without_hooks_takes_the_fast_way(tmp_path, tokenizer, monkeypatch, capsys):
    from sftcore.losses import head_gradient

    def refused(*args, **kwargs):
        raise AssertionError("the head is computed twice")

    monkeypatch.setattr(head_gradient, "checkpoint", refused)
    own, other = twins(tmp_path, tokenizer, hang=on(HEAD, after_accumulation, on_the_node))
    held(own, other)
    assert "builds all logits" not in capsys.readouterr().err


@pytest.mark.parametrize("registered", ["register_hook", "register_post_accumulate_grad_hook"])
def test_a_hook_that_shards_would_drop_is_found_where_its_parameter_trains(tokenizer, registered):
    model = make_llama(tokenizer)
    weight = model.model.norm.weight
    handle = getattr(weight, registered)(lambda one: None)
    refuse_lost_hooks(model, sharded=False)
    with pytest.raises(ConflictError, match=rf"the hook of {registered} on model\.norm\.weight would never be called"):
        refuse_lost_hooks(model, sharded=True)
    refuse_lost_hooks(model.requires_grad_(False), sharded=True)
    model.requires_grad_(True)
    handle.remove()
    refuse_lost_hooks(model, sharded=True)


class GradSampleModule(torch.nn.Module):
    """As Opacus has it: it passes on what it does not have itself."""

    __module__ = "opacus.grad_sample.grad_sample_module"

    def __init__(self, module):
        super().__init__()
        self._module = module

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._modules["_module"], name)


class DPOptimizer(torch.optim.SGD):
    __module__ = "opacus.optimizers.optimizer"


def per_sample(model):
    def hook(module, *_):
        return None

    hook.__module__ = "opacus.grad_sample.gsm_base"
    model.lm_head.register_full_backward_hook(hook)
    return model


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda model: (GradSampleModule(model), None), "GradSampleModule of Opacus"),
        (lambda model: (model, DPOptimizer(model.parameters(), lr=0.1)), "DPOptimizer of Opacus"),
        (lambda model: (per_sample(model), None), "a hook of Opacus on Linear"),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_gradients_by_sample_are_refused_by_name(tmp_path, tokenizer, made, said, late):
    model, rows = make_llama(tokenizer), Dataset.from_list(alpaca_rows(2))

    def run(model, optimizer):
        args = SFTConfig(str(tmp_path), **FIELDS)
        return SFTTrainer(
            model, args, train_dataset=rows, processing_class=tokenizer, optimizers=(optimizer, None)
        )  # fmt: skip

    if not late:
        with pytest.raises(ConflictError, match=f"{said} takes gradients by rows"):
            run(*made(model))
        return
    trainer = run(model, None)
    trainer.model, optimizer = made(trainer.model)
    trainer.optimizer = optimizer
    with pytest.raises(ConflictError, match=f"{said} takes gradients by rows"):
        trainer.train()
