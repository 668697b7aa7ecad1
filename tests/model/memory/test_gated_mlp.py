"""Gated MLPs keep less for the backward pass, and nothing else is different."""

from __future__ import annotations

import contextlib
import copy
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

from sftcore.model.memory.gated_mlp import keeping_less
from sftcore.model.memory.heap import _Information
from tests.conftest import make_llama

SMALL = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
KINDS = {
    "llama": LlamaConfig(**SMALL),
    "llama with biases": LlamaConfig(**SMALL, mlp_bias=True),
    "mistral": MistralConfig(**SMALL, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8),
    "gemma2 (gelu)": Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8),
}
OTHERS = {
    "phi3 (one projection)": Phi3Config(**SMALL, pad_token_id=0),
    "gpt2": GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4),
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
    assert torch.equal(found[0], wanted[0])
    assert found[1].keys() == wanted[1].keys()
    assert all(torch.equal(found[1][name], gradient) for name, gradient in wanted[1].items())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc says what is allocated")
def test_two_tensors_of_the_inner_width_are_kept_and_not_four():
    model = make(LlamaConfig(**{**SMALL, "intermediate_size": 8192, "num_hidden_layers": 1}))
    ids = torch.randint(3, 96, (1, 512))
    inner = 512 * 8192 * 4

    def allocated():
        library = ctypes.CDLL(None)
        library.mallinfo2.restype = _Information
        found = library.mallinfo2()
        return found.hblkhd + found.uordblks

    def kept(around):
        before = allocated()
        with around(model):
            states = model.model(input_ids=ids, use_cache=False)[0]
        gc.collect()
        assert states.requires_grad
        return (allocated() - before) / inner

    assert kept(contextlib.nullcontext) > 3.9
    assert kept(keeping_less) < 2.2


@pytest.mark.parametrize("kind", OTHERS)
def test_other_mlps_stay_as_they_are(kind):
    model = make(OTHERS[kind])
    with keeping_less(model) as changed:
        assert changed == 0


def test_a_forward_that_somebody_replaced_stays_and_everything_is_taken_back(tokenizer):
    model = make_llama(tokenizer)
    first, second = (layer.mlp for layer in model.model.layers)
    first.forward = own = lambda x: x
    with keeping_less(model) as changed:
        assert changed == 1
        assert vars(first)["forward"] is own
        copied = copy.deepcopy(model)
        assert copied.model.layers[1].mlp.forward.__self__ is copied.model.layers[1].mlp
        second.forward = later = lambda x: x
    assert vars(second)["forward"] is later
    with keeping_less(make_llama(tokenizer)):
        pass
    assert "forward" not in vars(make_llama(tokenizer).model.layers[0].mlp)


def test_a_second_backward_pass_over_a_kept_graph_gives_the_same(tokenizer):
    model = make_llama(tokenizer)
    with keeping_less(model):
        loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward(retain_graph=True)
    once = [one.grad.clone() for one in model.parameters()]
    loss.backward()
    for first, both in zip(once, model.parameters(), strict=True):
        torch.testing.assert_close(both.grad, 2 * first)
