"""A loss is a sum over tokens, weighted, divided by num_items, with a gradient; everything else is named."""

from __future__ import annotations

import pytest
import torch

from sftcore import LossOutput, TokenLoss
from sftcore.core.errors import ModelError
from sftcore.trials.loss import try_loss, try_loss_in_model
from tests.conftest import make_llama

IDS = torch.arange(3, 19)[None]


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_llama(tokenizer)


def by_hand(reduce):
    """A loss that builds all logits; `reduce` makes a scalar of nll (N,), weights or None, num_items and labels."""

    def loss(hidden, head, labels, weights, num_items):
        log_probs = head(hidden).float().log_softmax(-1)
        nll = -log_probs.gather(-1, labels[:, None])[:, 0]
        correct = (log_probs.argmax(-1) == labels).sum()
        return LossOutput(reduce(nll, weights, num_items), None, correct)

    return loss


def weighted(nll, weights):
    return nll if weights is None else nll * weights


def smoothed(hidden, head, labels, weights, num_items):
    losses = torch.nn.functional.cross_entropy(head(hidden).float(), labels, reduction="none", label_smoothing=0.1)
    return LossOutput(weighted(losses, weights).sum() / num_items, None, labels.new_zeros(()))


RIGHT = {
    "cross-entropy": by_hand(lambda nll, weights, n: weighted(nll, weights).sum() / n),
    "in chunks": TokenLoss(lambda log_probs: -log_probs, chunk=4),
    "dft": TokenLoss(lambda log_probs: -log_probs * log_probs.detach().exp()),
    "focal": TokenLoss(lambda log_probs: -((1 - log_probs.exp()) ** 2) * log_probs),
    "smoothed": smoothed,
}


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("gathers", [True, False])
def test_losses_of_tokens_pass(model, name, gathers):
    found = try_loss_in_model(RIGHT[name], model, model, IDS, gathers=gathers)

    assert (found.fault, found.notes) == ("", ())


class Learning(torch.nn.Module):
    """Cross-entropy times a number of its own, or of the model's, that starts at 1."""

    def __init__(self, factor=None):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(())) if factor is None else factor

    def forward(self, *given):
        output = RIGHT["smoothed"](*given)
        return LossOutput(output.loss * self.factor, output.entropy, output.correct)


def test_parameters_of_a_loss_that_nothing_trains_are_told(tokenizer):
    model = make_llama(tokenizer)
    (note,) = try_loss_in_model(Learning(), model, model, IDS).notes
    assert note.startswith("its own parameters (factor) get gradients")
    model.factor = torch.nn.Parameter(torch.ones(()))
    assert try_loss_in_model(Learning(model.factor), model, model, IDS).notes == ()


@pytest.mark.parametrize(
    "reduce",
    [
        lambda nll, weights, n: (weighted(nll, weights) * (nll.detach() > nll.detach().median())).sum() / n,
        lambda nll, weights, n: (weighted(nll, weights) / nll.detach().mean()).sum() / n,
    ],
)
def test_a_loss_of_a_token_that_depends_on_the_others_is_told(model, reduce):
    found = try_loss_in_model(by_hand(reduce), model, model, IDS)
    assert found.fault == ""
    assert any("so that accumulation and the number of processes change a step" in note for note in found.notes)


def test_a_compiled_loss_passes(model):
    found = try_loss_in_model(torch.compile(RIGHT["cross-entropy"], backend="eager"), model, model, IDS)
    assert (found.fault, found.notes) == ("", ())


@pytest.mark.parametrize(
    ("of_model", "said"),
    [(lambda module, given, output: output * float("nan"), "NaN or Inf"), (lambda *given: 1 / 0, "cannot be run")],
)
def test_a_model_that_fails_before_the_loss_is_not_the_fault_of_the_loss(tokenizer, of_model, said):
    model = make_llama(tokenizer)
    model.model.norm.register_forward_hook(of_model)
    with pytest.raises(ModelError, match=said):
        try_loss_in_model(RIGHT["cross-entropy"], model, model, IDS)


