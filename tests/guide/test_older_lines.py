"""Lines of the guide of before TRL 1.0: each is named where it is met, and the line of today in the docs runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

import sftcore
from sftcore import SFTConfig, SFTTrainer
from tests.guide.test_guide import formatted, has_learned, lora, short

pytestmark = pytest.mark.usefixtures("hub")

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "coming-from-trl.md"
NEEDS_8BIT = pytest.mark.filterwarnings("ignore:MatMul8bitLt.*", "ignore:.*8-bit.*")


def lines() -> dict[str, str]:
    """The docs' table: the code on the left, and the first code on the right."""
    section = PAGE.read_text(encoding="utf-8").split("## Lines of the older guide")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.*) \| (.*) \|$", section, re.MULTILINE)[1:]
    found = {}
    for old, new in rows:
        code = re.search(r"`([^`]+)`", new)
        assert code is not None, new
        found[old] = code.group(1)
    return found


def today(part: str, **given: Any) -> dict[str, Any]:
    """Run the line of today beside the line with this text; the names that it made."""
    (code,) = [new for old, new in lines().items() if part in old]
    import accelerate
    import peft

    names = {**vars(transformers.models.auto), "BitsAndBytesConfig": transformers.BitsAndBytesConfig,
             "AutoModelForCausalLM": AutoModelForCausalLM, "LoraConfig": peft.LoraConfig,
             "PartialState": accelerate.PartialState, "SFTConfig": SFTConfig, "SFTTrainer": SFTTrainer,
             "clone_chat_template": sftcore.clone_chat_template, **given}  # fmt: skip
    exec(code, names)
    return names


def supervised(trainer: SFTTrainer) -> list[str]:
    return [
        trainer.processing_class.decode([token for token in row["labels"] if token != -100])
        for row in trainer.train_dataset
    ]


def test_every_line_of_the_table_has_a_test():
    tested = re.findall(r'today\(\s*"((?:[^"\\]|\\.)*)"', Path(__file__).read_text(encoding="utf-8"))
    assert tested
    for old in lines():
        assert any(part.replace('\\"', '"') in old for part in tested), old


def test_settings_of_the_configuration():
    dataset = load_dataset("stanfordnlp/imdb", split="train")
    with pytest.warns(FutureWarning, match=r"goes in args=SFTConfig\((max_length|packing|dataset_text_field)=…\)"):
        trainer = SFTTrainer(
            "facebook/opt-350m", short(), train_dataset=dataset, max_seq_length=8, packing=True,
            dataset_text_field="text",
        )  # fmt: skip
    assert {len(row["input_ids"]) for row in trainer.train_dataset} == {8}
    args = today("max_seq_length")["training_args"]
    args.max_steps, args.use_cpu = 1, True
    assert has_learned(SFTTrainer("facebook/opt-350m", train_dataset=dataset, args=args))


@pytest.mark.parametrize("name", ["DataCollatorForCompletionOnlyLM", "ConstantLengthDataset", "setup_chat_format"])
def test_names_that_are_gone_say_what_to_write(name):
    with pytest.raises(ImportError, match=f"no {name}. (Give|Use) .*"):
        exec(f"from sftcore import {name}")


def test_the_loss_on_answers_alone():
    """As that collator masked: all before and with the response template counts for nothing, here by hand."""
    dataset = today(" ### Answer:", dataset=load_dataset("questions", split="train"))["dataset"]
    trainer = SFTTrainer("facebook/opt-350m", train_dataset=dataset, args=short())
    eos = trainer.processing_class.eos_token
    whole = [formatted(row) for row in load_dataset("questions", split="train")]
    assert [trainer.processing_class.decode(row["input_ids"]) for row in trainer.train_dataset] == [
        text + eos for text in whole
    ]
    assert supervised(trainer) == [text[text.index(" ### Answer:") :] + eos for text in whole]
    assert has_learned(trainer)


def test_the_loss_on_the_assistant_alone():
    rows = load_dataset("timdettmers/openassistant-guanaco", split="train")

    def as_messages(row):
        turns = re.findall(r"### (Human|Assistant): (.*?)(?=###|$)", row["text"])
        roles = {"Human": "user", "Assistant": "assistant"}
        return {"messages": [{"role": roles[who], "content": words} for who, words in turns]}

    dataset = rows.map(as_messages, remove_columns=rows.column_names)
    args = today("### Human:")["training_args"]
    args.max_steps, args.use_cpu = 1, True
    trainer = SFTTrainer("Qwen/Qwen2.5-0.5B", train_dataset=dataset, args=args)
    assert supervised(trainer) == [f"It is {i}.<|im_end|>Again {i}.<|im_end|>" for i in range(6)]
    assert has_learned(trainer)


