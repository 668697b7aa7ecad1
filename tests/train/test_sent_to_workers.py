"""Workers of loaders that begin anew are sent a collator and a stream; what cannot be sent is named before training."""

from __future__ import annotations

import multiprocessing
import pickle
from types import SimpleNamespace

import pytest

from sftcore import DataError
from sftcore.documents.layouts import RowLayouts
from sftcore.train.processes.workers import begun_by, refuse_unsent
from tests.core.conftest import set_up  # noqa: F401
from tests.train.plugin_code import GOOD, MADE, collate, hook

ANEW = ("dataloader_num_workers=1", "dataloader_multiprocessing_context=spawn")


def batches(rows):
    """A collator at the top of a module."""
    return rows


def arguments(workers: int = 1, context: str | None = "spawn") -> SimpleNamespace:
    return SimpleNamespace(dataloader_num_workers=workers, dataloader_multiprocessing_context=context)


def test_a_collator_that_cannot_be_sent_is_one_line_that_names_it(train):
    code, said = train("collator", collate("return batch"), *ANEW)
    (line,) = [line for line in said.splitlines() if line.startswith("error:")]
    assert code == 1
    assert 'collator "bad@acme_faulty' in line
    assert "cannot be sent to 1 worker processes that begin by spawn" in line
    assert "set dataloader_num_workers: 0" in line
    assert "Traceback" not in said


@pytest.mark.parametrize("context", ["spawn", "forkserver"])
@pytest.mark.parametrize("place", ["side_by_side", "end_to_end"])
def test_a_collator_of_the_users_is_named_by_its_line(context, place):
    layouts = RowLayouts(**{"side_by_side": batches, "end_to_end": batches, place: lambda rows: rows})
    with pytest.raises(DataError, match=rf"^data_collator \(.*test_sent_to_workers\.py:\d+\) cannot .* {context}:"):
        refuse_unsent(layouts, arguments(context=context), ())


@pytest.mark.parametrize(
    ("collator", "given"),
    [(batches, arguments()), (lambda rows: rows, arguments(0)), (lambda rows: rows, arguments(context="fork"))],
)
def test_what_can_be_sent_or_need_not_be_is_not_refused(collator, given):
    layouts = RowLayouts(collator, None)
    refuse_unsent(layouts, given, ())
    assert layouts.taken is collator


def test_without_a_choice_workers_begin_as_on_this_system_and_nothing_is_settled():
    before = multiprocessing.get_start_method(allow_none=True)
    assert begun_by(arguments(context=None)) == (before or multiprocessing.get_all_start_methods()[0])
    assert multiprocessing.get_start_method(allow_none=True) == before


@pytest.mark.slow
def test_a_stream_is_sent_with_a_format_that_gives_a_closure(train):
    code, said = train("format", hook(MADE, f"return lambda row: {GOOD}"), *ANEW, "data.streaming=true")
    assert code == 0, said


def test_a_format_of_a_stream_that_cannot_be_sent_is_named(train):
    body = hook(MADE, "held = (i for i in 'ab')", f"return lambda row: {GOOD} if held else None")
    code, said = train("format", body, *ANEW, "data.streaming=true")
    (line,) = [line for line in said.splitlines() if line.startswith("error:")]
    assert code == 1
    assert 'format "bad@acme_faulty' in line
    assert "cannot be sent to worker processes: TypeError: cannot pickle 'generator' object" in line


@pytest.mark.parametrize("packed", [False, True])
def test_a_stream_that_was_sent_gives_the_same_rows(set_up, tokenizer, packed):  # noqa: F811
    from datasets import Dataset

    from sftcore.data.sets import DataPreparation

    rows = Dataset.from_list([{"prompt": f"say {i}:", "completion": f" hello {i}"} for i in range(5)])
    setup = set_up(packing=packed, max_length=16)
    stream = DataPreparation(setup, tokenizer, 16).prepare(rows.to_iterable_dataset(), "rows")
    again = pickle.loads(pickle.dumps(stream))
    assert list(again) == list(stream) != []
