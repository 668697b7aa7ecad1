"""Where generation stops after a run, and what pads."""

from __future__ import annotations

import copy

import pytest
import torch
from datasets import Dataset, IterableDataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from sftcore import SFTTrainer
from sftcore.chat.stops import align_pad, align_stop, as_list, turn_end
from tests.chat import trl_templates
from tests.chat.made import answer, base_tokenizer, build, chat_tokenizer, qwen_like, saved
from tests.conftest import CHATML, CHATML_MARKED, alpaca_rows, make_llama
from tests.train.test_trainer import config

WITHOUT_END = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
PRINTS_EOS = CHATML + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"


def run(tmp_path, model, tokenizer, rows=None, **fields):
    rows = Dataset.from_list(alpaca_rows(16)) if rows is None else rows
    return SFTTrainer(model, config(tmp_path, **fields), train_dataset=rows, processing_class=tokenizer)


# --- What ends a turn -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("template", [CHATML, CHATML_MARKED, PRINTS_EOS])
def test_the_end_of_a_turn_is_read_off_what_the_template_renders(template):
    assert turn_end(qwen_like(template=template)) == "<|im_end|>"


def test_where_the_eos_follows_the_end_of_a_turn_at_once_the_answer_ends_with_the_eos():
    assert turn_end(qwen_like(template=CHATML.replace("<|im_end|>", "<|im_end|><|endoftext|>"))) == "<|endoftext|>"


@pytest.mark.parametrize(
    ("name", "end"),
    [("gemma3", "<end_of_turn>"), ("glm4moe", "<|user|>"), ("gptoss", "<|return|>"), ("phi3", "<|end|>"),
     ("llama3_1", "<|eot_id|>"), ("cohere2", "<|END_OF_TURN_TOKEN|>"), ("deepseekv3", "<｜end▁of▁sentence｜>")],
)  # fmt: skip
def test_the_end_of_a_turn_of_stock_templates_is_the_one_their_models_are_served_with(name, end):
    assert turn_end(trl_templates.tokenizer_of(name)) == end


def test_a_template_that_ends_no_turn_ends_with_the_next_ones_header_as_in_training():
    special = ["<|endoftext|>", "<|user|>", "<|assistant|>"]
    tokenizer = build(special, eos="<|endoftext|>", template=WITHOUT_END)
    assert turn_end(tokenizer) == "<|user|>"


def test_without_a_template_or_with_one_that_refuses_there_is_none():
    assert turn_end(base_tokenizer()) is None
    assert turn_end(chat_tokenizer(template="{{ raise_exception('no') }}")) is None


# --- Where generation stops -----------------------------------------------------------------------------------------
def test_the_end_of_turns_becomes_the_first_stop_and_the_eos_and_the_run_says_so(tmp_path):
    tokenizer = qwen_like()
    trainer = run(tmp_path, make_llama(tokenizer), tokenizer)
    assert any('ends turns with "<|im_end|>", but the EOS was "<|endoftext|>"' in note for note in trainer.loaded.notes)
    trainer.train()
    trainer.save_model()
    saved_config = GenerationConfig.from_pretrained(tmp_path / "out")
    assert saved_config.eos_token_id == [2, 0]
    assert saved_config.pad_token_id == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "<|im_end|>"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.eos_token_id == 2


def test_a_model_in_the_manner_of_qwen_stops_by_itself_after_training(tmp_path):
    base = saved(tmp_path / "base", qwen_like())
    args = config(tmp_path, max_steps=60, per_device_train_batch_size=8)
    trainer = SFTTrainer(str(base), args, train_dataset=Dataset.from_list(alpaca_rows(32)))
    trainer.train()
    trainer.save_model()
    folder = tmp_path / "out"
    said = answer(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder), "say 7")
    assert said[-1] == 2
    assert len(said) < 24


def test_a_template_that_prints_the_eos_keeps_it(tmp_path):
    tokenizer = qwen_like(template=PRINTS_EOS)
    trainer = run(tmp_path, make_llama(tokenizer), tokenizer)
    assert trainer.model.generation_config.eos_token_id == [2, 0]
    assert tokenizer.eos_token == "<|endoftext|>"
    assert any("the tokenizer keeps its EOS, because the template prints it" in note for note in trainer.loaded.notes)


