"""Offloading and checkpointing change where activations are, and neither the loss nor any gradient."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from sftcore_plugins.losses.nll import NLL
from torch.utils._python_dispatch import TorchDispatchMode

from sftcore import CheckError, ConflictError, Plan, SFTTrainer
from sftcore.config.checks import memory_problems
from sftcore.model.bound_loss import bind_loss
from sftcore.model.memory.checkpointing import checkpoint_selectively, take_selective
from sftcore.model.memory.offload import SMALLEST, ActivationOffloading
from tests.asking import ask
from tests.conftest import alpaca_rows, make_llama
from tests.train.test_trainer import config, losses

CPU = torch.device("cpu")


def batch():
    ids = torch.randint(4, 300, (2, 64), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "labels": ids.clone()}


def bound(tokenizer, checkpointing=None, **overrides):
    """A model with its loss bound, gradient checkpointing off, on ("full") or selective."""
    model = make_llama(tokenizer, **{"attention_dropout": 0.1, **overrides}).train()
    if checkpointing in ("attention", "matmul"):
        checkpoint_selectively(model, checkpointing)
    if checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    bind_loss(model, NLL().make_loss(loaded=None, plan=Plan(())))
    return model


def step(model, context=None):
    """Loss and gradients of one step with dropout."""
    torch.manual_seed(3)
    if context is None:
        loss = ask(model, 126.0, **batch())["loss"]
    else:
        with context():
            loss = ask(model, 126.0, **batch())["loss"]
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


def assert_same(found, wanted):
    assert torch.equal(found[0], wanted[0])
    for name, gradient in wanted[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-6, atol=1e-8, msg=name)


def bytes_held(model):
    """What is allocated by a forward pass and not freed before the backward pass begins."""
    ask(model, 126.0, **batch())["loss"].backward()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        loss = ask(model, 126.0, **batch())["loss"]
    del loss
    events = profile.profiler.kineto_results.events()
    return sum(event.nbytes() for event in events if event.name() == "[memory]")


# --- Offloading -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("checkpointing", [None, "full", "attention"])
def test_offloading_gives_the_same_gradients_with_and_without_checkpointing(tokenizer, checkpointing):
    model = bound(tokenizer, checkpointing)
    offloading = ActivationOffloading(model, CPU)
    assert_same(step(model, offloading), step(bound(tokenizer, checkpointing)))
    assert offloading.num_bytes > 0


def test_the_next_step_begins_anew(tokenizer):
    model = bound(tokenizer)
    offloading = ActivationOffloading(model, CPU)
    step(model, offloading)
    moved = offloading.num_bytes
    model.zero_grad()
    assert_same(step(model, offloading), step(bound(tokenizer)))
    assert offloading.num_bytes == moved


def test_weights_stay_and_what_several_operations_save_is_moved_once():
    weight = torch.nn.Linear(64, 64, bias=False)
    offloading = ActivationOffloading(weight, CPU)
    x = torch.randn(64, 64, requires_grad=True)
    with offloading():
        y = x * 2
        out = weight(y) + y.sin() + y * y
    assert offloading.num_bytes == y.nbytes
    out.sum().backward()
    torch.testing.assert_close(x.grad, 2 * (weight.weight.sum(0) + y.cos() + 2 * y).detach())


def test_what_was_moved_leaves_its_memory_and_the_copy_goes_with_the_graph():
    offloading = ActivationOffloading(torch.nn.Identity(), CPU)
    x = torch.randn(64, 64, requires_grad=True)
    with offloading():
        middle = x * 2
        gone = weakref.ref(middle)
        out = middle.sin()
        del middle
        gc.collect()
        assert gone() is None
    (copy,) = [reference() for reference in offloading._order]
    assert copy.host.nbytes == x.nbytes
    out.sum().backward()
    torch.testing.assert_close(x.grad, 2 * (2 * x).cos().detach())
    del copy, out
    gc.collect()
    assert [reference() for reference in offloading._order] == [None]


def test_an_address_used_again_is_another_tensor():
    offloading = ActivationOffloading(torch.nn.Identity(), CPU)
    x, total = torch.randn(64, 64, requires_grad=True), 0
    with offloading():
        for k in range(1, 9):  # each product is freed before the next, which is likely to get its memory
            total = total + (x * k).sin()
    total.sum().backward()
    torch.testing.assert_close(x.grad, sum(k * (k * x).cos() for k in range(1, 9)).detach(), rtol=1e-5, atol=1e-5)


def test_small_and_expanded_tensors_stay():
    offloading = ActivationOffloading(torch.nn.Identity(), CPU)
    small = torch.randn(SMALLEST // 4 - 1, requires_grad=True)
    wide = torch.randn(64, 1, requires_grad=True)
    with offloading():
        loss = (small * 1).sin().sum() + (wide.sin().expand(64, 64) * torch.ones(64, 1).expand(64, 64)).sum()
    assert offloading.num_bytes == 0
    loss.backward()
    torch.testing.assert_close(small.grad, small.cos().detach())


def test_offloading_on_a_cpu_is_refused(tmp_path, tokenizer, llama):
    rows = Dataset.from_list(alpaca_rows(4))
    with pytest.raises(CheckError, match="on a CPU, activations are already in host memory"):
        SFTTrainer(llama, config(tmp_path, activation_offloading=True), train_dataset=rows, processing_class=tokenizer)
    if not torch.accelerator.is_available():  # a machine without a GPU, where nobody said use_cpu
        with pytest.raises(ConflictError, match="on a CPU, activations are already in host memory"):
            SFTTrainer(
                llama, config(tmp_path, activation_offloading=True, use_cpu=False), train_dataset=rows,
                processing_class=tokenizer,
            )  # fmt: skip


# --- Checkpointing ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("checkpointing", ["full", "attention", "matmul"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_checkpointing_gives_the_same_gradients(tokenizer, checkpointing, attention, dropout):
    fields = {"attn_implementation": attention, "attention_dropout": dropout}
    models = [bound(tokenizer, how, **fields) for how in (checkpointing, None)]
    assert_same(*map(step, models))


def test_selective_checkpointing_holds_more_than_full_and_less_than_none(tokenizer):
    held = {
        how: bytes_held(bound(tokenizer, how, attention_dropout=0.0)) for how in ("full", "attention", "matmul", None)
    }
    assert held["full"] < held["attention"] < held["matmul"] < held[None]
    assert held["attention"] < 0.5 * held[None]


class Attentions(TorchDispatchMode):
    """Counts what reaches the kernels of attention below it."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "attention" in str(func) and "backward" not in str(func)
        return func(*args, **(kwargs or {}))


