"""Images go to the tower in the dtype of its weights, whatever the processor gives."""

import pytest
import torch

from sftcore.model.vision import FeatureDtypes
from sftcore.testing.tiny_vlm import make_vlm
from tests.plugins.vlm.by_row.builders import ROWS, TEXT_ROW, loss_of, make, make_trainer


def by_hand(rows, dtype=torch.float32):
    """The mean loss of the answers and all other words, with the pixels in the tower's dtype."""
    model, processor = make("llama4")
    model = model.to(dtype)
    special = processor.tokenizer.convert_tokens_to_ids(
        ["<|image|>", "<|image_start|>", "<|image_end|>", "<|patch|>", "<|tile_x_separator|>", "<|tile_y_separator|>"]
    )
    total, count = 0.0, 0
    for one in rows:
        text = processor.apply_chat_template(one["messages"], tokenize=False)
        images = {"images": [one["images"]]} if one["images"] else {}
        batch = processor(text=[text], add_special_tokens=False, return_tensors="pt", **images)
        assert not images or batch["pixel_values"].dtype == torch.bfloat16
        given = {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.items()}
        labels = batch["input_ids"].clone()
        labels[torch.isin(labels, torch.tensor(special))] = -100
        logits = model(**given).logits[0, :-1].float()
        total += torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum").item()
        count += int((labels[0, 1:] != -100).sum())
    return total / count


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_pixels_train_a_tower_of_either_dtype(tmp_path, dtype):
    rows = [*ROWS, TEXT_ROW]
    model = make("llama4")[0].to(dtype)
    trainer = make_trainer(tmp_path, "llama4", rows, model=model, per_device_train_batch_size=4)
    allowed = 1e-5 if dtype == torch.float32 else 1e-3
    assert loss_of(trainer) == pytest.approx(by_hand(rows, dtype), rel=allowed)


@pytest.mark.parametrize("how", ["autocast", "lora", "packing"])
def test_bfloat16_pixels_train_in_other_ways_as_well(tmp_path, how):
    options = {
        "autocast": {"bf16": True},
        "lora": {"plugins": {"adapter": {"lora": {"target_modules": "all-linear"}}}},
        "packing": {"packing": True},
    }[how]
    loss = loss_of(make_trainer(tmp_path, "llama4", [*ROWS, TEXT_ROW], gradient_accumulation_steps=4, **options))
    if how == "packing":  # of one row
        assert loss > 0
    else:
        assert loss == pytest.approx(by_hand([*ROWS, TEXT_ROW]), rel=2e-2 if how == "autocast" else 1e-5)


@pytest.mark.slow
def test_a_tower_in_four_bits_takes_them_and_the_adapter_stays_off_routers(tmp_path):
    model, processor = make("llama4")
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    options = {"plugins": {"adapter": {"qlora": {"bits": 4}}}, "gradient_accumulation_steps": 4}
    rows = [*ROWS, TEXT_ROW]
    trainer = make_trainer(tmp_path / "run", "llama4", rows, model=str(tmp_path / "base"), **options)
    assert loss_of(trainer) == pytest.approx(by_hand(rows), rel=2e-2)
    adapted = [name for name, one in trainer.model.named_parameters() if one.requires_grad]
    assert any("q_proj" in name for name in adapted)
    assert not any("router" in name for name in adapted)


# --- The rule --------------------------------------------------------------------------------------------------------
def test_pixels_take_the_dtype_of_the_tower_and_other_floats_stay_as_they_are():
    model, _ = make_vlm("llava")
    model.model.vision_tower.to(torch.bfloat16)
    pixels, own = torch.zeros(1, 3, 32, 32), torch.zeros(2, dtype=torch.float64)
    batch = {"pixel_values": pixels, "rewards": own, "weights": own, "image_sizes": torch.zeros(1, 2).long()}
    given = FeatureDtypes(model)(batch)
    assert given["pixel_values"].dtype == torch.bfloat16
    assert batch["pixel_values"] is pixels
    assert given["rewards"] is own
    assert given["weights"] is own
    assert given["image_sizes"].dtype == torch.int64


def test_a_batch_that_fits_is_handed_on_as_it_is():
    batch = {"pixel_values": torch.zeros(1, 3, 32, 32), "input_ids": torch.zeros(1, 2).long()}
    assert FeatureDtypes(make_vlm("llava")[0])(batch) is batch


def test_quantised_weights_do_not_say_what_pixels_are():
    model, _ = make_vlm("llava")
    tower = model.model.vision_tower
    for name, parameter in list(tower.named_parameters()):
        if "proj" in name or "patch" in name or "class" in name:
            owner = tower.get_submodule(name.rpartition(".")[0])
            packed = torch.nn.Parameter(torch.zeros(parameter.shape, dtype=torch.uint8), requires_grad=False)
            setattr(owner, name.rpartition(".")[2], packed)
        else:
            parameter.data = parameter.data.to(torch.float16)
    given = FeatureDtypes(model)({"pixel_values": torch.zeros(1, 3, 32, 32)})
    assert given["pixel_values"].dtype == torch.float16


def test_sounds_take_the_dtype_of_what_hears_and_images_of_what_sees():
    model, _ = make_vlm("llava")
    model.model.vision_tower.to(torch.bfloat16)
    model.model.audio_tower = torch.nn.Linear(4, 4, dtype=torch.float16)
    given = FeatureDtypes(model)({"input_features": torch.zeros(1, 4), "pixel_values": torch.zeros(1, 3, 8, 8)})
    assert given["input_features"].dtype == torch.float16
    assert given["pixel_values"].dtype == torch.bfloat16
