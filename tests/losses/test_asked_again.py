"""A loss whose gradient is computed in the forward pass, in the hands of who wants more than one gradient of it."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from sftcore import TokenLoss
from sftcore.losses.asked_again import asked_again


def parts(seed=0, **kind):
    torch.manual_seed(seed)
    head = torch.nn.Linear(8, 16, **kind)
    return torch.randn(7, 8, **kind).requires_grad_(), head, torch.arange(7) % 5


def found(hidden, head, labels, **options):
    loss = TokenLoss(lambda log_probs: -log_probs, **{"chunk": 3, **options})
    return loss(hidden, head, labels, None, torch.tensor(7.0)).loss


def wanted(hidden, head, labels):
    return cross_entropy(head(hidden).float(), labels)


def test_a_graph_that_is_retained_gives_the_same_gradients_again():
    hidden, head, labels = parts()
    leaves = [hidden, *head.parameters()]
    with asked_again():
        loss = found(hidden, head, labels)
    first = torch.autograd.grad(loss, leaves, torch.tensor(3.0), retain_graph=True)
    for one in first:
        one.zero_()  # whoever was given them may do with them what he likes
    second = torch.autograd.grad(loss, leaves, retain_graph=True)
    third = torch.autograd.grad(loss, leaves)
    for got, other, one in zip(second, third, torch.autograd.grad(wanted(hidden, head, labels), leaves), strict=True):
        torch.testing.assert_close(got, one)
        torch.testing.assert_close(other, one)


@pytest.mark.parametrize("hooked", [False, True])
def test_the_gradient_can_be_differentiated(hooked):
    def penalty(loss_of):
        hidden, head, labels = parts()
        if hooked:
            head.weight.register_hook(lambda grad: grad * 2)
        with asked_again():
            loss = loss_of(hidden, head, labels)
        gradients = torch.autograd.grad(loss * 2, [hidden, head.weight], create_graph=True)
        (loss + sum((one**2).sum() for one in gradients)).backward()
        return hidden.grad, head.weight.grad, head.bias.grad

    for got, one in zip(penalty(found), penalty(wanted), strict=True):
        torch.testing.assert_close(got, one)


def test_a_second_gradient_that_nobody_has_announced_is_refused_and_never_zero():
    hidden, head, labels = parts()
    with pytest.raises(RuntimeError, match="can itself not be differentiated"):
        torch.autograd.grad(found(hidden, head, labels), [head.weight], create_graph=True)


@pytest.mark.parametrize("chunk", [3, None])
def test_transforms_of_torch_func_get_the_plain_loss(chunk):
    hidden, head, labels = parts()
    weights = {name: one.detach() for name, one in head.named_parameters()}

    def of(loss_of, **options):
        def loss(weights, hidden):
            called = lambda states: torch.func.functional_call(head, weights, states)  # noqa: E731
            return loss_of(hidden, called, labels, **options)

        return loss

    ours, plain = of(found, chunk=chunk), of(wanted)
    gradients, expected = (torch.func.grad(one)(weights, hidden.detach()) for one in (ours, plain))
    for name, one in expected.items():
        torch.testing.assert_close(gradients[name], one)
    tangent = torch.ones_like(hidden)
    got, one = (torch.func.jvp(lambda h, f=f: f(weights, h), (hidden.detach(),), (tangent,)) for f in (ours, plain))
    torch.testing.assert_close(got, one)


def test_weights_that_are_no_parameters_get_their_gradient():
    """As where a head is called with other weights than its own."""
    hidden, head, labels = parts()
    other = {name: torch.randn_like(one).requires_grad_() for name, one in head.named_parameters()}

    def called(states):
        return torch.func.functional_call(head, other, states)

    got, one = (torch.autograd.grad(loss(hidden, called, labels), list(other.values())) for loss in (found, wanted))
    torch.testing.assert_close(got, one)


def test_what_a_loss_of_ones_own_learns_gets_its_gradient():
    hidden, head, labels = parts()
    power = torch.nn.Parameter(torch.tensor(1.5))
    loss = TokenLoss(lambda log_probs: (-log_probs) ** power, chunk=3)(hidden, head, labels, None, torch.tensor(7.0))
    expected = (cross_entropy(head(hidden), labels, reduction="none") ** power).sum() / 7
    torch.testing.assert_close(
        torch.autograd.grad(loss.loss, [power, head.weight]), torch.autograd.grad(expected, [power, head.weight])
    )


def test_under_autocast_the_second_gradient_is_the_first():
    hidden, head, labels = parts()
    with asked_again(), torch.autocast("cpu", torch.bfloat16):
        loss = found(hidden, head, labels)
    first = [one.clone() for one in torch.autograd.grad(loss, [hidden, head.weight], retain_graph=True)]
    torch.testing.assert_close(torch.autograd.grad(loss, [hidden, head.weight]), tuple(first))
