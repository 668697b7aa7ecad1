"""The warning for tokens of the chat template that neither the model knows nor its adapter trains."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
import yaml
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from sftcore import SFTTrainer, clone_chat_template
from sftcore.model.tokens import untrained_tokens
from tests.chat.made import base_tokenizer, chat_tokenizer, saved
from tests.conftest import alpaca_rows, make_llama
from tests.train.test_trainer import config


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("source")
    chat_tokenizer().save_pretrained(folder)
    return str(folder)


def lora(**options) -> LoraConfig:
    return LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["q_proj"], **options)


def warned(build) -> list[str]:
    """What a trainer that is built so warns of, of its tokens."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = build()
    found = [str(one.message) for one in caught if "has not learned" in str(one.message)]
    assert found == [note for note in trainer.loaded.notes if "has not learned" in note]
    return found


@pytest.mark.parametrize("tied", [True, False])
def test_the_warning_names_the_tokens_and_either_of_its_fixes_ends_it(tmp_path, source, tied):
    base = saved(tmp_path / "base", base_tokenizer(), tie_word_embeddings=tied)

    def trainer(**options):
        return SFTTrainer(
            str(base), config(tmp_path, chat_template_path=source), peft_config=lora(**options),
            train_dataset=Dataset.from_list(alpaca_rows(8)),
        )  # fmt: skip

    (text,) = warned(trainer)
    assert '"<|im_start|>", "<|im_end|>"' in text
    whole, rows = re.search(r"modules_to_save: (\[.*?\]).*trainable_token_indices: (\{.*\})", text).groups()
    whole, rows = yaml.safe_load(whole), yaml.safe_load(rows)
    assert whole == (["embed_tokens"] if tied else ["embed_tokens", "lm_head"])
    assert warned(lambda: trainer(modules_to_save=whole)) == []
    assert warned(lambda: trainer(trainable_token_indices=rows)) == []


def test_a_part_of_the_fix_is_not_enough(tmp_path, source):
    base = saved(tmp_path / "base", base_tokenizer())

    def build():
        return SFTTrainer(
            str(base), config(tmp_path, chat_template_path=source),
            peft_config=lora(modules_to_save=["embed_tokens"]), train_dataset=Dataset.from_list(alpaca_rows(8)),
        )  # fmt: skip

    (text,) = warned(build)
    assert "does not train their rows of the head, so" in text


def test_a_model_that_was_grown_before_is_found_out_by_its_rows(tmp_path, source):
    tokenizer = base_tokenizer()
    model, tokenizer, _ = clone_chat_template(make_llama(tokenizer), tokenizer, source)

    def build():
        return SFTTrainer(
            model, config(tmp_path), peft_config=lora(), processing_class=tokenizer,
            train_dataset=Dataset.from_list(alpaca_rows(8)),
        )  # fmt: skip

    (text,) = warned(build)
    assert '"<|im_start|>", "<|im_end|>"' in text


@pytest.mark.parametrize("untouched", ["zero", "tiny", "equal"])
def test_rows_that_pretraining_left_alone_are_found(untouched):
    tokenizer = chat_tokenizer()
    model = make_llama(tokenizer)
    weight = model.get_input_embeddings().weight
    with torch.no_grad():
        if untouched == "zero":
            weight[1:3] = 0
        elif untouched == "tiny":
            weight[1:3] *= 0.01
        else:
            weight[1] = weight[2]
    model = get_peft_model(model, lora())
    assert 'uses "<|im_start|>", "<|im_end|>", which' in untrained_tokens(model, tokenizer)


def test_tokens_that_the_model_knows_are_not_warned_of():
    tokenizer = chat_tokenizer()
    assert untrained_tokens(get_peft_model(make_llama(tokenizer), lora()), tokenizer) is None


def test_a_model_without_an_adapter_trains_all_its_rows(source):
    tokenizer = base_tokenizer()
    model, tokenizer, added = clone_chat_template(make_llama(tokenizer), tokenizer, source)
    assert untrained_tokens(model, tokenizer, added) is None


def test_texts_use_no_template_and_are_not_warned_of(tmp_path, source):
    base = saved(tmp_path / "base", base_tokenizer())
    rows = Dataset.from_list([{"text": "say hello"}] * 8)

    def build():
        tokenizer = base_tokenizer()
        model, tokenizer, _ = clone_chat_template(make_llama(tokenizer), tokenizer, source)
        tokenizer.eos_token = "</s>"
        return SFTTrainer(model, config(tmp_path), peft_config=lora(), processing_class=tokenizer, train_dataset=rows)

    assert base.is_dir()
    assert warned(build) == []


def test_an_adapter_on_embeddings_and_head_teaches_them(tmp_path, source):
    base = saved(tmp_path / "base", base_tokenizer())

    def build():
        return SFTTrainer(
            str(base), config(tmp_path, chat_template_path=source), train_dataset=Dataset.from_list(alpaca_rows(8)),
            peft_config=LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["embed_tokens", "lm_head"]),
        )  # fmt: skip

    assert warned(build) == []
