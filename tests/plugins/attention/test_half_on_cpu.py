"""Attention in bfloat16 on a CPU, by blocks of queries: near to float64, and keeping little."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sftcore_plugins.attention import _half_layout as layout
from sftcore_plugins.attention import _half_on_cpu as half
from sftcore_plugins.attention._per_document import Features
from sftcore_plugins.attention.varlen import DOCUMENTS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from transformers.models.llama.modeling_llama import eager_attention_forward

from sftcore.documents.ways import boundaries
from tests.plugins.attention.test_varlen import layer, positions_of

BLOCK = layout.BLOCK
LENGTHS = [1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 50]


@pytest.fixture(autouse=True)
def counts_as_a_cpu_with_bfloat16(monkeypatch):
    monkeypatch.setattr(half, "_cpu_has_bfloat16", lambda: True)


def states(length: int, heads: tuple[int, int] = (4, 2), width: int = 8, value_width: int = 8, rows: int = 1):
    generator = torch.Generator().manual_seed(0)
    shapes = (heads[0], width), (heads[1], width), (heads[1], value_width)
    # as layers hand them over: heads and tokens are exchanged in memory
    return [torch.randn(rows, length, *shape, generator=generator).bfloat16().transpose(1, 2) for shape in shapes]


def one_query_at_a_time(query, key, value, scaling, window):
    """Softmax over the keys that each query sees, by a loop."""
    shared = query.shape[1] // key.shape[1]
    rows = []
    for t in range(query.shape[2]):
        first = 0 if window is None else max(0, t - window + 1)
        heads = []
        for h in range(query.shape[1]):
            scores = (key[:, h // shared, first : t + 1] * query[:, h, t, None]).sum(-1) * scaling
            heads.append((scores.softmax(-1)[..., None] * value[:, h // shared, first : t + 1]).sum(1))
        rows.append(torch.stack(heads, dim=1))
    return torch.stack(rows, dim=1)


def eager(query, key, value, scaling, window):
    """transformers' own, in the dtype of the states."""
    length = query.shape[2]
    away = torch.arange(length)[:, None] - torch.arange(length)
    hidden = (away < 0) if window is None else (away < 0) | (away >= window)
    mask = torch.zeros(length, length, dtype=query.dtype).masked_fill(hidden, torch.finfo(query.dtype).min)
    module = layer(num_key_value_groups=query.shape[1] // key.shape[1])
    return eager_attention_forward(module, query, key, value, mask[None, None], scaling=scaling)[0]


def output_and_gradients(function, tensors, dtype=torch.bfloat16):
    tensors = [one.to(dtype).requires_grad_() for one in tensors]
    output = function(*tensors)
    (output * torch.linspace(-1, 1, output.numel(), dtype=dtype).view(output.shape)).sum().backward()
    return [output.detach().double(), *(one.grad.double() for one in tensors)]


@pytest.mark.parametrize("window", [None, 1, 5, BLOCK, BLOCK + 60])
@pytest.mark.parametrize("length", LENGTHS)
def test_as_near_to_float64_as_eager(length, window):
    tensors = states(length)
    features = Features(0.0, 0.3, window, None, None, causal=True)
    assert half.fits(*tensors[:2], features)
    exact = output_and_gradients(lambda *given: one_query_at_a_time(*given, 0.3, window), tensors, torch.float64)
    found = output_and_gradients(lambda *given: half.attend_in_half(*given, features), tensors)
    others = output_and_gradients(lambda *given: eager(*given, 0.3, window), tensors)
    for got, other, wanted in zip(found, others, exact, strict=True):
        assert got.shape == wanted.shape
        assert (got - wanted).norm() <= 1.5 * (other - wanted).norm() + 1e-6 * wanted.norm()
        assert (got - wanted).norm() <= 2e-2 * wanted.norm() + 1e-6


@pytest.mark.parametrize(
    "shape",
    [{"heads": (3, 1)}, {"heads": (2, 2)}, {"value_width": 4}, {"rows": 2, "heads": (6, 2)}],
    ids=["all share a key", "none does", "narrow values", "two rows"],
)
def test_heads_rows_and_widths(shape):
    tensors = states(BLOCK + 9, **shape)
    features = Features(0.0, None, None, None, None, causal=True)
    scaling = tensors[0].shape[-1] ** -0.5
    exact = output_and_gradients(lambda *given: one_query_at_a_time(*given, scaling, None), tensors, torch.float64)
    found = output_and_gradients(lambda *given: half.attend_in_half(*given, features), tensors)
    for got, wanted in zip(found, exact, strict=True):
        assert (got - wanted).norm() <= 2e-2 * wanted.norm()


def test_documents_of_a_row_do_not_see_each_other():
    lengths = [[BLOCK + 3, 2, 40]]
    tensors, positions = states(sum(lengths[0])), positions_of(lengths)
    output = DOCUMENTS.attend(layer(), *tensors, None, scaling=0.3, **boundaries(positions))[0]
    start = 0
    for length in lengths[0]:
        own = [one[:, :, start : start + length].double() for one in tensors]
        wanted = one_query_at_a_time(*own, 0.3, None)
        torch.testing.assert_close(output[:, start : start + length].double(), wanted, atol=2e-2, rtol=2e-2)
        start += length


@pytest.mark.parametrize("window", [None, 7])
def test_documents_of_several_rows_have_the_gradients_of_each_alone(window):
    lengths = [[BLOCK + 3, 2, 40], [1, BLOCK + 40, 4]]
    tensors, positions = states(sum(lengths[0]), rows=2), positions_of(lengths)
    assert sum(lengths[0]) == sum(lengths[1])

    def packed(*given):
        return DOCUMENTS.attend(layer(), *given, None, scaling=0.3, sliding_window=window, **boundaries(positions))[0]

    def alone(*given):
        rows = []
        for row, sizes in enumerate(lengths):
            documents = zip(*(one[row : row + 1].split(sizes, dim=2) for one in given), strict=True)
            rows.append(torch.cat([one_query_at_a_time(*one, 0.3, window) for one in documents], dim=1))
        return torch.cat(rows)

    exact = output_and_gradients(alone, tensors, torch.float64)
    for got, wanted in zip(output_and_gradients(packed, tensors), exact, strict=True):
        assert got.shape == wanted.shape
        assert (got - wanted).norm() <= 2e-2 * wanted.norm()


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, BLOCK + 40), min_size=2, max_size=7),
    heads=st.sampled_from([(4, 2), (3, 3), (9, 3)]),
    window=st.sampled_from([None, 7, BLOCK + 5]),
)
def test_a_document_has_the_same_bits_alone_and_among_others(lengths, heads, window):
    """Documents of one padded length share products, and no neighbour may show in them."""
    tensors = states(sum(lengths), heads=heads, width=16, value_width=16)
    features = Features(0.0, None, window, None, None, causal=True)
    edges = list(itertools.accumulate(lengths, initial=0))
    documents = [(0, slice(*span)) for span in itertools.pairwise(edges)]
    grad = torch.linspace(-1, 1, tensors[0].numel()).view(1, -1, heads[0], 16).bfloat16()

    def results(given, grad, documents):
        given = [one.detach().clone().requires_grad_() for one in given]
        output = half.attend_in_half(*given, features, documents)
        output.backward(grad)
        return [output.detach(), *(one.grad.transpose(1, 2) for one in given)]

    together = results(tensors, grad, documents)
    for _, span in documents:
        alone = results([one[:, :, span] for one in tensors], grad[:, span], None)
        assert all(torch.equal(one[:, span], own) for one, own in zip(together, alone, strict=True))


