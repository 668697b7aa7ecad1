"""The example scripts run as they stand."""

import json
import runpy
from pathlib import Path

import pytest
from PIL import Image

from tests.plugins.vlm.tiny import save

SCRIPTS = Path(__file__).parents[3] / "examples" / "scripts"
COMMON = ["--use_peft", "--lora_target_modules", "all-linear", "--max_steps", "1", "--use_cpu", "--report_to", "none"]


@pytest.fixture
def run(monkeypatch):
    def script(name, *words):
        monkeypatch.setattr("sys.argv", [name, *map(str, words), *COMMON])
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")

    return script


def test_the_script_for_images_trains_on_files_beside_the_data(run, tmp_path):
    Image.effect_noise((40, 30), 80).save(tmp_path / "a.png")
    turns = [{"role": "user", "content": "<image>Who?"}, {"role": "assistant", "content": "She."}]
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"messages": turns, "images": ["a.png"]}) + "\n")
    model, out = save("llava", tmp_path / "model"), tmp_path / "out"
    run("sft_vlm.py", "--model_name_or_path", model, "--data", data, "--output_dir", out)
    assert (out / "adapter_model.safetensors").is_file()


def test_the_script_for_texts_trains_and_evaluates(run, tmp_path, model_folder):
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "say hello", "completion": " hello"}\n' * 8)
    out = tmp_path / "out"
    words = ["--model_name_or_path", model_folder, "--dataset_name", data, "--output_dir", out]
    run("sft.py", *words, "--test_split_size", "0.25", "--eval_strategy", "steps", "--eval_steps", "1")
    assert (out / "adapter_model.safetensors").is_file()
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert any("eval_loss" in line for line in logged)
