"""Attention, kernels, noise and adapters on a tiny model: what is right leaves nothing behind, the rest is named."""

from __future__ import annotations

import copy

import pytest
import torch

from sftcore import PatchReport
from sftcore.trials.measured import weights_hash
from sftcore.trials.model import ModelTrial, trained_fault
from tests.conftest import make_llama


@pytest.fixture
def model(tokenizer):
    found = make_llama(tokenizer)
    found.set_attn_implementation("sdpa")
    return found


@pytest.fixture
def attention(model):
    """Make the model use an attention of this function, and try it."""

    def tried(change, **options):
        _register("acme_trial", change)
        model.set_attn_implementation("acme_trial")
        return ModelTrial(model).attention(**options)

    return tried


def _register(name, change):
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    def attend(*args, **kwargs):
        return change(sdpa_attention_forward, *args, **kwargs)

    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, sdpa_mask)


# --- Attention --------------------------------------------------------------------------------------------------------
def scaled(by):
    def change(plain, *args, **kwargs):
        found, weights = plain(*args, **kwargs)
        return found * by, weights

    return change


class _OnlyBackward(torch.autograd.Function):
    """The identity, whose gradient is three times too large."""

    @staticmethod
    def forward(ctx, given):
        return given.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 3 * gradient


def wrong_gradient(plain, *args, **kwargs):
    found, weights = plain(*args, **kwargs)
    return _OnlyBackward.apply(found), weights


def not_causal(plain, module, query, key, value, attention_mask, **kwargs):
    return plain(module, query, key, value, torch.zeros_like(attention_mask, dtype=query.dtype), is_causal=False)


def detached_keys(plain, module, query, key, value, *args, **kwargs):
    return plain(module, query, key.detach(), value, *args, **kwargs)


def sees_itself_alone(plain, module, query, key, value, *args, **kwargs):
    groups = query.shape[1] // value.shape[1]
    return value.repeat_interleave(groups, 1).transpose(1, 2).contiguous(), None


def test_an_attention_that_computes_the_same_passes(attention):
    assert attention(scaled(1.0)).fault == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (scaled(0.5), "its logits differ by"),
        (scaled(1.01), "its logits differ by"),
        (scaled(float("nan")), "NaN"),
        (not_causal, "its logits differ by"),
        (sees_itself_alone, "its logits differ by"),
        (wrong_gradient, "gradient"),
        (detached_keys, "gradient"),
    ],
)
def test_an_attention_that_computes_something_else_is_named_with_the_bound(attention, change, said):
    fault = attention(change).fault

    assert said in fault
    assert "NaN" in fault or "allowed" in fault


def test_a_difference_that_is_declared_is_said(attention):
    found = attention(sees_itself_alone, exact=False)

    assert found.fault == ""
    assert "declares that it computes something else: logits differ by" in found.notes[0]


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_attention_of_transformers_itself_needs_no_pass(model, name):
    model.set_attn_implementation(name)
    trial = ModelTrial(model)

    assert (trial.attention().fault, trial.passes) == ("", 0)


def test_documents_end_to_end_are_compared_with_each_in_a_row_of_its_own(model):
    from sftcore.documents.proof import keep_documents_apart

    _register("acme_trial", scaled(1.0))
    model.set_attn_implementation("acme_trial")
    way = keep_documents_apart(model, None, flattened=True).way

    assert ModelTrial(model, way, flattened=True).attention().fault == ""
    assert ModelTrial(model, way).attention().fault == ""
    leaky = ModelTrial(model, lambda batch: {"input_ids": batch["input_ids"]}, flattened=True)
    assert "differ" in leaky.attention().fault


# --- Kernels ----------------------------------------------------------------------------------------------------------
def patch(model, change, undo=True, layer=1, part="mlp"):
    """A kernel in the place of one part of a layer."""

    def put():
        target = getattr(model.model.layers[layer], part)
        plain = target.forward
        target.forward = change(plain)

        def take_off():
            target.forward = plain

        return PatchReport((part,), undo=take_off if undo is True else undo or None)

    return put


def same(plain):
    return lambda *args: plain(*args)


def times(factor):
    return lambda plain: lambda *args: plain(*args) * factor


def backward_wrong(plain):
    return lambda *args: _OnlyBackward.apply(plain(*args))


def no_gradient(plain):
    return lambda *args: plain(*args).detach()


def rounded(plain):
    return lambda *args: plain(*args).bfloat16().float()


def test_a_kernel_that_computes_the_same_passes(model):
    assert ModelTrial(model).kernel(patch(model, same)).fault == ""


@pytest.mark.parametrize("part", ["mlp", "input_layernorm"])
@pytest.mark.parametrize("change", [times(1.5), times(1.01), backward_wrong, no_gradient, rounded, times(float("inf"))])
def test_a_kernel_that_computes_something_else_is_named(model, change, part):
    fault = ModelTrial(model).kernel(patch(model, change, part=part)).fault

    assert "allowed in float32: 5e-05" in fault or "NaN" in fault or "gradient" in fault, fault


