"""Tokens that a run adds or names: their rows train, or the run is refused; texts begin with the BOS that is named."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftcore import ModelError, RecipeError, SFTConfig, SFTTrainer
from tests.conftest import make_llama, make_tokenizer

NEW = ["<thought>", "</thought>"]
ROWS = [{"text": "<thought>hello</thought>world"}] * 2


def trainer_of(folder, tokenizer, peft_config=None, model=None, **fields):
    defaults = {"max_steps": 2, "use_cpu": True, "save_strategy": "no", "learning_rate": 0.1, "report_to": "none"}
    args = SFTConfig(str(folder / "out"), **{**defaults, **fields})
    model, rows = make_llama(tokenizer) if model is None else model, Dataset.from_list(ROWS)
    return SFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer, peft_config=peft_config)


def test_new_tokens_get_rows_that_train_and_are_saved(tmp_path, capsys):
    tokenizer = make_tokenizer()
    before = len(tokenizer)
    trainer = trainer_of(tmp_path, tokenizer, new_tokens=[*NEW, "<|im_start|>"])
    start = trainer.model.get_input_embeddings().weight.detach().clone()
    assert len(start) == before + 2
    trainer.train()
    moved = trainer.model.get_input_embeddings().weight.detach() - start
    assert (moved[before:].abs().sum(1) > 0).all()
    assert trainer.train_dataset[0]["input_ids"][0] == before
    assert '"<thought>", "</thought>" new to the tokenizer, embeddings grown' in capsys.readouterr().err
    trainer.save_model()
    saved = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert saved.tokenize("x<thought>y")[1] == "<thought>"
    assert saved.decode([before], skip_special_tokens=True) == "<thought>"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == before + 2


def test_an_adapter_that_leaves_them_untrained_is_refused_with_the_lines_to_paste(tmp_path):
    tokenizer = make_tokenizer()
    at = len(tokenizer)
    with pytest.raises(ModelError) as caught:
        trainer_of(tmp_path, tokenizer, LoraConfig(target_modules="all-linear"), new_tokens=NEW)
    said = str(caught.value)
    assert 'the new tokens "<thought>", "</thought>"' in said
    assert "modules_to_save: [embed_tokens, lm_head]" in said
    assert f"trainable_token_indices: {{embed_tokens: [{at}, {at + 1}], lm_head: [{at}, {at + 1}]}}" in said
    trainer_of(tmp_path, make_tokenizer(), LoraConfig(target_modules="all-linear"), new_tokens=["<|im_start|>"])


@pytest.mark.parametrize("how", ["modules_to_save", "trainable_token_indices"])
def test_an_adapter_that_trains_them_is_taken(tmp_path, how):
    tokenizer = make_tokenizer()
    at = len(tokenizer)
    ids = [at, at + 1]
    wanted = ["embed_tokens", "lm_head"] if how == "modules_to_save" else {"embed_tokens": ids, "lm_head": ids}
    base = make_llama(tokenizer)
    base.save_pretrained(tmp_path / "base")
    config = LoraConfig(r=2, target_modules="all-linear", **{how: wanted})
    trainer = trainer_of(tmp_path, tokenizer, config, model=base, new_tokens=NEW)
    trainer.train()
    trainer.save_model()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    again.resize_token_embeddings(at + 2)
    loaded = PeftModel.from_pretrained(again, tmp_path / "out").eval()
    tokens = torch.tensor([trainer.train_dataset[0]["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, trainer.model.eval()(tokens).logits)


@pytest.mark.parametrize("bos", [True, False])
def test_a_bos_is_named_for_tokenizer_and_model(tmp_path, bos):
    tokenizer = make_tokenizer(bos=bos)
    trainer = trainer_of(tmp_path, tokenizer, new_tokens=["<new>"], bos_token="<new>", unk_token="<s>", max_steps=1)
    new = tokenizer.convert_tokens_to_ids("<new>")
    assert trainer.model.config.bos_token_id == trainer.model.generation_config.bos_token_id == new
    assert (trainer.train_dataset[0]["input_ids"][0] == new) is bos
    trainer.save_model()
    saved = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (saved.bos_token, saved.unk_token) == ("<new>", "<s>")
    assert saved("hello")["input_ids"] == tokenizer("hello")["input_ids"]
    assert (saved("hello")["input_ids"][0] == new) is bos


@pytest.mark.parametrize("name", ["bos_token", "unk_token"])
def test_a_token_that_the_tokenizer_has_not_is_refused(tmp_path, name):
    with pytest.raises(ModelError, match=rf'{name}: the token "<none>" is not in the vocabulary.*new_tokens'):
        trainer_of(tmp_path, make_tokenizer(), **{name: "<none>"})


@pytest.mark.parametrize("wrong", [[" "], "<a>", [1], {"a": 1}])
def test_what_is_no_list_of_tokens_is_refused(tmp_path, wrong):
    with pytest.raises(RecipeError, match="new_tokens"):
        SFTConfig(str(tmp_path), new_tokens=wrong)
