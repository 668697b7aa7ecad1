"""Chat templates and files of tokenizers that are too large are refused by their size, before they are read."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
from datasets import Dataset

from sftcore import SFTConfig, SFTTrainer
from sftcore.chat.tokens import clone_tokens, set_chat_template
from sftcore.config.recipe import load_recipe
from sftcore.config.settings.templates import MAX_SOURCE, read_template, template_text
from sftcore.core.errors import CheckError, ModelError, RecipeError
from sftcore.train.run import check_recipe
from tests.conftest import alpaca_rows, make_tokenizer

SIZE = 300 * 2**20
FILES = ["chat_template.jinja", "chat_template.json", "tokenizer_config.json", "additional_chat_templates/tools.jinja"]


def made(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.truncate(SIZE)  # it takes no space
    return path


@pytest.fixture
def unread(monkeypatch):
    """No file of that size may be opened."""
    opened = io.open

    def told(file, *args, **kwargs):
        if isinstance(file, (str, Path)) and Path(file).is_file() and Path(file).stat().st_size == SIZE:
            pytest.fail(f"{file} was opened")
        return opened(file, *args, **kwargs)

    monkeypatch.setattr("io.open", told)
    monkeypatch.setattr("builtins.open", told)


@pytest.fixture(params=FILES)
def folder(request, model_folder, tmp_path):
    """A model one of whose tokenizer's files is large."""
    copy = shutil.copytree(model_folder, tmp_path / "model")
    made(copy / request.param)
    return copy


def test_a_file_with_a_template(tmp_path, unread):
    path = made(tmp_path / "chat.jinja")
    tokenizer = make_tokenizer()
    for read in (lambda: template_text(str(path)), lambda: set_chat_template(tokenizer, str(path))):
        with pytest.raises(
            RecipeError, match=r"the file has 314,572,800 bytes, and .* at most 131,072 characters"
        ) as caught:
            read()
        assert str(path) in caught.value.where


def test_a_text_in_a_recipe_that_is_too_long():
    template_text("{{x}}" + " " * (MAX_SOURCE - 5))
    with pytest.raises(RecipeError, match="it has 131,073 characters, and a chat template has at most"):
        template_text("{{x}}" + " " * (MAX_SOURCE - 4))


def test_a_long_file_of_many_bytes_a_character_is_read(tmp_path):
    path = tmp_path / "chat.jinja"
    path.write_text("😀" * MAX_SOURCE, encoding="utf-8")
    assert len(read_template(path, "")) == MAX_SOURCE


def test_a_model_with_such_a_file_is_refused_by_check_and_in_python(folder, write, tmp_path, unread):
    rows = write("rows.jsonl", '{"text": "hello"}\n')
    recipe = write("run.yaml", f"model: {folder}\ndata: {rows}\noutput_dir: {tmp_path}/out\nuse_cpu: true\n")
    with pytest.raises(CheckError, match="the file has 314,572,800 bytes, and at most") as caught:
        check_recipe(load_recipe(str(recipe), []))
    assert str(caught.value).count("314,572,800") == 1
    args = SFTConfig(str(tmp_path / "out"), use_cpu=True, report_to="none")
    with pytest.raises((CheckError, ModelError), match="the file has 314,572,800 bytes, and at most"):
        SFTTrainer(str(folder), args, train_dataset=Dataset.from_list(alpaca_rows(2)))


def test_a_tokenizer_that_is_cloned(folder, unread):
    with pytest.raises(ModelError, match="the file has 314,572,800 bytes, and at most"):
        clone_tokens(make_tokenizer(), str(folder))


def test_a_tokenizer_of_a_ready_model(folder, llama, tmp_path, unread):
    llama.config._name_or_path = str(folder)
    args = SFTConfig(str(tmp_path / "out"), use_cpu=True, report_to="none")
    with pytest.raises((CheckError, ModelError), match="the file has 314,572,800 bytes, and at most"):
        SFTTrainer(llama, args, train_dataset=Dataset.from_list(alpaca_rows(2)))
