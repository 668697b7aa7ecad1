"""A user's data_collator and compute_loss_func: what no run can train on is refused before the first step."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset

from sftcore import SFTConfig, SFTTrainer
from sftcore.core.errors import DataError
from sftcore.plugin_api import pad_rows
from tests.conftest import make_llama


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_llama(tokenizer, num_hidden_layers=1)


@pytest.fixture
def started(tmp_path, tokenizer, model):
    """A trainer with something of the user's, after its first step."""

    def start(**own):
        settings = {"gradient_accumulation_steps": own.pop("accumulation", 1)}
        args = SFTConfig(
            str(tmp_path), max_steps=1, per_device_train_batch_size=2, bf16=False, use_cpu=True, report_to="none",
            save_strategy="no", gradient_checkpointing=False, disable_tqdm=True, dataset_cache=False, **settings,
        )  # fmt: skip
        rows = Dataset.from_list([{"prompt": f"say {i}", "completion": f" hello {i}"} for i in range(4)])
        trainer = SFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer, **own)
        trainer.train()
        return trainer

    return start


def with_labels(change):
    def collate(rows):
        batch = pad_rows(rows, pad_token_id=0)
        return {**batch, "labels": change(batch["labels"])}

    return collate


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda labels: torch.full_like(labels, -100), "gives labels that are all -100"),
        (
            lambda labels: torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100),
            "gives labels that are shifted by 1",
        ),
        (lambda labels: labels.float(), 'returned "labels" as torch.float32; expected int64'),
        (lambda labels: labels[:, 1:], 'returned "labels" of shape'),
    ],
)
def test_a_collator_whose_batches_cannot_be_trained_on_is_refused_by_its_line(started, change, said):
    with pytest.raises(DataError, match=r"data_collator \(.*test_own_code_tried\.py:\d+\) ") as raised:
        started(data_collator=with_labels(change))
    assert said in str(raised.value)


def test_a_collator_that_masks_more_than_its_rows_is_told_and_trains(started):
    def fewer(labels):
        kept = labels.clone()
        kept[:, -1] = -100
        return kept

    notes = started(data_collator=with_labels(fewer)).loaded.notes
    (note,) = [note for note in notes if note.startswith("data_collator (")]
    assert "changes what its rows say: labels differ" in note


def shifted(logits, labels):
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
    )


def mean_over_batch(outputs, labels, num_items_in_batch=None):
    return shifted(outputs.logits, labels) / (labels[:, 1:] != -100).sum()


def not_shifted(outputs, labels, num_items_in_batch=None):
    return torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda outputs, labels, num_items_in_batch=None: outputs.logits.mean(-1), "not a scalar tensor but shape"),
        (lambda outputs, labels, num_items_in_batch=None: 1.0, "not a scalar tensor but float"),
        (lambda outputs, labels, num_items_in_batch=None: outputs.logits.detach().mean(), "without a gradient"),
    ],
)
def test_a_loss_function_that_cannot_be_trained_on_is_refused_by_its_line(started, function, said):
    with pytest.raises(DataError, match=rf"compute_loss_func \(.*test_own_code_tried\.py:\d+\) .*{said}"):
        started(compute_loss_func=function)


@pytest.mark.parametrize(
    ("function", "accumulation", "said"),
    [
        (
            lambda outputs, labels, num_items_in_batch=None: shifted(outputs.logits, labels) / num_items_in_batch,
            2,
            None,
        ),
        (mean_over_batch, 1, None),
        (mean_over_batch, 2, "does not halve where num_items_in_batch doubles"),
        (not_shifted, 1, "are its labels shifted by one?"),
    ],
)
def test_what_a_loss_function_may_not_mean_is_told(started, function, accumulation, said):
    notes = started(compute_loss_func=function, accumulation=accumulation).loaded.notes
    found = [note for note in notes if note.startswith("compute_loss_func (")]
    assert len(found) == bool(said)
    assert all(said in note for note in found)
