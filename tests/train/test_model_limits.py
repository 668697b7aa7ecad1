"""Rows for which a model has no table: cut and said where the run cuts, else refused, before the model is called."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import PromptTuningConfig
from transformers import AutoModelForCausalLM, GPT2Config, GPTJConfig, OPTConfig, RobertaConfig

from sftcore import DataError, SFTConfig, SFTTrainer
from sftcore.train.record.summary import plan_lines
from tests.conftest import make_llama, make_tokenizer

SHORT = {
    "gpt2": lambda size: GPT2Config(vocab_size=size, n_embd=32, n_layer=1, n_head=4, n_positions=16),
    "opt": lambda size: OPTConfig(
        vocab_size=size, hidden_size=32, word_embed_proj_dim=32, ffn_dim=64, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=16, pad_token_id=0,
    ),
    "gptj": lambda size: GPTJConfig(vocab_size=size, n_embd=32, n_layer=1, n_head=4, n_positions=16, rotary_dim=4),
    "roberta": lambda size: RobertaConfig(
        vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=18, pad_token_id=1, is_decoder=True,
    ),
}  # fmt: skip
LONG = [{"text": "say hello world " * 8}, {"text": "say hello"}] * 2
"""Texts of 26 and 3 tokens, with the EOS."""


def config(folder, **fields):
    defaults = {
        "use_cpu": True, "report_to": "none", "disable_tqdm": True, "max_steps": 1, "save_strategy": "no",
        "gradient_checkpointing": False, "per_device_train_batch_size": 2, "dataset_cache": False,
    }  # fmt: skip
    return SFTConfig(str(folder / "out"), **{**defaults, **fields})


def make_short(kind, tokenizer):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(SHORT[kind](len(tokenizer)))


def lengths(trainer):
    return [len(ids) for ids in trainer.train_dataset["input_ids"]]


@pytest.mark.parametrize("fields", [{}, {"max_length": None}, {"max_length": 64}])
@pytest.mark.parametrize("named", [False, True], ids=["ready", "named"])
@pytest.mark.parametrize("kind", SHORT)
def test_rows_are_cut_to_the_positions_that_a_model_has_and_the_plan_says_so(tmp_path, tokenizer, kind, named, fields):
    model = make_short(kind, tokenizer)
    if named:
        model.save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        model = str(tmp_path / "model")
    given = None if named else tokenizer
    rows = Dataset.from_list(LONG)
    trainer = SFTTrainer(model, config(tmp_path, **fields), train_dataset=rows, processing_class=given)
    assert lengths(trainer) == [16, 3, 16, 3]
    trainer.train()
    said = "\n".join(plan_lines(trainer))
    assert "max_length 16: the model has learned no more positions" in said
    assert "2 rows cut to length" in said


def test_packed_and_padding_free_rows_of_short_documents_may_be_longer(tmp_path, tokenizer):
    rows = Dataset.from_list([{"text": "say hello"}] * 8)
    trainer = SFTTrainer(
        make_short("gpt2", tokenizer),
        config(tmp_path, padding_free=True, per_device_train_batch_size=8, plugins={"attention": "varlen"}),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    assert trainer.data_collator([trainer.train_dataset[i] for i in range(8)])["input_ids"].shape == (1, 24)
    trainer.train()


def test_virtual_tokens_take_positions_too(tmp_path, tokenizer):
    trainer = SFTTrainer(
        make_short("gpt2", tokenizer), config(tmp_path), train_dataset=Dataset.from_list(LONG),
        processing_class=tokenizer, peft_config=PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    )  # fmt: skip
    assert max(lengths(trainer)) == 13
    trainer.train()


def test_padding_to_a_multiple_stays_within_the_positions(tmp_path, tokenizer):
    trainer = SFTTrainer(
        make_short("gpt2", tokenizer), config(tmp_path, pad_to_multiple_of=12), train_dataset=Dataset.from_list(LONG),
        processing_class=tokenizer,
    )  # fmt: skip
    assert max(lengths(trainer)) == 12
    trainer.train()


PADDED = [("gpt2", {}), ("opt", {}), ("gptj", {}), ("gpt2", {"packing": True}), ("gptj", {"padding_free": True}),
          ("opt", {"packing": True, "collator": "flattened"})]  # fmt: skip


@pytest.mark.parametrize(("kind", "keys"), PADDED)
def test_padding_beyond_the_positions_changes_nothing(tmp_path, tokenizer, kind, keys):
    rows = Dataset.from_list([{"text": "say hello"}, {"text": "say hello, world"}] * 2)
    # transformers 5.17 has no sdpa for GPT-J
    plugins = {
        "attention": "eager" if kind == "gptj" else "sdpa",
        **({"collator": keys["collator"]} if "collator" in keys else {}),
    }
    fields = {"plugins": plugins, **{name: value for name, value in keys.items() if name != "collator"}}
    found = []
    for multiple in (None, 7, 64):
        trainer = SFTTrainer(
            make_short(kind, tokenizer), config(tmp_path, pad_to_multiple_of=multiple, **fields), train_dataset=rows,
            eval_dataset=rows, processing_class=tokenizer,
        )  # fmt: skip
        found.append(trainer.evaluate()["eval_loss"])
        trainer.train()
    assert found[1:] == pytest.approx([found[0]] * 2, rel=1e-5)


def test_a_model_that_computes_its_positions_is_given_longer_rows(tmp_path, tokenizer):
    model = make_llama(tokenizer, max_position_embeddings=16)
    trainer = SFTTrainer(model, config(tmp_path), train_dataset=Dataset.from_list(LONG), processing_class=tokenizer)
    assert max(lengths(trainer)) == 26
    trainer.train()


def test_a_batch_of_a_users_own_that_is_too_long_is_refused_before_the_model_sees_it(tmp_path, tokenizer):
    rows = Dataset.from_list([{"input_ids": [5] * 20, "labels": [5] * 20}])
    trainer = SFTTrainer(
        make_short("opt", tokenizer), config(tmp_path, dataset_kwargs={"skip_prepare_dataset": True}),
        train_dataset=IterableDataset.from_generator(lambda: iter(rows)), processing_class=tokenizer,
    )  # fmt: skip
    with pytest.raises(DataError, match=r"a batch: 20 tokens are more than the 16 positions .* max_length to 16"):
        trainer.train()
    with pytest.raises(DataError, match=r"train_dataset: row 0 of the prepared set: 20 tokens are more than the 16"):
        SFTTrainer(
            make_short("opt", tokenizer), config(tmp_path, dataset_kwargs={"skip_prepare_dataset": True}),
            train_dataset=rows, processing_class=tokenizer,
        )  # fmt: skip


# --- Ids beyond the embeddings --------------------------------------------------------------------------------------
@pytest.fixture
def larger():
    """A tokenizer with a token that the model has no row for, behind all others."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<tool>"])
    return tokenizer