def test_the_gradient_of_a_weight_alone_is_compared_too(model):
    def frozen_weight(plain):
        norm = model.model.layers[0].input_layernorm
        return lambda x: norm.weight.detach() * (x * (x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt())

    fault = ModelTrial(model).kernel(patch(model, frozen_weight, layer=0, part="input_layernorm")).fault

    assert "the gradient of model.layers.0.input_layernorm.weight" in fault or "gradients differ" in fault, fault


def test_a_kernel_without_undo_is_named(model):
    found = ModelTrial(model).kernel(patch(model, same, undo=None))

    assert found.fault == "it replaced mlp and its PatchReport has no undo"


@pytest.mark.parametrize("break_it", ["nothing", "weights", "other"])
def test_an_undo_that_does_not_restore_is_named(model, break_it):
    mlp = model.model.layers[1].mlp

    def undo():
        if break_it == "weights":
            del mlp.forward
            with torch.no_grad():
                mlp.up_proj.weight.mul_(1 / 3)
        elif break_it == "other":
            mlp.forward = lambda x: type(mlp).forward(mlp, x) * 1.0000001

    if break_it == "weights":
        with torch.no_grad():
            mlp.up_proj.weight.mul_(1)

    fault = ModelTrial(model).kernel(patch(model, times(1.000001), undo=undo)).fault

    assert fault.startswith("after undo"), fault


def test_a_kernel_that_declares_a_difference_is_said(model):
    found = ModelTrial(model).kernel(lambda: _declared(patch(model, times(1.5))()))

    assert found.fault == ""
    assert "declares" in found.notes[0]


def _declared(report):
    return PatchReport(report.replaced, undo=report.undo, exact=False)


# --- Noise ------------------------------------------------------------------------------------------------------------
def hook(model, change):
    return model.get_input_embeddings().register_forward_hook(lambda module, args, output: change(output))


def hiss(output):
    return output + 0.1 * torch.empty_like(output).uniform_(-1, 1)


def test_noise_that_is_off_when_it_is_removed_passes(model):
    assert ModelTrial(model).noise(lambda: hook(model, hiss)).fault == ""


class Handle:
    def __init__(self, remove=lambda: None):
        self.remove = remove


def test_noise_that_stays_on_is_named(model):
    def inject():
        hook(model, hiss)
        return Handle()

    assert "after remove logits differ" in ModelTrial(model).noise(inject).fault


def test_noise_without_a_handle_that_stays_on_is_named(model):
    assert "after remove" in ModelTrial(model).noise(lambda: hook(model, hiss) and None).fault


def test_noise_that_changes_weights_is_named(model):
    weight = model.get_input_embeddings().weight

    def inject():
        weight.data.add_(0.01)
        return Handle(lambda: weight.data.sub_(0.01))

    assert ModelTrial(model).noise(inject).fault == "after remove the weights are not those from before"


def test_noise_that_is_not_finite_is_named(model):
    assert "NaN" in ModelTrial(model).noise(lambda: hook(model, lambda output: output * float("nan"))).fault


def test_noise_that_does_nothing_is_said(model):
    assert "it changed nothing" in ModelTrial(model).noise(lambda: hook(model, lambda output: output)).notes[0]


# --- Adapters ---------------------------------------------------------------------------------------------------------
def test_what_trains_gets_a_gradient(model):
    from peft import LoraConfig, get_peft_model

    assert ModelTrial(model).adapter().fault == ""
    assert ModelTrial(get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM"))).adapter().fault == ""


def test_an_adapter_that_the_model_does_not_use_is_named(model):
    model.requires_grad_(False)
    model.model.layers[0].extra = torch.nn.Linear(4, 4)

    assert "none of the 2 parameters that train gets a gradient" in ModelTrial(model).adapter().fault


def test_a_part_that_the_model_does_not_use_is_named(model):
    for layer in model.model.layers:
        layer.extra = torch.nn.Linear(4, 4)

    fault = ModelTrial(model).adapter().fault

    assert "4 of" in fault
    assert "such as model.layers.0.extra.weight, get no gradient" in fault


def test_a_model_in_which_nothing_trains_is_named(model):
    assert trained_fault({}, model).fault == "no parameter of the model trains"


# --- Nothing is left --------------------------------------------------------------------------------------------------
def test_all_trials_leave_the_model_as_it_was(model):
    model.eval()
    model.model.layers[0].train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.model.norm.register_buffer("seen", torch.zeros(1))
    handle = model.model.norm.register_forward_hook(lambda module, *_: module.seen.add_(1) and None)
    before, random = weights_hash(model), torch.get_rng_state()
    flags = [module.training for module in model.modules()]
    names = [set(vars(module)) for module in model.modules()]
    hooks = [copy.copy(list(module._forward_hooks)) for module in model.modules()]
    trial = ModelTrial(model)

    found = [
        trial.attention(),
        trial.kernel(patch(model, same)),
        trial.noise(lambda: hook(model, hiss)),
        trial.adapter(),
    ]

    assert [one.fault for one in found] == [""] * 4
    assert weights_hash(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == flags
    assert [list(module._forward_hooks) for module in model.modules()] == hooks
    assert all(one.grad is None for one in model.parameters())
    assert model.is_gradient_checkpointing
    assert model.config._attn_implementation == "sdpa"
    left = [set(vars(module)) - had for module, had in zip(model.modules(), names, strict=True)]
    assert set().union(*left) <= {"forward"}  # this test's own undo puts a method back where a class had it
    handle.remove()