def test_an_eos_that_was_chosen_comes_first_and_the_end_of_turns_stops_too(tmp_path):
    tokenizer = qwen_like()
    trainer = run(tmp_path, make_llama(tokenizer), tokenizer, eos_token="<|endoftext|>")
    assert trainer.model.generation_config.eos_token_id == [0, 2]
    assert tokenizer.eos_token == "<|endoftext|>"
    assert any('generation stops at "<|im_end|>" too' in note for note in trainer.loaded.notes)


def test_stops_that_the_models_makers_have_set_stay_as_they_are(tmp_path):
    tokenizer = qwen_like(pad="<|im_start|>")
    model = make_llama(tokenizer)
    model.generation_config.eos_token_id = [0, 2, 5]
    trainer = run(tmp_path, model, tokenizer)
    assert trainer.model.generation_config.eos_token_id == [0, 2, 5]
    assert tokenizer.eos_token == "<|endoftext|>"
    assert not any("ends turns" in note for note in trainer.loaded.notes)


def test_texts_end_with_the_eos_whatever_the_template_says(tmp_path):
    tokenizer = qwen_like()
    model = make_llama(tokenizer)
    model.generation_config.eos_token_id = 7
    trainer = run(tmp_path, model, tokenizer, Dataset.from_list([{"text": "say hello"}] * 4))
    assert trainer.model.generation_config.eos_token_id == [0, 7]
    assert tokenizer.eos_token == "<|endoftext|>"


def test_conversations_that_are_all_cut_before_their_end_are_conversations_all_the_same(tmp_path):
    tokenizer = qwen_like()
    rows = Dataset.from_list([{"instruction": "say", "input": "", "output": "The answer is " * 20}] * 4)
    trainer = run(tmp_path, make_llama(tokenizer), tokenizer, rows, max_length=64)
    assert not any(2 in row for row in trainer.train_dataset["labels"])
    assert trainer.model.generation_config.eos_token_id == [2, 0]


def test_a_stream_is_taken_to_use_the_template(tmp_path):
    tokenizer = qwen_like()
    stream = IterableDataset.from_generator(lambda: iter(alpaca_rows(16)))
    assert run(tmp_path, make_llama(tokenizer), tokenizer, stream).model.generation_config.eos_token_id == [2, 0]


@pytest.mark.parametrize("name", trl_templates.names(training=False))
def test_alignment_leaves_the_rendering_of_stock_templates_as_it_was(name):
    tokenizer = copy.deepcopy(trl_templates.tokenizer_of(name))
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    model = make_llama(tokenizer, eos_token_id=0, num_hidden_layers=1)
    end = turn_end(tokenizer)
    assert end is not None

    def rendered():
        try:
            return tokenizer.apply_chat_template(turns, tokenize=False)
        except Exception as error:
            return str(error)

    before = rendered()
    align_stop(model, tokenizer, None, eos_is_chosen=False)
    assert rendered() == before
    assert tokenizer.convert_tokens_to_ids(end) in as_list(model.generation_config.eos_token_id)


def test_a_token_without_a_row_is_refused_before_training(tmp_path):
    from sftcore import ModelError

    tokenizer = chat_tokenizer()
    model = make_llama(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    tokenizer.chat_template = CHATML.replace("<|im_end|>", "<|end|>")
    with pytest.raises(ModelError, match=r'"<\|end\|>" \(\d+\).*resize_token_embeddings'):
        run(tmp_path, model, tokenizer)


# --- Padding --------------------------------------------------------------------------------------------------------
def test_a_stop_token_that_pads_is_trained_all_the_same_and_pads_no_longer(tmp_path):
    tokenizer = chat_tokenizer(pad="<|im_end|>", unk="<|endoftext|>")
    model = make_llama(tokenizer)
    assert model.get_input_embeddings().padding_idx == 2
    trainer = run(tmp_path, model, tokenizer)
    assert 'padding is now "<|endoftext|>", because "<|im_end|>" ends answers' in trainer.loaded.notes
    batch = trainer.data_collator([trainer.train_dataset[i] for i in (0, 15)])
    assert all(2 in row for row in batch["labels"])
    assert batch["input_ids"][0, -1] == 0
    trainer.train()
    trainer.save_model()
    assert GenerationConfig.from_pretrained(tmp_path / "out").pad_token_id == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "out").pad_token == "<|endoftext|>"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.pad_token_id == 0