def kept_of(*tensors):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        half.attend_in_half(*tensors, Features(0.0, None, None, None, None, causal=True))
    return kept


def test_of_a_long_document_nothing_is_kept_but_queries_keys_and_values():
    tensors = [one.requires_grad_() for one in states(2 * BLOCK)]
    assert [one.data_ptr() for one in kept_of(*tensors)] == [one.data_ptr() for one in tensors]


def test_of_a_short_document_the_weights_are_kept_too():
    query, key, value = (one.requires_grad_() for one in states(30, width=8))
    *others, weights = kept_of(query, key, value)
    assert len(others) == 3
    # a head's queries are padded from 30 to 32, and two heads share keys
    scores = (query.float() @ key.float().repeat_interleave(2, 1).mT) * 8**-0.5
    wanted = scores.masked_fill(torch.ones(30, 30, dtype=torch.bool).triu(1), float("-inf")).softmax(-1)
    got = weights.view(2, 32, 2, 32).transpose(1, 2).flatten(0, 1)[:, :30]
    torch.testing.assert_close(got[..., :30].float(), wanted[0], atol=1e-2, rtol=2e-2)
    assert not got[..., 30:].any()


@pytest.mark.parametrize("window", [None, 7])
def test_weights_that_are_kept_give_the_bits_of_those_computed_again(monkeypatch, window):
    features = Features(0.0, None, window, None, None, causal=True)
    documents = [(0, slice(0, 40)), (0, slice(40, 40 + BLOCK + 9)), (0, slice(49 + BLOCK, 80 + BLOCK))]

    def attend(*given):
        return half.attend_in_half(*given, features, documents)

    found = []
    for most in (0, 4, 1000):  # none, those of two documents, all
        monkeypatch.setattr(half, "KEPT", most)
        found.append(output_and_gradients(attend, states(80 + BLOCK)))
    for again, some, every in zip(*found, strict=True):
        assert torch.equal(again, some)
        assert torch.equal(again, every)


