"""Photographs that a camera took sideways are what transformers makes of their files, in preparation and in batches."""

import numpy as np
import pytest
from datasets import Dataset, Image
from PIL import Image as Pillow
from sftcore_plugins.collators.vlm import VisionCollator
from transformers.image_utils import load_image

from sftcore.data.images.given import source_of
from sftcore.data.images.reference import open_image, size_of

TURNS = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A wall."}]},
]


@pytest.fixture(scope="module", params=["jpg", "tiff", "webp"])
def photographs(request, tmp_path_factory):
    """One for each orientation that EXIF knows, wider than high as the sensor is."""
    folder, pixels = tmp_path_factory.mktemp("photographs"), np.random.RandomState(0).randint(0, 255, (4, 12, 3))
    made = Pillow.fromarray(pixels.astype(np.uint8)).resize((96, 32))
    for orientation in range(1, 9):
        exif = Pillow.Exif()
        exif[0x0112] = orientation
        made.save(folder / f"{orientation}.{request.param}", exif=exif)
    return [folder / f"{orientation}.{request.param}" for orientation in range(1, 9)]


FORMS = {
    "path": str,
    "bytes": lambda path: {"bytes": path.read_bytes(), "path": None},
    "PIL image": Pillow.open,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_photograph_is_as_upright_as_a_processor_makes_of_its_file(vlm_data, photographs, form):
    data = vlm_data("qwen2_5_vl")  # whose tokens tell width from height
    given = Dataset.from_list([{"messages": TURNS, "images": [FORMS[form](path)]} for path in photographs])
    rows = data.prepare(given, "train_dataset")
    processor = data.processor
    batch = VisionCollator(processor, processor.tokenizer.pad_token_id)(list(rows))
    text = processor.apply_chat_template(TURNS, tokenize=False)
    at = 0
    for path, row in zip(photographs, rows, strict=True):
        wanted = processor(images=[[load_image(str(path))]], text=[text], return_tensors="pt")
        assert row["input_ids"] == wanted["input_ids"][0].tolist()
        patches = wanted["pixel_values"]
        assert (batch["pixel_values"][at : at + len(patches)] == patches).all()
        at += len(patches)
    is_upright = batch["image_grid_thw"][:, 1] > batch["image_grid_thw"][:, 2]
    assert is_upright.tolist() == [orientation in (5, 6, 7, 8) for orientation in range(1, 9)]


def test_a_picture_that_is_open_already_is_turned_as_its_file_and_as_datasets_does(photographs):
    decoder = Image()
    for path in photographs:
        found = open_image(source_of(Pillow.open(path)))
        assert found.tobytes() == open_image(source_of(str(path))).tobytes()
        decoded = decoder.decode_example({"path": str(path), "bytes": None})
        assert found.tobytes() == decoded.convert("RGB").tobytes()
        assert size_of(source_of(Pillow.open(path))) == decoded.size
