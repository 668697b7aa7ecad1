"""The tiny models that the other tests train: they see, and they come back from a folder as they were."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from sftcore.testing.tiny_vlm import FAMILIES, make_vlm, save

VISION = {"llava": "vision_tower", "idefics3": "vision_model", "smolvlm": "vision_model", "qwen2_5_vl": "visual"}


def picture(seed, size=(48, 32)):
    pixels = np.random.RandomState(seed).randint(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def batch_of(processor, *images):
    parts = [*({"type": "image"} for _ in images), {"type": "text", "text": "What is it?"}]
    turns = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": "A word."}]},
    ]
    text = processor.apply_chat_template(turns, tokenize=False)
    return processor(text=[text], images=[list(images)], add_special_tokens=False, return_tensors="pt")


def logits(model, batch):
    with torch.no_grad():
        return model.eval()(**batch).logits


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def test_a_step_with_an_image_moves_the_vision_tower(family):
    model, processor = make_vlm(family)
    batch = batch_of(processor, picture(0), picture(1, (20, 60)))
    model(**batch, labels=batch["input_ids"]).loss.backward()
    tower = getattr(model.model, VISION.get(family, "vision_tower"))
    moved = [name for name, weight in tower.named_parameters() if weight.grad is not None and weight.grad.abs().max()]
    # LLaVA reads the layer before the last
    assert any(".0." in name for name in moved)
    assert len(moved) > 0.5 * len(list(tower.parameters()))


def test_another_image_of_the_same_size_gives_other_logits(family):
    model, processor = make_vlm(family)
    one, other = (batch_of(processor, picture(seed)) for seed in (0, 1))
    assert torch.equal(one["input_ids"], other["input_ids"])
    behind = (one["input_ids"][0] == model.config.image_token_id).nonzero()[-1].item() + 1
    moved = (logits(model, one) - logits(model, other))[0].abs().amax(-1)
    assert moved[behind:].min() > 1e-5


def test_an_image_is_a_few_tokens_and_as_many_features(family):
    model, processor = make_vlm(family)
    for size in ((48, 32), (20, 60), (64, 64)):
        batch = batch_of(processor, picture(0, size))
        assert 4 <= (batch["input_ids"] == model.config.image_token_id).sum() <= 64
        assert logits(model, batch).isfinite().all()


def test_a_saved_folder_gives_the_same_batch_and_logits(tmp_path, family):
    folder = save(family, tmp_path / family)
    model, processor = make_vlm(family)
    loaded, read = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert type(read) is type(processor)
    wanted, got = (batch_of(one, picture(0), picture(1, (20, 60))) for one in (processor, read))
    assert wanted.keys() == got.keys()
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)
    assert torch.equal(logits(model, wanted), logits(loaded, got))


def test_the_same_seed_gives_the_same_weights_and_another_gives_others(family):
    (one, _), (same, _), (other, _) = make_vlm(family), make_vlm(family), make_vlm(family, seed=1)
    weights = [model.get_output_embeddings().weight for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
