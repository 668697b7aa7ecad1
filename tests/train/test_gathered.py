"""What was gathered from several processes, brought into the order of its rows without padding."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from sftcore.data.host_facts import Batch
from sftcore.data.ranks import ROW_NUMBER
from sftcore.train.processes.gathered import GatheredRows, RecordedLoader, WithRows


def collate(rows):
    found = Batch(labels=torch.tensor([row["labels"] for row in rows]))
    assert not any(ROW_NUMBER in row for row in rows)
    return found


def row(number: int) -> dict:
    return {"labels": [number, -100], ROW_NUMBER: number}


@pytest.fixture
def gathered():
    """Two batches that hold rows 2, 0 and 1, filling: as two processes would give them, one after the other."""
    batches = [WithRows(collate)([row(2), row(0)]), WithRows(collate)([row(1)])]
    batches[1]["labels"] = torch.tensor([[1, -100], [-100, -100]])
    loader = RecordedLoader(batches)
    assert len(list(loader)) == 2
    assert loader.read == [[2, 0], [1, None]]
    return GatheredRows(SimpleNamespace(base_dataloader=loader), None)


LABELS = np.array([[2, -100], [0, -100], [1, -100], [-100, -100]])


def test_metrics_see_each_row_once_in_order_whatever_the_form_of_the_predictions(gathered):
    seen = []
    logits, sure = np.arange(4), torch.arange(4.0)
    measure = gathered.measured(seen.append, each_batch=False)
    measure(EvalPrediction({"best": (logits, [sure])}, LABELS, LABELS + 1, np.arange(3)))
    [found] = seen
    assert found.label_ids[:, 0].tolist() == [0, 1, 2]
    assert found.predictions["best"][0].tolist() == found.predictions["best"][1][0].tolist() == [1, 2, 0]
    assert found.inputs[:, 0].tolist() == [1, 2, 3]
    assert found.losses.tolist() == [0, 1, 2]  # not one for each row: as it was


def test_metrics_of_each_batch_see_its_rows(gathered):
    seen = []
    measure = gathered.measured(lambda found, compute_result: seen.append(found.label_ids), each_batch=True)
    for part in (LABELS[:2], LABELS[2:]):
        measure(EvalPrediction(part, part), compute_result=True)
    assert [part[:, 0].tolist() for part in seen] == [[0, 2], [1]]


def test_outputs_are_in_order_also_where_accelerate_has_cut_the_padding_off(gathered):
    output = SimpleNamespace(predictions=LABELS[:3], label_ids=LABELS[:3])
    output._replace = lambda **kw: SimpleNamespace(**kw)
    assert gathered.in_order(output).label_ids[:, 0].tolist() == [0, 1, 2]


def test_outputs_of_each_batch_keep_their_batches(gathered):
    gathered.concatenated = False
    output = SimpleNamespace(predictions=None, label_ids=[LABELS[:2], LABELS[2:]])
    output._replace = lambda **kw: SimpleNamespace(**kw)
    assert [part[:, 0].tolist() for part in gathered.in_order(output).label_ids] == [[0, 2], [1]]


def test_a_batch_whose_rows_are_not_known_leaves_all_as_it_is():
    loader = RecordedLoader([{"input_ids": torch.zeros(2, 2)}])
    assert len(list(loader)) == 1
    rows = GatheredRows(SimpleNamespace(base_dataloader=loader), None)
    seen = []
    rows.measured(seen.append, each_batch=False)(EvalPrediction(LABELS, LABELS))
    assert seen[0].label_ids is LABELS
    plain = GatheredRows(SimpleNamespace(base_dataloader=[]), None)
    assert plain.measured(print, each_batch=False) is print


def test_rows_laid_end_to_end_stand_where_the_first_of_them_does():
    batch = WithRows(lambda rows: Batch(labels=torch.zeros(1, 6)))([row(4), row(3)])
    loader = RecordedLoader([batch, Batch(labels=torch.full((1, 2), -100))])
    assert len(list(loader)) == 2
    assert loader.read == [[3], [None]]
