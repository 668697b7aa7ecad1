"""A column of texts that is named wrongly: said with the near column, whether or not another format reads the rows."""

from __future__ import annotations

import pytest
from datasets import Dataset

from sftcore import DataError, SFTTrainer
from tests.train.test_trainer import config


def trainer(tmp_path, model_folder, rows, field):
    return SFTTrainer(
        str(model_folder), config(tmp_path, dataset_text_field=field), train_dataset=Dataset.from_list(rows)
    )


@pytest.mark.parametrize(("field", "column"), [("qestion", "question"), ("bdy", "body")])
def test_rows_that_nothing_reads(tmp_path, model_folder, field, column):
    with pytest.raises(DataError) as caught:
        trainer(tmp_path, model_folder, [{column: "hello", "other": "world"}], field)
    assert f'dataset_text_field "{field}" is not a column. Did you mean "{column}"?' in str(caught.value)


def test_rows_that_another_format_reads(tmp_path, model_folder):
    with pytest.warns(UserWarning, match=r'"promt" is not a column\. Did you mean "prompt"\? The rows are read as'):
        trainer(tmp_path, model_folder, [{"prompt": "hello", "completion": " world"}], "promt")


@pytest.mark.parametrize("field", ["text", None, "body"])
def test_a_field_that_is_there_or_was_not_named(tmp_path, model_folder, recwarn, field):
    trainer(tmp_path, model_folder, [{field or "text": "hello world, hello world"}], field)
    trainer(tmp_path, model_folder, [{"prompt": "hello", "completion": " world"}], None)
    assert [str(one.message) for one in recwarn if "is not a column" in str(one.message)] == []
