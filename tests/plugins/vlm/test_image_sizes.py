"""The options of the format that resize images, in prepared rows and in batches."""

import io

import pytest
import torch
from datasets import Dataset
from PIL import Image as Pillow
from sftcore_plugins.collators.vlm import VisionCollator

from sftcore.config.setup import set_up
from sftcore.core.errors import SFTCoreError
from sftcore.core.types import ModelRequest, Selection
from sftcore.data.sets import DataPreparation

PICTURE = Pillow.effect_noise((600, 300), 90).convert("RGB")


def encoded():
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG")
    return buffer.getvalue()


def row(**part):
    asked = {"role": "user", "content": [{"type": "image", **part}, {"type": "text", "text": "What is this?"}]}
    return {"messages": [asked, {"role": "assistant", "content": [{"type": "text", "text": "Noise."}]}]}


def prepared(processor, rows, **options):
    chosen = Selection("format", "vlm", options, path="format")
    setup = set_up([chosen], {"dataset_cache": False}, ModelRequest(vision=True), where="test")
    data = DataPreparation(setup, processor.tokenizer, 1024, processor=processor)
    return list(data.prepare(Dataset.from_list(rows), "train"))


@pytest.fixture(scope="module")
def processor(vlm_data):
    return vlm_data("qwen2_5_vl").processor


@pytest.mark.parametrize(
    ("options", "part", "size"),
    [
        ({"max_pixels": 20_000}, {}, (200, 100)),
        ({"image_size": 100}, {}, (100, 50)),
        ({"image_size": [64, 64]}, {}, (64, 64)),
        ({}, {"max_pixels": 20_000}, (200, 100)),
        ({"image_size": 300}, {"resized_width": 56, "resized_height": 28}, (56, 28)),
    ],
)
def test_batches_hold_what_the_processor_makes_of_the_resized_image(processor, options, part, size):
    (found,) = prepared(processor, [row(bytes=encoded(), **part)], **options)
    batch = VisionCollator(processor, processor.tokenizer.pad_token_id)([found])
    resized = PICTURE.resize(size, Pillow.Resampling.BICUBIC)
    text = "<|vision_start|><|image_pad|><|vision_end|>"
    wanted = processor(images=[[resized]], text=[text], return_tensors="pt")
    assert torch.equal(batch["pixel_values"], wanted["pixel_values"])
    assert torch.equal(batch["image_grid_thw"], wanted["image_grid_thw"])
    token = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert found["input_ids"].count(token) == int((wanted["input_ids"] == token).sum())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_pixels": 0}, "max_pixels"),
        ({"max_pixels": "large"}, "max_pixels"),
        ({"image_size": [1, 2, 3]}, "image_size"),
        ({"image_size": 100, "max_pixels": 100}, "drop one"),
        ({"min_pixels": 200, "max_pixels": 100}, "more than max_pixels"),
    ],
)
def test_options_that_cannot_hold_are_refused_before_the_rows(processor, options, said):
    with pytest.raises(SFTCoreError, match=said):
        prepared(processor, [row(bytes=encoded())], **options)
