"""The package as its users meet it: it must be installed (`pip install ".[test]"`)."""

import pytest
import torch
from sftcore_buckets import Buckets

from sftcore import Plan
from sftcore.testing import CollatorTests

pytest_plugins = "sftcore.testing"


class TestBuckets(CollatorTests):
    plugin = Buckets
    options = {"lengths": [16, 64]}


def batch_of(tiny_processor, *lengths, **settings):
    rows = [{"input_ids": list(range(4, 4 + n)), "labels": [-100, *range(5, 4 + n)]} for n in lengths]
    collate = Buckets(lengths=[8, 4, 16]).make_collator(tiny_processor, Plan((), settings))
    return collate(rows)


@pytest.mark.parametrize(
    ("lengths", "padded"), [((1, 3), 4), ((4,), 4), ((5, 2), 8), ((16,), 16), ((17, 1), 32), ((33,), 48)]
)
def test_a_batch_is_as_long_as_the_next_length_and_then_as_a_multiple_of_the_last(tiny_processor, lengths, padded):
    assert batch_of(tiny_processor, *lengths)["input_ids"].shape == (len(lengths), padded)


def test_what_the_run_asks_for_is_kept_too(tiny_processor):
    assert batch_of(tiny_processor, 3, pad_to_multiple_of=6)["input_ids"].shape == (1, 12)


def test_padding_changes_no_loss(tiny_processor, tiny_model):
    batch = batch_of(tiny_processor, 5, 3)
    row = {"input_ids": torch.arange(4, 9)[None], "labels": torch.tensor([[-100, *range(5, 9)]])}
    with torch.no_grad():
        alone = tiny_model(**row).logits
        padded = tiny_model(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits
    torch.testing.assert_close(padded[:1, :5], alone, rtol=1e-5, atol=1e-5)
    assert batch["labels"].tolist() == [[-100, 5, 6, 7, 8, -100, -100, -100], [-100, 5, 6, *[-100] * 5]]


@pytest.mark.parametrize("lengths", [[], [8, 0]])
def test_lengths_that_are_none_are_refused(lengths):
    with pytest.raises(ValueError, match="lengths is a list of numbers above 0"):
        Buckets(lengths=lengths)