def over_a_batch(example):
    texts = []
    for i in range(len(example["question"])):
        texts.append(f"### Question: {example['question'][i]}\n ### Answer: {example['answer'][i]}")
    return texts


@pytest.mark.parametrize("longer", ["answer", "question"])
def test_a_formatting_function_over_a_batch_is_refused(longer):
    """Given one row, it formats single letters, or stops behind the last one of the shorter text."""
    dataset = load_dataset("questions", split="train")
    shorter = "question" if longer == "answer" else "answer"
    dataset = dataset.map(lambda row: {shorter: row[shorter][:5]})
    with pytest.raises(sftcore.DataError, match=r"train_dataset row 0: .*called with one row.*not with a batch"):
        SFTTrainer("facebook/opt-350m", train_dataset=dataset, args=short(), formatting_func=over_a_batch)


def test_a_formatting_function_over_a_row():
    dataset = load_dataset("questions", split="train")
    function = today("formatting_func")["formatting_func"]
    trainer = SFTTrainer("facebook/opt-350m", train_dataset=dataset, args=short(), formatting_func=function)
    eos = trainer.processing_class.eos_token
    assert supervised(trainer) == [formatted(row) + eos for row in dataset]


def test_a_function_may_return_as_many_texts_as_a_column_has_letters():
    dataset = load_dataset("questions", split="train").map(lambda row: {"question": row["question"][:2]})

    def both(row):
        return [row["question"], row["answer"]]

    trainer = SFTTrainer("facebook/opt-350m", train_dataset=dataset, args=short(), formatting_func=both)
    assert len(trainer.train_dataset) == 2 * len(dataset)


def test_blocks_of_one_length():
    args = today("ConstantLengthDataset")["training_args"]
    args.max_steps, args.use_cpu, args.max_length = 1, True, 16
    dataset = load_dataset("stanfordnlp/imdb", split="train")
    trainer = SFTTrainer("mistralai/Mistral-7B-v0.1", train_dataset=dataset, args=args)
    assert {len(row["input_ids"]) for row in trainer.train_dataset.select(range(len(trainer.train_dataset) - 1))} == {
        16
    }
    assert has_learned(trainer)


def test_a_chat_format_for_a_base_model():
    model = AutoModelForCausalLM.from_pretrained("facebook/opt-350m")
    tokenizer = AutoTokenizer.from_pretrained("facebook/opt-350m")
    made = today("setup_chat_format", model=model, tokenizer=tokenizer)
    dataset = load_dataset("philschmid/dolly-15k-oai-style", split="train")
    trainer = SFTTrainer(
        made["model"], args=short(packing=True), train_dataset=dataset, processing_class=made["tokenizer"]
    )
    assert has_learned(trainer)


@NEEDS_8BIT
def test_a_model_in_8_bits():
    model = today("from_pretrained(…, load_in_8bit=True)")["model"]
    dataset = load_dataset("stanfordnlp/imdb", split="train")
    trainer = SFTTrainer(model, train_dataset=dataset, args=short(), peft_config=lora(bias="none"))
    assert has_learned(trainer)


@NEEDS_8BIT
def test_a_trainer_that_loads_in_8_bits():
    dataset = load_dataset("stanfordnlp/imdb", split="train")
    with pytest.warns(FutureWarning, match="load_in_8bit goes in args=SFTConfig"):
        trainer = SFTTrainer(
            "EleutherAI/gpt-neo-125m", short(), train_dataset=dataset, peft_config=lora(), load_in_8bit=True
        )
    assert any(weight.dtype == torch.int8 for weight in trainer.model.parameters())
    given = {"training_args": short(), "dataset": dataset, "peft_config": lora()}
    trainer = today("SFTTrainer(…, load_in_8bit=True)", **given)["trainer"]
    assert any(weight.dtype == torch.int8 for weight in trainer.model.parameters())
    assert has_learned(trainer)


def test_a_module_that_the_guide_misspells():
    made = today("modules_to_save")["peft_config"]
    dataset = load_dataset("trl-lib/Capybara", split="train")
    trainer = SFTTrainer("Qwen/Qwen2.5-0.5B", train_dataset=dataset, args=short(), peft_config=made)
    assert has_learned(trainer)


def test_small_changes():
    args = short()
    assert today("model_args.trust_remote_code", training_args=args)["trust_remote_code"] is False
    placed = today("PartialState().process_index")["device_map"]
    model = AutoModelForCausalLM.from_pretrained("facebook/opt-350m", device_map=placed)
    tokenizer = AutoTokenizer.from_pretrained("facebook/opt-350m")
    dataset = load_dataset("stanfordnlp/imdb", split="train")
    given = {"model": model, "training_args": args, "dataset": dataset, "tokenizer": tokenizer}
    trainer = today("SFTTrainer(…, tokenizer", **given)
    assert has_learned(trainer["trainer"])
