"""Layers keep less for the backward pass, and nothing else is different."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import platform

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen3Config,
)

from sftcore.model.memory.made_again import keeping_less
from tests.conftest import make_llama


class Information(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks")),
        *((name, ctypes.c_size_t) for name in ("uordblks", "fordblks", "keepcost")),
    ]


SMALL = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
KINDS = {
    "llama": LlamaConfig(**SMALL),
    "llama with biases": LlamaConfig(**SMALL, mlp_bias=True),
    "mistral": MistralConfig(**SMALL, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8),
    "gemma2 (gelu)": Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8),
}
KINDS |= {
    "phi3 (one projection)": Phi3Config(**SMALL, pad_token_id=0),
    "gpt2 (layer norms)": GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4),
}
IDS = torch.randint(3, 96, (2, 24), generator=torch.Generator().manual_seed(0))


def make(config, *, lora: bool = False, dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(dtype).train()
    if lora:
        model = get_peft_model(
            model, LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1, init_lora_weights=False)
        )
    return model


def step(model, around=contextlib.nullcontext):
    """Loss and gradients, with dropout."""
    model.zero_grad()
    torch.manual_seed(1)
    with around(model):
        loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    return loss.detach(), {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_the_same_bit_by_bit(kind, lora, dtype):
    model = make(KINDS[kind], lora=lora, dtype=dtype)
    wanted, found = step(model), step(model, keeping_less)
    with keeping_less(model) as taking_part:
        assert taking_part >= 2
    assert torch.equal(found[0], wanted[0])
    assert found[1].keys() == wanted[1].keys()
    assert all(torch.equal(found[1][name], gradient) for name, gradient in wanted[1].items())


def kept_by(model, around, unit):
    """How much memory is allocated once a forward pass of 512 tokens is through, in this many bytes."""
    library = ctypes.CDLL(None)
    library.mallinfo2.restype = Information

    def allocated():
        gc.collect()
        found = library.mallinfo2()
        return found.hblkhd + found.uordblks

    model.get_decoder()(input_ids=torch.randint(3, 96, (1, 512)), use_cache=False)  # products keep buffers of their own
    before = allocated()
    with around(model):
        states = model.get_decoder()(input_ids=torch.randint(3, 96, (1, 512)), use_cache=False)[0]
    assert states.requires_grad
    return (allocated() - before) / unit


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc says what is allocated")
def test_of_a_gated_mlp_two_tensors_of_the_inner_width_are_kept_and_not_four():
    model = make(LlamaConfig(**{**SMALL, "intermediate_size": 8192, "num_hidden_layers": 1}))
    assert kept_by(model, contextlib.nullcontext, 512 * 8192 * 4) > 3.9
    assert kept_by(model, keeping_less, 512 * 8192 * 4) < 2.2


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc says what is allocated")
def test_of_a_norm_its_input_is_kept_and_not_its_output_too():
    model = get_peft_model(
        make(LlamaConfig(**{**SMALL, "hidden_size": 4096, "num_hidden_layers": 2, "num_key_value_heads": 1})),
        LoraConfig(r=2, target_modules=["q_proj", "k_proj", "gate_proj", "up_proj"]),
    )
    kept, less = (kept_by(model, around, 512 * 4096 * 4) for around in (contextlib.nullcontext, keeping_less))
    assert kept - less == pytest.approx(3, abs=0.3)  # what the first norm is given is not kept either way


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc says what is allocated")
def test_of_a_norm_in_half_precision_its_input_is_kept_and_no_copy_in_float32():
    model = get_peft_model(
        make(
            LlamaConfig(**{**SMALL, "hidden_size": 4096, "num_hidden_layers": 2, "num_key_value_heads": 1}),
            dtype=torch.bfloat16,
        ),
        LoraConfig(r=2, target_modules=["q_proj", "k_proj", "gate_proj", "up_proj"]),
        autocast_adapter_dtype=False,
    )
    kept, less = (kept_by(model, around, 512 * 4096 * 2) for around in (contextlib.nullcontext, keeping_less))
    # of three norms the copy (of twice the width) and the output; their inputs come instead, which nobody else keeps
    assert kept - less == pytest.approx(6, abs=0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_input_of_a_norm_that_is_changed_in_place_is_noticed(dtype):
    model = make(LlamaConfig(**SMALL), dtype=dtype)
    given = []
    model.model.layers[1].input_layernorm.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    with keeping_less(model):
        loss = model(input_ids=IDS, labels=IDS).loss
    with torch.no_grad():
        given[0].mul_(0.5)
    with pytest.raises(RuntimeError, match="changed in place between the forward pass and the backward pass"):
        loss.backward()


def test_a_second_backward_pass_over_a_kept_graph_gives_the_same(tokenizer):
    model = make_llama(tokenizer)
    with keeping_less(model):
        loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward(retain_graph=True)
    once = [one.grad.clone() for one in model.parameters()]
    loss.backward()
    for first, both in zip(once, model.parameters(), strict=True):
        torch.testing.assert_close(both.grad, 2 * first)


def halved(module, args):
    args[0].mul_(0.5)


def noisy(module, args, output):
    return torch.nn.functional.dropout(output, 0.5)


HOOKS = {
    "what a projection is given, in place": lambda layer: layer.mlp.down_proj.register_forward_pre_hook(halved),
    "what a norm gives, in place": lambda layer: layer.input_layernorm.register_forward_hook(
        lambda module, args, output: output.mul_(0.5)
    ),
    "what the activation gives": lambda layer: layer.mlp.act_fn.register_forward_hook(noisy),
}


@pytest.mark.parametrize("change", HOOKS)
def test_a_hook_that_changes_what_would_be_made_again_is_respected(change):
    model = make(LlamaConfig(**SMALL))
    for layer in model.model.layers:
        HOOKS[change](layer)
    wanted, found = step(model), step(model, keeping_less)
    assert all(torch.equal(found[1][name], gradient) for name, gradient in wanted[1].items())


def test_an_activation_of_somebody_elses_is_not_made_again():
    model = make(LlamaConfig(**SMALL))
    for layer in model.model.layers:
        layer.mlp.act_fn = torch.nn.Sequential(torch.nn.SiLU(), torch.nn.Dropout(0.5))
    wanted, found = step(model), step(model, keeping_less)
    assert all(torch.equal(found[1][name], gradient) for name, gradient in wanted[1].items())


def test_whoever_decides_what_is_kept_around_a_layer_is_let(tokenizer):
    model, sizes = make_llama(tokenizer), []

    def pack(tensor):
        sizes.append(tensor.numel())
        return tensor

    totals = []
    for around in (contextlib.nullcontext, keeping_less):
        sizes.clear()
        with around(model), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(input_ids=IDS, labels=IDS)
        totals.append(sum(sizes))
    assert totals[0] == totals[1]


def test_a_model_that_is_saved_whole_meanwhile_can_be_read_again(tokenizer, tmp_path):
    model = make_llama(tokenizer)
    with keeping_less(model):
        torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(again(input_ids=IDS).logits, model(input_ids=IDS).logits)


def test_functional_gradients_work(tokenizer):
    model = make_llama(tokenizer)

    def loss(parameters):
        return torch.func.functional_call(model, parameters, (), {"input_ids": IDS, "labels": IDS}).loss

    with keeping_less(model):
        found = torch.func.grad(loss)(dict(model.named_parameters()))
    assert found["lm_head.weight"].abs().sum() > 0
