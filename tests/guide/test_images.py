"""The guide's chapter on vision-language models: a collator of the script's own."""

from __future__ import annotations

import pytest
from datasets import Dataset
from transformers import AutoModelForImageTextToText, AutoProcessor

from sftcore import SFTTrainer
from sftcore.testing.tiny_vlm import save
from tests.guide.test_guide import has_learned, short


@pytest.fixture
def llava(tmp_path):
    return save("llava", tmp_path / "llava-1.5")


def conversation(words: str) -> list[dict]:
    return [
        {"role": "user", "content": [{"type": "text", "text": "Who is this?"}, {"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": words}]},
        {"role": "user", "content": [{"type": "text", "text": "What is he famous for?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A word."}]},
    ]


@pytest.fixture
def picture_rows() -> Dataset:
    from PIL import Image

    pictures = [Image.new("RGB", (32, 32), (40 * i, 0, 0)) for i in range(4)]
    rows = [{"messages": conversation(f"Number {i}"), "images": [one]} for i, one in enumerate(pictures)]
    return Dataset.from_list(rows)


@pytest.mark.parametrize("given", ["the processor's tokenizer", "the processor", "nothing"])
def test_a_collator_of_ones_own_gets_the_raw_rows(llava, given, picture_rows):
    processor = AutoProcessor.from_pretrained(llava)
    model = AutoModelForImageTextToText.from_pretrained(llava)
    seen = []

    def collate(examples):
        seen.extend(sorted(example) for example in examples)
        words = [processor.apply_chat_template(example["messages"], tokenize=False) for example in examples]
        batch = processor(text=words, images=[one["images"][0] for one in examples], return_tensors="pt", padding=True)
        batch["labels"] = batch["input_ids"].masked_fill(batch["input_ids"] == processor.tokenizer.pad_token_id, -100)
        return batch

    training_args = short()
    training_args.remove_unused_columns = False
    training_args.dataset_kwargs = {"skip_prepare_dataset": True}
    ways = {"the processor's tokenizer": processor.tokenizer, "the processor": processor, "nothing": None}
    trainer = SFTTrainer(
        model=model,
        args=training_args,
        data_collator=collate,
        train_dataset=picture_rows,
        processing_class=ways[given],
    )
    assert has_learned(trainer)
    # a collator is also tried on rows of tokens, to see whether it lays them end to end
    rows = [columns for columns in seen if columns != ["input_ids", "labels"]]
    assert rows == [["images", "messages"]] * len(picture_rows)
