"""The vision-language collator by itself: TRL's batches from TRL's arguments, on raw rows."""

import copy

import pytest
import torch
from PIL import Image
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling as Theirs

from sftcore import DataCollatorForVisionLanguageModeling, RowError
from sftcore.testing.tiny_vlm import FAMILIES, make_processor

BOTH = ("input_ids", "attention_mask", "pixel_values", "pixel_attention_mask", "image_grid_thw", "token_type_ids")


def picture(size=(40, 30)):
    return Image.effect_noise(size, 80).convert("RGB")


def turns(question, answer=None):
    asked = [{"role": "user", "content": question}]
    return asked if answer is None else [*asked, {"role": "assistant", "content": answer}]


ROWS = [
    {"messages": turns("What is it?", "A wall of bricks."), "images": [picture()]},
    {"messages": turns("Which of them?", "The second."), "images": [picture(), picture((30, 60))]},
]


@pytest.fixture(params=FAMILIES)
def processor(request):
    return make_processor(request.param)


def same(ours, theirs):
    for name in BOTH:
        assert (name in ours) == (name in theirs), name
        if name in ours:
            assert torch.equal(torch.as_tensor(ours[name]), torch.as_tensor(theirs[name])), name


def test_conversations_give_the_batch_of_trl_with_images_and_first_tokens_unlabelled(processor):
    ours = DataCollatorForVisionLanguageModeling(processor)(copy.deepcopy(ROWS))
    theirs = Theirs(processor)(copy.deepcopy(ROWS))
    same(ours, theirs)
    differs = ours["labels"] != theirs["labels"]
    assert (ours["labels"][differs] == -100).all()
    text = processor.tokenizer.decode(theirs["labels"][differs])
    assert "wall" not in text
    assert "What" not in text


def test_prompts_and_completions_give_the_batch_of_trl(processor):
    rows = [
        {
            "prompt": turns("What is it?"),
            "completion": [{"role": "assistant", "content": "A wall."}],
            "image": picture(),
        },
        {"prompt": turns("And that one?"), "completion": [{"role": "assistant", "content": "So."}], "image": picture()},
    ]
    ours = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)(copy.deepcopy(rows))
    theirs = Theirs(processor, completion_only_loss=True)(copy.deepcopy(rows))
    same(ours, theirs)
    for row, (mine, other) in enumerate(zip(ours["labels"], theirs["labels"], strict=True)):
        counted = processor.tokenizer.decode(mine[mine != -100])
        assert rows[row]["completion"][0]["content"] in counted
        # TRL counts what the template always writes behind the end of a turn
        assert processor.tokenizer.decode(other[other != -100]).strip() == counted.strip()


def test_a_batch_is_padded_to_a_multiple_and_cut_behind_its_images(processor):
    batch = DataCollatorForVisionLanguageModeling(processor, pad_to_multiple_of=16)(copy.deepcopy(ROWS))
    assert batch["input_ids"].shape[1] % 16 == 0
    whole = DataCollatorForVisionLanguageModeling(processor)([copy.deepcopy(ROWS[0])])
    width = whole["input_ids"].shape[1]
    cut = DataCollatorForVisionLanguageModeling(processor, max_length=width - 3)([copy.deepcopy(ROWS[0])])
    assert torch.equal(cut["input_ids"], whole["input_ids"][:, :-3])
    with pytest.raises(RowError, match="batch row 0: an image would be cut at max_length"):
        DataCollatorForVisionLanguageModeling(processor, max_length=5)([copy.deepcopy(ROWS[0])])


def test_texts_have_the_models_own_words_around_an_image():
    processor = make_processor("qwen2_5_vl")
    rows = [{"text": "<image>A wall.", "images": [picture()]}]
    batch = DataCollatorForVisionLanguageModeling(processor)(rows)
    text = processor.tokenizer.decode(batch["input_ids"][0])
    assert text.startswith("<|vision_start|><|image_pad|>")
    assert "<|image_pad|><|vision_end|>A wall." in text
