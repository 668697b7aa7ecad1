"""Log-probabilities, entropies, ranks and gradients of logits, against float64, however many rows are taken at once."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sftcore.losses import log_probs as module
from sftcore.losses.log_probs import label_log_probs

WIDTH = 37


@pytest.fixture(params=[1, 3, 1000], ids=["one row at a time", "three rows", "all rows"])
def rows_at_once(request, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(module, "SOFTMAX_AT_ONCE", 4 * WIDTH * request.param)


def by_hand(logits_CV, labels_C):
    """Sums of exponentials in Python's floats."""
    for row, label in zip(logits_CV.double().tolist(), labels_C.tolist(), strict=True):
        total = math.fsum(math.exp(one - max(row)) for one in row)
        probs = [math.exp(one - max(row)) / total for one in row]
        entropy = -math.fsum(one * math.log(one) for one in probs)
        slope = [float(at == label) - one for at, one in enumerate(probs)]
        yield math.log(probs[label]), entropy, row.index(max(row)) == label, slope


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [WIDTH, 96, 768], ids=lambda width: f"{width} logits")
@pytest.mark.usefixtures("rows_at_once")
def test_each_row_is_that_of_a_loop(dtype, width):
    torch.manual_seed(0)
    logits = (torch.randn(7, width) * 4).to(dtype)
    logits[2, [5, 9]] = logits[2].max() + 1  # two rank first, and the first of them counts
    labels = torch.tensor([3, 0, 9, 36, 5, int(logits[5].argmax()), 1])
    logits.requires_grad_()
    log_probs, entropies, first = label_log_probs(logits, labels)
    weights = torch.linspace(-1, 2, 7)
    log_probs.backward(weights)
    wanted_probs, wanted_entropies, wanted_first, slopes = zip(*by_hand(logits.detach(), labels), strict=True)
    torch.testing.assert_close(log_probs.detach().double(), torch.tensor(wanted_probs).double(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropies.double(), torch.tensor(wanted_entropies).double(), atol=1e-4, rtol=1e-4)
    assert first.tolist() == list(wanted_first)
    assert wanted_first[5]
    assert not wanted_first[2]
    exact = torch.tensor(slopes).double() * weights.double()[:, None]
    assert logits.grad.dtype == dtype
    tolerance = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(logits.grad.double(), exact, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_several_highest_logits_the_first_counts(dtype):
    """Within a block, in several blocks, and in all; not a number ranks before all others, as for torch.argmax."""
    logits = torch.zeros(6, 512, dtype=dtype)
    for row, places in enumerate([[3, 200], [200, 300], [256, 511], [255, 256], range(512), [0, 511]]):
        logits[row, list(places)] = 2.0
    logits[5, 300] = float("nan")
    for labels in (logits.argmax(-1), torch.full((6,), 511), torch.full((6,), 256), torch.full((6,), 300)):
        assert label_log_probs(logits, labels)[2].tolist() == (logits.argmax(-1) == labels).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [WIDTH, 256])
def test_without_rows_there_is_nothing_to_tell(dtype, width):
    logits = torch.empty(0, width, dtype=dtype).requires_grad_()
    found = label_log_probs(logits, torch.empty(0, dtype=torch.long))
    assert [one.shape for one in found] == [(0,)] * 3
    found[0].sum().backward()
    assert logits.grad.shape == (0, width)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_entropies_of_flat_distributions_over_a_large_vocabulary(dtype):
    """Sums of 50,000 alike numbers in float32, one after the other, are wrong in the third decimal."""
    torch.manual_seed(0)
    logits = (torch.randn(40, 49_152) * 0.1 + 20).to(dtype)
    log_probs = logits.double().log_softmax(-1)
    wanted = -(log_probs.exp() * log_probs).sum(-1)
    found = label_log_probs(logits, torch.arange(40))[1]
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-3}[dtype]
    torch.testing.assert_close(found.double(), wanted, atol=tolerance, rtol=0)


