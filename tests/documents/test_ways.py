"""Boundaries and masks of packed rows, against sums and loops over the documents' lengths."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sftcore_plugins.attention.varlen import Varlen
from sftcore_plugins.losses.nll import NLL
from torch.nn.functional import cross_entropy

from sftcore import AttentionBackend, Plan
from sftcore.documents.ways import BOUNDARIES, POSITIONS, additive, block_mask, boundaries, mask_ways, ways_for
from sftcore.model.bound_loss import bind_loss
from tests.asking import ask
from tests.documents.architectures import backend_of, build

LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=6)


def positions_of(lengths: list[int]) -> torch.Tensor:
    return torch.cat([torch.arange(length) for length in lengths])[None]


@given(LENGTHS)
@settings(max_examples=60, deadline=None)
def test_boundaries_are_the_running_sum_of_lengths(lengths):
    found = boundaries(positions_of(lengths))
    assert found["cu_seq_lens_q"].tolist() == [sum(lengths[:count]) for count in range(len(lengths) + 1)]
    assert found["cu_seq_lens_k"].dtype == torch.int32
    assert found["max_length_q"] == found["max_length_k"] == max(lengths)


def test_boundaries_count_through_all_rows():
    positions = torch.tensor([[0, 1, 2, 0], [0, 1, 0, 0]])
    assert boundaries(positions)["cu_seq_lens_q"].tolist() == [0, 3, 4, 6, 7, 8]


@given(LENGTHS, st.sampled_from([None, 2, 3]), st.sampled_from([None, 2, 3]))
@settings(max_examples=60, deadline=None)
def test_a_mask_lets_a_token_see_its_own_documents_past(lengths, window, chunk):
    mask = block_mask(positions_of(lengths), window=window, chunk=chunk)[0, 0]
    places = [(document, place) for document, length in enumerate(lengths) for place in range(length)]
    for query, (document, place) in enumerate(places):
        for key, (other, earlier) in enumerate(places):
            seen = document == other and earlier <= place
            seen = seen and (window is None or place - earlier < window)
            seen = seen and (chunk is None or place // chunk == earlier // chunk)
            assert mask[query, key] == seen


def test_an_additive_mask_is_zero_or_the_lowest_number():
    mask = additive(block_mask(torch.tensor([[0, 0]])), torch.bfloat16)
    lowest = torch.finfo(torch.bfloat16).min
    assert mask.tolist() == [[[[0.0, lowest], [lowest, 0.0]]]]


def test_boundaries_come_first_for_an_attention_that_takes_them():
    model = build("Llama")
    assert ways_for(model, AttentionBackend("sdpa"))[:2] == (POSITIONS, BOUNDARIES)
    assert ways_for(model, AttentionBackend("x", boundaries=True))[:2] == (BOUNDARIES, POSITIONS)


def test_layers_of_different_types_get_a_mask_each():
    (way,) = mask_ways(build("GptOss", "eager"))
    masks = way({"position_ids": torch.arange(12)[None]})["attention_mask"]
    assert {name: int((mask == 0).sum()) for name, mask in masks.items()} == {
        "full_attention": 78,  # 12 · 13 / 2
        "sliding_attention": 68,  # of which 10 lie further back than 8 tokens
    }


# --- Training -------------------------------------------------------------------------------------------------------
def loss_and_gradients(model, batch, num_items: float):
    loss = ask(model, torch.tensor(num_items), **batch, use_cache=False)["loss"]
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return loss.detach(), gradients


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "gradient checkpointing"])
@pytest.mark.parametrize(
    ("name", "attention", "way"),
    [
        ("Llama", "sdpa", "positions"),
        ("OPT", "sdpa", "mask"),
        ("Gemma3", "eager", "mask"),
        ("Mistral", "sftcore_varlen", "boundaries"),
        ("GptOss", "sftcore_varlen", "boundaries"),
    ],
)
def test_a_packed_row_trains_like_its_documents_one_by_one(name, attention, way, checkpointing):
    backend = backend_of(Varlen)
    undropped = {"dropout": 0.0, "attention_dropout": 0.0} if name == "OPT" else {}
    model = build(name, attention, **undropped).train()
    apply = next(one for one in ways_for(model, backend) if one.name == way)
    lengths = [6, 1, 12, 3]
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 96, (1, sum(lengths)), generator=generator)
    labels = ids.clone()
    starts = [sum(lengths[:count]) for count in range(len(lengths))]
    labels[0, starts] = -100
    labels[0, 8] = -100
    counted = float((labels != -100).sum())

    wanted = torch.zeros(())
    for start, length in zip(starts, lengths, strict=True):
        span = slice(start, start + length)
        if length > 1:
            logits = model(input_ids=ids[:, span], use_cache=False).logits[0, :-1].float()
            wanted = wanted + cross_entropy(logits, labels[0, span][1:], reduction="sum") / counted
    wanted.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    bind_loss(model, NLL().make_loss(loaded=None, plan=Plan(())))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    batch = apply({"input_ids": ids, "labels": labels, "position_ids": positions_of(lengths)})
    loss, gradients = loss_and_gradients(model, batch, counted)
    torch.testing.assert_close(loss, wanted.detach(), atol=1e-5, rtol=1e-5)
    assert gradients.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(gradients[key], gradient, atol=1e-5, rtol=1e-4)
