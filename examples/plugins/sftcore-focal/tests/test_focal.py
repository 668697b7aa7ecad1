"""The package as its users meet it: it must be installed (`pip install ".[test]"`)."""

import pytest
import torch
from sftcore_focal import Focal

from sftcore import Plan
from sftcore.core.discovery import discover
from sftcore.testing import LossTests

pytest_plugins = "sftcore.testing"

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.5, 0.0]])
LABELS = torch.tensor([0, 2])


class TestFocal(LossTests):
    plugin = Focal


def loss_of(gamma, logits):
    loss = Focal(gamma=gamma).make_loss(None, Plan(()))
    return loss(logits, torch.nn.Identity(), LABELS, None, torch.tensor(2)).loss


def test_the_loss_is_that_of_the_paper():
    p = LOGITS.softmax(-1)[[0, 1], LABELS]
    assert loss_of(2.0, LOGITS).item() == pytest.approx((-((1 - p) ** 2) * p.log()).mean().item())


def test_a_gamma_of_zero_is_cross_entropy():
    assert loss_of(0.0, LOGITS).item() == pytest.approx(torch.nn.functional.cross_entropy(LOGITS, LABELS).item())


def test_the_gradient_is_that_of_all_logits():
    logits = LOGITS.clone().requires_grad_()
    loss_of(2.0, logits).backward()
    plain = LOGITS.clone().requires_grad_()
    p = plain.softmax(-1)[[0, 1], LABELS]
    (-((1 - p) ** 2) * p.log()).mean().backward()
    torch.testing.assert_close(logits.grad, plain.grad)


def test_the_installed_package_is_discovered_under_its_name():
    entry = discover().find("loss", "focal")
    assert (entry.distribution, entry.load()) == ("sftcore-focal", Focal)
