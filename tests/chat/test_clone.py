"""Another tokenizer's chat template, with its tokens, on a model that has none."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from sftcore import CheckError, ModelError, SFTTrainer, clone_chat_template
from tests.chat.made import answer, base_tokenizer, chat_tokenizer, qwen_like, saved
from tests.conftest import CHATML, alpaca_rows, make_llama
from tests.train.test_trainer import config


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("source")
    chat_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("tied", [True, False])
def test_template_tokens_and_eos_are_taken_over_and_the_old_rows_stay(source, tied):
    tokenizer = base_tokenizer()
    model = make_llama(tokenizer, tie_word_embeddings=tied)
    before, words = model.get_input_embeddings().weight.detach().clone(), tokenizer("say hello")["input_ids"]
    model, tokenizer, added = clone_chat_template(model, tokenizer, source)
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert tokenizer.chat_template == CHATML
    assert [tokenizer.convert_ids_to_tokens(i) for i in added[:3]] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert len(embeddings) == len(head) == len(tokenizer) == model.config.vocab_size
    assert len(embeddings) % 64 == 0
    assert (embeddings is head) == tied
    assert torch.equal(embeddings[: len(before)], before)
    torch.testing.assert_close(embeddings[added], before.mean(0).expand(len(added), -1), atol=1e-3, rtol=0)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.eos_token_id == model.config.eos_token_id == model.generation_config.eos_token_id == end
    assert tokenizer("say hello")["input_ids"] == words
    assert "<|im_end|>" not in tokenizer.decode([words[0], end], skip_special_tokens=True)


def test_the_same_as_trls(source):
    import trl

    ours, theirs = ((make_llama(base_tokenizer()), base_tokenizer()) for _ in range(2))
    model, tokenizer, added = clone_chat_template(*ours, source)
    trl_model, trl_tokenizer, trl_added = trl.clone_chat_template(*theirs, source)
    assert added == trl_added
    assert tokenizer.get_vocab() == trl_tokenizer.get_vocab()
    assert tokenizer.special_tokens_map == trl_tokenizer.special_tokens_map
    assert model.config.to_dict() == trl_model.config.to_dict()
    assert model.generation_config.to_dict() == trl_model.generation_config.to_dict()


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(0, 200), multiples=st.lists(st.one_of(st.none(), st.integers(1, 200)), min_size=1, max_size=3))
def test_rows_never_shrink_fit_the_multiple_and_are_all_tokens_however_often_it_is_cloned(source, rows, multiples):
    tokenizer = base_tokenizer()
    model = make_llama(tokenizer, vocab_size=len(tokenizer) + rows, num_hidden_layers=1)
    for multiple in multiples:
        before = model.vocab_size
        model, tokenizer, _ = clone_chat_template(model, tokenizer, source, resize_to_multiple_of=multiple)
        assert before <= model.vocab_size < max(before, len(tokenizer)) + (multiple or 1)
        assert model.vocab_size % (multiple or 1) == 0
        assert model.vocab_size == len(tokenizer) == len(model.get_output_embeddings().weight)


def test_a_source_whose_template_does_not_end_with_its_eos_gives_both_stops(tmp_path):
    qwen_like().save_pretrained(tmp_path)
    tokenizer = base_tokenizer()
    model, tokenizer, _ = clone_chat_template(make_llama(tokenizer), tokenizer, str(tmp_path))
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert model.generation_config.eos_token_id == ends
    assert tokenizer.eos_token == "<|endoftext|>"


def test_what_cannot_be_cloned_is_refused_with_the_way_out(tmp_path, source, write):
    tokenizer = base_tokenizer()
    llama = make_llama(tokenizer)
    tokenizer.save_pretrained(tmp_path / "plain")
    with pytest.raises(ModelError, match=r"has no chat template\. Name a tokenizer that has one"):
        clone_chat_template(llama, tokenizer, str(tmp_path / "plain"))
    with pytest.raises(ModelError, match="no such folder"):
        clone_chat_template(llama, tokenizer, str(tmp_path / "nothing"))
    with pytest.raises(ModelError, match="holds only a template"):
        clone_chat_template(llama, tokenizer, str(write("t.jinja", CHATML)))
    with pytest.raises(ModelError, match="resize_to_multiple_of is 0"):
        clone_chat_template(llama, tokenizer, source, resize_to_multiple_of=0)
    adapter = get_peft_model(llama, LoraConfig(r=2, task_type="CAUSAL_LM"))
    with pytest.raises(ModelError, match="Clone the template into the base model first"):
        clone_chat_template(adapter, base_tokenizer(), source)


def test_a_model_without_generation_is_cloned_too(source):
    from transformers import LlamaForSequenceClassification

    tokenizer = base_tokenizer()
    model = LlamaForSequenceClassification(make_llama(tokenizer).config)
    model, tokenizer, _ = clone_chat_template(model, tokenizer, source)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert len(model.get_input_embeddings().weight) == len(tokenizer)


def test_a_base_model_learns_to_end_its_turn_and_still_does_when_plain_transformers_loads_it(tmp_path, source):
    base = saved(tmp_path / "base", base_tokenizer())
    args = config(tmp_path, chat_template_path=source, max_steps=60, per_device_train_batch_size=8)
    trainer = SFTTrainer(str(base), args, train_dataset=Dataset.from_list(alpaca_rows(32)))
    assert any(note.startswith(f"chat template cloned from {source}: 3 new tokens") for note in trainer.loaded.notes)
    trainer.train()
    trainer.save_model()
    folder = tmp_path / "out"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    said = answer(model, tokenizer, "say 7")
    assert tokenizer.decode(said).startswith("The answer is")
    assert said[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert len(said) < 24
    assert model.generation_config.pad_token_id != said[-1]


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_with_the_fix_pasted_learns_to_end_its_turn(tmp_path, source, tied, recwarn):
    base = saved(tmp_path / "base", base_tokenizer(), tie_word_embeddings=tied)
    modules = ["embed_tokens"] if tied else ["embed_tokens", "lm_head"]
    args = config(tmp_path, chat_template_path=source, max_steps=60, per_device_train_batch_size=8)
    trainer = SFTTrainer(
        str(base), args, train_dataset=Dataset.from_list(alpaca_rows(32)),
        peft_config=LoraConfig(r=8, target_modules="all-linear", modules_to_save=modules, task_type="CAUSAL_LM"),
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    assert not [one for one in recwarn if "has not learned" in str(one.message)]
    # as the model card says
    folder = tmp_path / "out"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(tokenizer))
    model.generation_config = GenerationConfig.from_pretrained(folder)
    model = PeftModel.from_pretrained(model, folder)
    said = answer(model, tokenizer, "say 7")
    assert said[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert len(said) < 24


def test_a_stream_and_packed_rows_take_a_cloned_template_too(tmp_path, source):
    from datasets import IterableDataset

    base = saved(tmp_path / "base", base_tokenizer())
    stream = IterableDataset.from_generator(lambda: iter(alpaca_rows(64)))
    for name, rows in (("stream", stream), ("packed", Dataset.from_list(alpaca_rows(64)))):
        args = config(tmp_path / name, chat_template_path=source, packing=True, max_length=64)
        trainer = SFTTrainer(str(base), args, train_dataset=rows)
        trainer.train()
        assert trainer.model.generation_config.eos_token_id[0] == trainer.processing_class.eos_token_id
        assert trainer.processing_class.eos_token == "<|im_end|>"


def test_a_path_that_is_neither_template_nor_tokenizer_is_refused_before_the_model_is_read(tmp_path):
    base = saved(tmp_path / "base", base_tokenizer())
    rows = Dataset.from_list(alpaca_rows(4))
    with pytest.raises(ModelError, match=r"chat_template_path \./nothing: no such folder"):
        SFTTrainer(str(base), config(tmp_path, chat_template_path="./nothing"), train_dataset=rows)
    with pytest.raises(CheckError, match="no such file"):
        SFTTrainer(str(base), config(tmp_path, chat_template_path="nothing.jinja"), train_dataset=rows)


def test_a_saved_adapter_takes_another_template_only_if_it_need_not_grow(tmp_path, source):
    base = saved(tmp_path / "base", base_tokenizer())
    rows = Dataset.from_list(alpaca_rows(4))
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, task_type="CAUSAL_LM"))
    with pytest.raises(ModelError, match="its embeddings cannot grow inside an adapter"):
        SFTTrainer(
            model, config(tmp_path, chat_template_path=source), train_dataset=rows,
            processing_class=AutoTokenizer.from_pretrained(base),
        )  # fmt: skip
