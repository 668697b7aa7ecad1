"""A file of a model's folder that cannot be parsed is named, and not said to be missing."""

from __future__ import annotations

import shutil

import pytest
from datasets import Dataset

from sftcore import SFTConfig, SFTTrainer
from sftcore.core.errors import ModelError, RecipeError
from tests.conftest import alpaca_rows


@pytest.mark.parametrize("text", ["{", "[]", "5", "", "[" * 100_000], ids=["cut", "list", "number", "empty", "deep"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_a_damaged_file_is_named(model_folder, tmp_path, name, text):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    (folder / name).write_text(text)
    args = SFTConfig(str(tmp_path / "out"), use_cpu=True, report_to="none")
    with pytest.raises((ModelError, RecipeError), match=r"not valid JSON|does not hold a JSON object") as caught:
        SFTTrainer(str(folder), args, train_dataset=Dataset.from_list(alpaca_rows(2)))
    assert caught.value.where == str(folder / name)
