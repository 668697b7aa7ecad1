"""Real rows with photographs: trained on, counted and shown, with tiny models and each family's real processor."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForImageTextToText, AutoProcessor

from sftcore.cli import cli
from sftcore.testing.tiny_vlm import FAMILIES, save

SETTINGS = (
    "assistant_only_loss=true", "use_cpu=true", "report_to=none", "learning_rate=5e-3", "lr_scheduler_type=constant",
    "gradient_checkpointing=false", "per_device_train_batch_size=3", "max_length=2048", "save_strategy=no",
    "logging_steps=1",
)  # fmt: skip


@pytest.fixture(params=FAMILIES)
def folder(request, tmp_path):
    return save(request.param, tmp_path / request.param)


def invoke(*words, code=0):
    result = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stdout


def test_the_loss_falls_and_plain_transformers_loads_what_was_saved(shared_data, folder, tmp_path):
    data = shared_data / "mllm_demo.json"
    out = tmp_path / "out"
    invoke("train", f"model={folder}", f"data={data}", "max_steps=20", f"output_dir={out}", *SETTINGS)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 20
    assert sum(losses[-3:]) < 0.75 * sum(losses[:3])
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["data"]["ledgers"][0]["rows_kept"] == 6
    model = AutoModelForImageTextToText.from_pretrained(out)
    processor = AutoProcessor.from_pretrained(out)
    from PIL import Image

    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Who are they?"}]}]
    text = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    image = Image.open(shared_data / "mllm_demo_data" / "1.jpg")
    batch = processor(text=[text], images=[[image]], return_tensors="pt")
    with torch.no_grad():
        assert torch.isfinite(model(**batch).logits).all()


def test_images_are_counted_and_only_answers_count(shared_data, folder):
    words = [shared_data / "mllm_demo.json", "--model", folder, "assistant_only_loss=true", "max_length=2048"]
    report = json.loads(invoke("check", *words, "--json"))["sets"][0]
    assert report["rows"]["kept"] == 6
    assert report["images"]["rows"] == 6
    assert report["images"]["images"] == 8
    assert report["images"]["tokens"] >= 8 * 4
    shown = invoke("preview", *words, "--row", "0")
    assert shown.count("1.jpg, ") == 2
    assert "«They're Kane and Gretzka from Bayern Munich." in shown.replace("« ", "«")
    supervised = shown.split("«")[1:]
    assert not any("[image" in part.split("»")[0] for part in supervised)


def test_the_page_shows_the_pictures_at_their_places(shared_data, folder, tmp_path):
    page = tmp_path / "row.html"
    invoke("preview", shared_data / "mllm_demo.json", "--model", folder, "--html", page, "max_length=2048")
    text = page.read_text()
    assert text.count('<img src="data:image/jpeg;base64,') == 2
    assert "[image 1: " in text
    assert "http" not in text