@pytest.mark.parametrize(
    ("features", "what"),
    [
        (Features(0.1, None, None, None, None, causal=True), "dropout"),
        (Features(0.0, None, None, 5.0, None, causal=True), "softcap"),
        (Features(0.0, None, None, None, torch.zeros(4), causal=True), "sinks"),
        (Features(0.0, None, None, None, None, causal=False), "no causality"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_other_features_are_left_to_others(features, what):
    assert not half.fits(*states(4)[:2], features), what
    assert not half.fits(*[one.float() for one in states(4)[:2]], Features(0.0, None, None, None, None, causal=True))


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=5), min_size=1, max_size=2),
    heads=st.sampled_from([(4, 2), (3, 3), (9, 3), (2, 1)]),
    window=st.sampled_from([None, 7]),
)
def test_a_layout_takes_each_state_once_and_pads_documents_with_their_own(lengths, heads, window):
    num_heads, key_heads = heads
    tokens = max(map(sum, lengths))
    # the last document fills its row
    rows = [[*row, tokens - sum(row)] if sum(row) < tokens else row for row in lengths]
    documents = [
        (at, slice(*span))
        for at, row in enumerate(rows)
        for span in itertools.pairwise(itertools.accumulate([0, *row]))
    ]
    found = layout.layout_of(documents, layout.Shape(len(rows), tokens, num_heads, key_heads, window))
    wanted_queries, wanted_keys, added, waiting = [], [], [], {}
    for row, span in documents:
        waiting.setdefault(-(-(span.stop - span.start) // 32) * 32, []).append((row, span))
    for padded, alike in waiting.items():
        for row, span in alike:
            for key_head in range(key_heads):
                for t in range(span.start, span.start + padded):
                    token = row * tokens + min(t, span.stop - 1)
                    wanted_keys.append(token * key_heads + key_head)
                    for one in range(num_heads // key_heads):
                        if t >= span.stop:
                            added.append(len(wanted_queries))
                        wanted_queries.append(token * num_heads + key_head * num_heads // key_heads + one)
    assert found.queries.tolist() == wanted_queries
    assert found.keys.tolist() == wanted_keys
    assert found.added.tolist() == added
    assert [(group.documents, group.padded) for group in found.groups] == [
        (len(alike), padded) for padded, alike in waiting.items()
    ]
    for places, back, count in (
        (found.queries, found.queries_back, num_heads),
        (found.keys, found.keys_back, key_heads),
    ):
        assert places[back].tolist() == list(range(len(rows) * tokens * count))
    assert not set(found.queries_back.tolist()) & set(added)


def test_a_layout_of_shapes_alone_or_of_inference_does_not_show_in_training():
    features = Features(0.0, None, None, None, None, causal=True)
    tensors = states(41)
    exact = output_and_gradients(lambda *given: one_query_at_a_time(*given, 8**-0.5, None), tensors, torch.float64)
    layout._kept.cache_clear()
    with FakeTensorMode() as mode:
        shapes = [mode.from_tensor(one) for one in tensors]
        assert half.attend_in_half(*shapes, features).shape == (1, 41, 4, 8)
    with torch.inference_mode(), torch.device("meta"):
        half.attend_in_half(*tensors, features)
    for got, wanted in zip(
        output_and_gradients(lambda *given: half.attend_in_half(*given, features), tensors), exact, strict=True
    ):
        assert (got - wanted).norm() <= 2e-2 * wanted.norm()


def test_selective_checkpointing_gives_the_bits_of_a_run_without():
    features = Features(0.0, None, None, None, None, causal=True)
    documents = [(0, slice(0, 30)), (0, slice(30, 40 + BLOCK)), (0, slice(40 + BLOCK, 80 + BLOCK))]
    products = [torch.ops.aten.bmm.default, torch.ops.aten.baddbmm.default, torch.ops.aten.bmm.out]

    def attend(*given):
        return half.attend_in_half(*given, features, documents)

    def checkpointed(*given):
        def contexts():
            return create_selective_checkpoint_contexts(products)

        return checkpoint(attend, *given, use_reentrant=False, context_fn=contexts)

    found, plain = (output_and_gradients(one, states(80 + BLOCK)) for one in (checkpointed, attend))
    assert all(torch.equal(got, wanted) for got, wanted in zip(found, plain, strict=True))


def test_queries_that_are_changed_before_the_backward_pass_are_noticed():
    query, key, value = (one.requires_grad_() for one in states(40))
    doubled = query * 2
    output = half.attend_in_half(doubled, key, value, Features(0.0, None, None, None, None, causal=True))
    doubled.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_what_is_not_a_number_stays_in_its_document():
    """Documents of one length share products, and are padded with states of their own."""
    tensors = states(3 * 20)
    for one in tensors:
        one[:, :, 20:40] = float("nan")
    documents = [(0, slice(start, start + 20)) for start in (0, 20, 40)]
    features = Features(0.0, None, None, None, None, causal=True)
    results = output_and_gradients(lambda *given: half.attend_in_half(*given, features, documents), tensors)
    output, *grads = results
    for one in (output, *(grad.transpose(1, 2) for grad in grads)):
        assert one[:, 20:40].isnan().any()
        assert not one[:, :20].isnan().any()
        assert not one[:, 40:].isnan().any()