def test_the_row_of_a_stop_token_that_padded_gets_gradients(tmp_path):
    tokenizer = chat_tokenizer(pad="<|im_end|>", unk="<|endoftext|>")
    model = make_llama(tokenizer)
    run(tmp_path, model, tokenizer)
    ids = torch.tensor([[1, 2, 7, 8]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert model.get_input_embeddings().weight.grad[2].abs().sum() > 0


def test_where_nothing_else_can_pad_the_stop_token_stays_trained_and_the_run_says_so(tmp_path):
    tokenizer = build(["<|im_start|>", "<|im_end|>"], eos="<|im_end|>", pad="<|im_end|>", template=CHATML)
    tokenizer.add_special_tokens({"bos_token": "<|im_start|>"})
    trainer = run(tmp_path, make_llama(tokenizer, pad_token_id=None), tokenizer)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in (0, 15)])
    assert all(1 in row for row in batch["labels"])
    assert any("because the vocabulary has no other suitable token" in note for note in trainer.loaded.notes)


@pytest.mark.parametrize(
    ("special", "unk", "expected"),
    [
        (["<|reserved_special_token_0|>", "<|finetune_right_pad_id|>"], "<|unk|>", "<|finetune_right_pad_id|>"),
        (["<|image_pad|>", "<|reserved_special_token_0|>"], "<|unk|>", "<|reserved_special_token_0|>"),
        (["<|image_pad|>", "<|spade|>"], "<|unk|>", "<|unk|>"),
        (["<extra_id_0>"], None, "<extra_id_0>"),
    ],
)
def test_padding_is_a_pad_token_then_an_unused_one_then_the_unknown_one(special, unk, expected):
    special = ["<|im_start|>", "<|im_end|>", *([unk] if unk else []), *special]
    tokenizer = build(special, eos="<|im_end|>", pad="<|im_end|>", unk=unk, template=CHATML)
    align_pad(make_llama(tokenizer), tokenizer, None)
    assert tokenizer.pad_token == expected


def test_padding_for_which_the_model_has_no_row_is_replaced_or_refused(tmp_path):
    from sftcore import ModelError

    for unk in ("<|endoftext|>", None):
        tokenizer = chat_tokenizer(pad=None, unk=unk)
        model = make_llama(tokenizer, pad_token_id=None)
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        if unk:
            notes = run(tmp_path, model, tokenizer).loaded.notes
            assert 'padding is now "<|endoftext|>", because "[PAD]" has no row in the embeddings' in notes
        else:
            with pytest.raises(ModelError, match=r'the padding token "\[PAD\]" has no row in the model'):
                run(tmp_path, model, tokenizer)


@given(pad=st.sampled_from([None, *range(6)]), configured=st.sampled_from([None, *range(6)]), eos=st.integers(0, 5))
def test_the_stop_token_never_pads_where_there_is_a_choice(pad, configured, eos):
    names = ["<a>", "<unused>", "<|im_start|>", "<|im_end|>", "<pad>", "<unk>"]
    tokenizer = build(names, eos=names[eos], pad=None if pad is None else names[pad], unk="<unk>", template=CHATML)
    model = make_llama(tokenizer, pad_token_id=configured, num_hidden_layers=1)
    for labels in (None, {eos}):
        align_stop(model, tokenizer, labels, eos_is_chosen=False)
        align_pad(model, tokenizer, labels)
        stop = 3 if labels is None or eos == 3 else tokenizer.eos_token_id
        assert model.generation_config.pad_token_id == tokenizer.pad_token_id != stop
        assert stop in as_list(model.generation_config.eos_token_id)
