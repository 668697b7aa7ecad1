"""Preference data, marks of bad answers, filters, and suggestions that are tried before they are offered."""

from __future__ import annotations

import pytest
from datasets import Dataset

from sftcore import DataError, RecipeError, RowError, SFTConfig
from sftcore.config.setup import set_up
from sftcore.core.types import KINDS, ModelRequest
from sftcore.data.sets import DataPreparation
from tests.conftest import make_tokenizer

U, A, B = ({"role": role, "content": words} for role, words in (("user", "a"), ("assistant", "b"), ("assistant", "c")))


def prepared(data_rows: list[dict], *, template: bool = True, **settings) -> DataPreparation:
    settings = {"dataset_cache": False, **settings}
    setup = set_up([], settings, ModelRequest(None), where="test", without=[kind for kind in KINDS if kind != "format"])
    tokenizer = make_tokenizer() if template else make_tokenizer(template=None)
    data = DataPreparation(setup, tokenizer, 64)
    data.prepare(Dataset.from_list(data_rows), "train_dataset")
    return data


def test_only_the_rows_with_the_wanted_value_are_kept_and_the_others_counted():
    rows = [{"messages": [U, A], "label": True}, {"messages": [U, B], "label": False}]
    with pytest.raises(RowError, match=r"row 1: the answer is marked as a bad one .*rows: {where: {label: true}}"):
        prepared(rows)
    ledger = prepared(rows, rows={"where": {"label": True}}).ledgers[0]
    assert (ledger.rows_kept, list(ledger.dropped_rows.values())) == (1, [[1]])
    assert "left out by rows: {where: {'label': True}}" in ledger.dropped_rows
    scored = [{"prompt": "a", "completion": "b", "score": score} for score in (1, 3, 4)]
    assert prepared(scored, rows={"where": {"score": [3, 4]}}).ledgers[0].rows_kept == 2
    with pytest.raises(DataError, match=r'names the column "scor", which is not there. Did you mean "score"'):
        prepared(scored, rows={"where": {"scor": 3}})


@pytest.mark.parametrize("given", [{"label": True}, {"where": 3}, {"where": {"a": {"b": 1}}}])
def test_a_filter_of_another_shape_is_refused(tmp_path, given):
    with pytest.raises(RecipeError, match="rows says which rows are kept"):
        SFTConfig(str(tmp_path), rows=given)


def test_from_python_suggestions_are_python_and_fit_the_tokenizer():
    rows = [{"question": "a", "answer": "b"}] * 3
    with pytest.raises(DataError) as caught:
        prepared(rows)
    options = '{"format": {"alpaca": {"instruction": "question", "output": "answer"}}}'
    assert f"Map them: SFTConfig(plugins={options})" in caught.value.fix
    assert "prompt-completion" not in caught.value.fix
    with pytest.raises(DataError) as caught:
        prepared(rows, template=False)
    assert "alpaca" not in caught.value.fix
    assert '{"prompt-completion": {"prompt": "question", "completion": "answer"}}' in caught.value.fix


def test_a_suggestion_that_cannot_read_the_rows_is_not_offered():
    with pytest.raises(DataError) as caught:
        prepared([{"question": "a", "answer": ["b", "c"]}] * 3)
    assert "Map them" not in caught.value.fix


def test_ids_beyond_the_vocabulary_are_refused_with_their_row():
    fine = {"input_ids": [5, 6, 7]}
    with pytest.raises(RowError, match=r'row 1: "input_ids" holds 999999, but the vocabulary has 318 tokens'):
        prepared([fine, {"input_ids": [5, 6, 999999]}])
    with pytest.raises(RowError, match=r'row 1: "labels" holds 400, but'):
        prepared([{**fine, "labels": [-100, 6, 7]}, {**fine, "labels": [5, 6, 400]}])
    assert prepared([{"input_ids": [5, 317]}]).ledgers[0].rows_kept == 1


def test_documents_of_rows_that_were_packed_stay_apart():
    from sftcore import pack_dataset

    rows = Dataset.from_dict({"input_ids": [[5, 6, 7, 8], [9, 10], [11, 12, 13]]})
    packed = pack_dataset(rows, seq_length=6, strategy="bfd")
    assert packed["seq_lengths"][:] == [[4, 2], [3]]
    ledger = prepared(packed.to_list()).ledgers[0]
    assert (ledger.rows_kept, ledger.tokens_supervised) == (3, 3 + 1 + 2)