def small(tokenizer):
    return make_llama(tokenizer, vocab_size=len(tokenizer) - 1)


def test_a_row_with_a_token_beyond_the_embeddings_is_named(tmp_path, larger):
    texts = ["say hello", "world", "say <tool> hello"]
    rows = Dataset.from_list([{"text": text} for text in texts])
    with pytest.raises(DataError, match=r'train_dataset: row 2: the token "<tool>" \(\d+\) has no row .* which have'):
        SFTTrainer(small(larger), config(tmp_path), train_dataset=rows, processing_class=larger)
    with pytest.raises(DataError, match=r"eval_dataset\['a'\]: row 2: .*resize_token_embeddings"):
        SFTTrainer(
            small(larger), config(tmp_path), train_dataset=rows.select([0, 1]), eval_dataset={"a": rows},
            processing_class=larger,
        )  # fmt: skip


def test_a_token_beyond_the_embeddings_that_no_row_has_is_no_fault(tmp_path, larger):
    rows = Dataset.from_list([{"text": "say hello"}] * 4)
    SFTTrainer(small(larger), config(tmp_path), train_dataset=rows, processing_class=larger).train()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_is_refused_at_the_batch(tmp_path, larger, workers):
    stream = IterableDataset.from_generator(lambda: iter([{"text": "say <tool> hello"}]))
    args = config(tmp_path, dataloader_num_workers=workers)
    trainer = SFTTrainer(small(larger), args, train_dataset=stream, processing_class=larger)
    with pytest.raises(DataError, match=r"a batch: the id \d+ has no row in the model's embeddings"):
        trainer.train()


def test_ids_that_were_given_are_looked_at_too(tmp_path, tokenizer):
    model = make_llama(tokenizer)
    beyond = model.config.vocab_size
    rows = Dataset.from_list([{"input_ids": [5, 6, 7]}, {"input_ids": [5, beyond, 7]}])
    with pytest.raises(
        DataError, match=rf'train_dataset row 1: "input_ids" holds {beyond}, but the vocabulary has {beyond} tokens'
    ):
        SFTTrainer(model, config(tmp_path), train_dataset=rows, processing_class=tokenizer)


def test_raw_rows_of_an_evaluation_are_looked_at(tmp_path, larger):
    rows = Dataset.from_list([{"text": "say hello"}] * 2)
    trainer = SFTTrainer(small(larger), config(tmp_path), train_dataset=rows, processing_class=larger)
    with pytest.raises(DataError, match=r"the id \d+ has no row"):
        trainer.evaluate(Dataset.from_list([{"text": "say <tool>"}]))


def test_embeddings_that_grew_after_construction_count(tmp_path, larger):
    stream = IterableDataset.from_generator(lambda: iter([{"text": "say <tool> hello"}]))
    trainer = SFTTrainer(small(larger), config(tmp_path), train_dataset=stream, processing_class=larger)
    trainer.model.resize_token_embeddings(len(larger))
    trainer.train()