def test_attention_runs_once_if_it_is_kept_and_twice_otherwise(tokenizer):
    calls = {}
    for how in (None, "full", "attention"):
        model = bound(tokenizer, how, attention_dropout=0.0)  # which tries its head on a few tokens
        with Attentions() as counter:
            step(model)
        calls[how] = counter.count
    assert calls == {None: 2, "full": 4, "attention": 2}


@pytest.mark.parametrize("adapter", [None, LoraConfig(r=2, target_modules="all-linear")])
@pytest.mark.parametrize("selective", [True, "matmul"])
def test_a_run_with_selective_checkpointing_trains_as_without(tmp_path, tokenizer, adapter, selective):
    def trained(**fields):
        trainer = SFTTrainer(
            make_llama(tokenizer), config(tmp_path, **fields), train_dataset=Dataset.from_list(alpaca_rows(16)),
            processing_class=tokenizer, peft_config=adapter,
        )  # fmt: skip
        trainer.train()
        return trainer

    options = {"selective": selective}
    chosen = trained(gradient_checkpointing=True, gradient_checkpointing_kwargs=options)
    assert losses(chosen) == pytest.approx(losses(trained()), rel=1e-6)
    assert options == {"selective": selective}  # the user's own is left alone
    assert chosen.setup.plan.settings["gradient_checkpointing_kwargs"] == options
    (layer, *_) = [m for m in chosen.model.modules() if hasattr(m, "_gradient_checkpointing_func")]
    assert "context_fn" in layer._gradient_checkpointing_func.keywords
    assert layer._gradient_checkpointing_func.keywords.get("use_reentrant", False) is False


def test_checkpointing_is_never_reentrant_unless_asked_for(tmp_path, tokenizer, llama):
    args = config(tmp_path, gradient_checkpointing=True, max_steps=1)
    rows = Dataset.from_list(alpaca_rows(4))
    SFTTrainer(llama, args, train_dataset=rows, processing_class=tokenizer).train()
    layer = llama.model.layers[0]
    assert layer.gradient_checkpointing
    assert layer._gradient_checkpointing_func.keywords["use_reentrant"] is False


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gradient_checkpointing_kwargs": {"selective": "atention"}}, 'Did you mean "attention"'),
        ({"gradient_checkpointing_kwargs": {"selective": True, "use_reentrant": True}}, "Drop use_reentrant"),
        ({"gradient_checkpointing_kwargs": {"selective": True}, "gradient_checkpointing": False}, "is off"),
        ({"activation_offloading": True, "use_cpu": True}, "already in host memory"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_named(settings, message):
    (problem,) = memory_problems(settings)
    assert message in str(problem)


def test_settings_that_work_give_no_problem():
    for options in ({"selective": "matmul"}, {"selective": False}, {"use_reentrant": True}, {}):
        assert list(memory_problems({"gradient_checkpointing_kwargs": options})) == []


def test_selective_is_taken_out_of_what_torch_gets(tmp_path):
    args = config(tmp_path, gradient_checkpointing_kwargs={"selective": False, "use_reentrant": False})
    assert take_selective(args) is None
    assert args.gradient_checkpointing_kwargs == {"use_reentrant": False}