@pytest.mark.usefixtures("rows_at_once")
def test_how_many_rows_are_taken_at_once_does_not_show(monkeypatch):
    torch.manual_seed(0)
    logits, labels = torch.randn(6, WIDTH).bfloat16(), torch.arange(6)

    def found():
        given = logits.clone().requires_grad_()
        results = label_log_probs(given, labels)
        results[0].sum().backward()
        return [*(one.detach() for one in results), given.grad]

    some = found()
    monkeypatch.setattr(module, "SOFTMAX_AT_ONCE", 2**30)
    for one, other in zip(some, found(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_logits_that_are_changed_before_the_backward_pass_are_noticed():
    logits = torch.randn(3, WIDTH).bfloat16().requires_grad_()
    doubled = logits * 2
    log_probs, *_ = label_log_probs(doubled, torch.arange(3))
    doubled.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        log_probs.sum().backward()


def log_probs_and_gradient(seed, around=lambda found: found, rows=5, width=WIDTH):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, width, generator=generator).bfloat16().requires_grad_()
    labels = torch.randint(width, (rows,), generator=generator)
    log_probs, *_ = around(label_log_probs(logits, labels))
    log_probs.sum().backward()
    slopes = [slope for *_, slope in by_hand(logits.detach(), labels)]
    torch.testing.assert_close(logits.grad.double(), torch.tensor(slopes, dtype=torch.float64), atol=1e-2, rtol=1e-2)
    wanted = [log_prob for log_prob, *_ in by_hand(logits.detach(), labels)]
    torch.testing.assert_close(
        log_probs.detach().double(), torch.tensor(wanted, dtype=torch.float64), atol=1e-5, rtol=1e-5
    )


@pytest.mark.usefixtures("rows_at_once")
def test_calls_that_share_their_memory_do_not_show_in_each_other():
    """Of other sizes, between a forward and a backward pass, and in several threads."""

    def with_others_in_between(found):
        for rows, width in ((9, WIDTH), (2, WIDTH), (5, 11)):
            log_probs_and_gradient(7, rows=rows, width=width)
        return found

    log_probs_and_gradient(1, with_others_in_between)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(log_probs_and_gradient, range(40)))


def test_calls_without_gradients_or_numbers_leave_nothing_that_training_trips_over():
    with ThreadPoolExecutor(1) as thread:  # which has no memory of its own yet

        def calls():
            with FakeTensorMode():
                shapes = label_log_probs(torch.empty(5, WIDTH, dtype=torch.bfloat16), torch.zeros(5, dtype=torch.long))
            with torch.inference_mode():
                label_log_probs(torch.zeros(5, WIDTH).bfloat16(), torch.zeros(5, dtype=torch.long))
            log_probs_and_gradient(3)
            return [(one.shape, one.dtype) for one in shapes]

        found = thread.submit(calls).result()
    assert found == [((5,), torch.float32), ((5,), torch.float32), ((5,), torch.bool)]


def test_neither_the_default_dtype_nor_the_default_device_of_a_call_shows_in_the_next():
    with ThreadPoolExecutor(1) as thread:  # which has no memory of its own yet

        def calls():
            for default in (torch.bfloat16, torch.float64, torch.float32):
                torch.set_default_dtype(default)
                try:
                    log_probs_and_gradient(3)
                finally:
                    torch.set_default_dtype(torch.float32)
            logits, labels = torch.randn(5, 11).bfloat16(), torch.arange(5)
            with torch.device("meta"):
                found = label_log_probs(logits, labels)
            return found[0].device.type

        assert thread.submit(calls).result() == "cpu"


def test_gradients_of_shapes_alone_and_gradients_that_are_differentiated_have_their_own_memory():
    log_probs_and_gradient(3)
    with FakeTensorMode():
        logits, labels = torch.empty(5, WIDTH, dtype=torch.bfloat16, requires_grad=True), torch.zeros(5).long()
    label_log_probs(logits, labels)[0].sum().backward()
    assert logits.grad.shape == (5, WIDTH)
    logits = torch.randn(5, WIDTH).bfloat16().requires_grad_()
    (once,) = torch.autograd.grad(label_log_probs(logits, torch.arange(5))[0].sum(), logits, create_graph=True)
    assert once.requires_grad
    slopes = [slope for *_, slope in by_hand(logits.detach(), torch.arange(5))]
    torch.testing.assert_close(once.detach().double(), torch.tensor(slopes, dtype=torch.float64), atol=1e-2, rtol=1e-2)