WRONG = {
    "not divided": (by_hand(lambda nll, weights, n: weighted(nll, weights).sum()), "num_items twice as large"),
    "mean": (by_hand(lambda nll, weights, n: weighted(nll, weights).mean()), "num_items twice as large"),
    "mean, divided": (by_hand(lambda nll, weights, n: weighted(nll, weights).mean() / n), "all tokens twice"),
    "divided twice": (by_hand(lambda nll, weights, n: weighted(nll, weights).sum() / n / n), "num_items twice"),
    "divided by one more": (by_hand(lambda nll, weights, n: weighted(nll, weights).sum() / (n + 1)), "num_items twice"),
    "by the root": (by_hand(lambda nll, weights, n: weighted(nll, weights).sum() / n.sqrt()), "num_items twice"),
    "the largest": (by_hand(lambda nll, weights, n: weighted(nll, weights).max() / n), "all tokens twice"),
    "the first": (by_hand(lambda nll, weights, n: weighted(nll, weights)[:1].sum() / n), "all tokens twice"),
    "every second": (by_hand(lambda nll, weights, n: weighted(nll, weights)[::2].sum() / n), "all tokens twice"),
    "all but the last": (by_hand(lambda nll, weights, n: weighted(nll, weights)[:-1].sum() / n), "all tokens twice"),
    "squared sum": (by_hand(lambda nll, weights, n: weighted(nll, weights).sum() ** 2 / n), "all tokens twice"),
    "a constant added": (by_hand(lambda nll, weights, n: weighted(nll, weights).sum() / n + 1), "num_items twice"),
    "weights ignored": (by_hand(lambda nll, weights, n: nll.sum() / n), "weights of 0.5"),
    "weights squared": (
        by_hand(lambda nll, weights, n: weighted(nll, None if weights is None else weights**2).sum() / n),
        "weights of 0.5",
    ),
    "weights averaged": (
        by_hand(lambda nll, weights, n: nll.sum() * (1 if weights is None else weights.max()) / n),
        "weights w and 1 - w",
    ),
    "normalised by weights": (
        by_hand(lambda nll, weights, n: weighted(nll, weights).sum() / (n if weights is None else weights.sum())),
        "weights of 0.5",
    ),
    "detached": (by_hand(lambda nll, weights, n: weighted(nll, weights).sum().detach() / n), "no gradient"),
    "of each token": (by_hand(lambda nll, weights, n: weighted(nll, weights) / n), "shape (15,)"),
    "in brackets": (by_hand(lambda nll, weights, n: weighted(nll, weights).sum()[None] / n), "shape (1,)"),
    "a number": (by_hand(lambda nll, weights, n: float(nll.sum() / n)), "not a scalar tensor but float"),
    "not finite": (by_hand(lambda nll, weights, n: (nll - nll).log().sum() / n), "-inf"),
    "no output": (lambda *_: None, "a NoneType, not a LossOutput"),
    "constant": (by_hand(lambda nll, weights, n: (nll * 0).sum() / n), "0 everywhere"),
    "more correct than tokens": (
        lambda hidden, head, *_: LossOutput(hidden.sum(), None, torch.tensor(16)), "calls 16 of 15 tokens correct"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("gathers", [True, False])
def test_what_is_not_a_sum_over_tokens_by_num_items_is_named(model, name, gathers):
    loss, said = WRONG[name]

    try:
        fault = try_loss_in_model(loss, model, model, IDS, gathers=gathers).fault
    except ValueError as error:
        fault = str(error)

    assert said in fault, fault


def test_a_head_that_gets_no_gradient_is_named(model):
    def loss(hidden, head, labels, weights, num_items):
        logits = hidden @ head.module.weight.detach().T
        found = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
        return LossOutput(found / num_items, None, labels.new_zeros(()))

    assert "no gradient reaches the head's weight" in try_loss_in_model(loss, model, model, IDS, weighted=False).fault


@pytest.mark.parametrize(
    ("per_token", "said"), [(lambda p: p, "less likely"), (lambda p: -3 * p, "it is cross-entropy times 3")]
)
def test_a_sign_and_a_factor_are_noted(model, per_token, said):
    found = try_loss_in_model(TokenLoss(per_token), model, model, IDS)

    assert found.fault == ""
    assert said in found.notes[0]


def test_weights_need_not_be_honoured_where_no_row_has_any(model):
    found = try_loss_in_model(by_hand(lambda nll, weights, n: nll.sum() / n), model, model, IDS, weighted=False)

    assert found.fault == ""


def test_nothing_is_left_behind(model):
    before = torch.get_rng_state()

    try_loss_in_model(RIGHT["in chunks"], model, model, IDS)

    assert all(one.grad is None for one in model.parameters())
    assert "forward" not in vars(model)
    assert torch.equal(before, torch.get_rng_state())


def test_half_precision_is_allowed_its_rounding():
    torch.manual_seed(0)
    head, hidden = torch.nn.Linear(64, 500, bias=False).bfloat16(), torch.randn(15, 64).bfloat16()

    assert try_loss(RIGHT["cross-entropy"], hidden, head, torch.arange(15)).fault == ""
    assert try_loss(WRONG["mean"][0], hidden, head, torch.arange(15)).fault
