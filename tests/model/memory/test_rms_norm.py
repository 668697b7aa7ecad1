"""RMSNorm in one autograd function: transformers' own results and gradients, bit by bit."""

from __future__ import annotations

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from sftcore.model.memory.rms_norm import rms_norm


def norm_and_input(dtype, weight_dtype, shape=(2, 13, 48), trained=True):
    torch.manual_seed(0)
    norm = LlamaRMSNorm(shape[-1], eps=1e-5)
    torch.nn.init.normal_(norm.weight, 1.0, 0.2)
    return norm.to(weight_dtype).requires_grad_(trained), torch.randn(shape).to(dtype).requires_grad_()


def ours(norm, x):
    return rms_norm(x, norm.weight, norm.variance_epsilon, lambda: None)[0]


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_results_and_gradients_are_those_of_transformers_bit_by_bit(dtype, weight_dtype, trained):
    found = []
    for function in (lambda norm, x: norm(x), ours):
        norm, x = norm_and_input(dtype, weight_dtype, trained=trained)
        normed = function(norm, x)
        normed.backward(torch.linspace(-2, 2, normed.numel()).view(normed.shape).to(normed.dtype))
        found.append([normed.detach(), x.grad, *([norm.weight.grad] if trained else [])])
    assert all(map(torch.equal, *found))
    assert [one.dtype for one in found[0]] == [one.dtype for one in found[1]]


def test_the_weight_alone_may_be_trained():
    norm, x = norm_and_input(torch.bfloat16, torch.bfloat16)
    ours(norm, x.detach()).sum().backward()
    gradient, norm.weight.grad = norm.weight.grad, None
    norm(x.detach()).sum().backward()
    assert torch.equal(gradient, norm.weight.grad)


def test_its_gradient_can_be_differentiated():
    norm, x = norm_and_input(torch.float64, torch.float64, shape=(3, 5))

    def of_gradient(function):
        (gradient,) = torch.autograd.grad(function(norm, x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), [x, norm.weight])

    for one, wanted in zip(of_gradient(ours), of_gradient(lambda norm, x: norm(x)), strict=True):
        torch.testing.assert_close(one, wanted, rtol=1e-5, atol=1e-5)  # both compute in float32


def test_what_was_changed_in_between_is_looked_for_first():
    def check():
        raise RuntimeError("changed")

    norm, x = norm_and_input(torch.bfloat16, torch.bfloat16)
    normed, scale = rms_norm(x, norm.weight, norm.variance_epsilon, check)
    assert not scale.requires_grad
    with pytest.raises(RuntimeError, match="changed"):
        normed.sum().backward()
