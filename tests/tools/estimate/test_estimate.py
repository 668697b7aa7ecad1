"""The estimate from shapes is the peak that torch's allocator reports of the run itself, on ten kinds of runs."""

from __future__ import annotations

import json

import pytest

from sftcore.config.recipe import load_recipe
from sftcore.core.errors import SFTCoreError
from sftcore.testing.tiny import make_llama, make_tokenizer
from sftcore.tools.estimate.estimate import estimate
from sftcore.train.run import check_recipe
from tests.tools.estimate.measured import peak_of_run

ROWS = 24
SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A model, one with a large vocabulary, and rows that are all of one length, so that every batch is the largest."""
    folder = tmp_path_factory.mktemp("estimated")
    tokenizer = make_tokenizer()
    for name, more in (("small", {}), ("wide", {"vocab_size": 6000})):
        make_llama(tokenizer, **SIZES, **more).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    text = "hello world question answer " * 8
    (folder / "rows.jsonl").write_text("\n".join(json.dumps({"text": text}) for _ in range(ROWS)))
    return folder


def checked(given, *words, model="small", max_length=64):
    fixed = [f"data.train={given / 'rows.jsonl'}", f"max_length={max_length}", "dataset_cache=false"]
    chosen = () if any(word.startswith("model=") for word in words) else (f"model={given / model}",)
    return check_recipe(load_recipe(None, [*chosen, *fixed, *words]))


QUICK = {
    "full": ["per_device_train_batch_size=4", "gradient_checkpointing=false"],
    "LoRA": ["adapter=lora", "gradient_checkpointing=false"],
}
SLOW = {
    "4-bit": ["adapter=qlora"],
    "8-bit": ["adapter={qlora: {bits: 8}}"],
    "packed": ["packing=true", "max_length=256", "per_device_train_batch_size=2"],
    "checkpointed": ["gradient_checkpointing=true"],
    "padded, eager": ["attention=eager", "gradient_checkpointing=false", "padding_free=false"],
    "autocast": ["bf16=true", "gradient_checkpointing=false"],
    "NEFTune": ["neftune_noise_alpha=5", "gradient_checkpointing=false"],
    "accumulated": ["gradient_accumulation_steps=3", "per_device_train_batch_size=2"],
    "in backward": ["optimizer_in_backward=true", "max_grad_norm=0", "on_nonfinite=continue"],
    "adafactor": ["optim=adafactor"],
    "DoRA": ["adapter={lora: {use_dora: true}}"],
}


@pytest.mark.parametrize(
    "words", [*QUICK.values(), *(pytest.param(one, marks=pytest.mark.slow) for one in SLOW.values())],
    ids=[*QUICK, *SLOW],
)  # fmt: skip
def test_estimate_is_the_measured_peak(given, tmp_path, words):
    run = checked(given, *words)
    found = estimate(run)
    assert found.memory.peak == pytest.approx(peak_of_run(run, tmp_path), rel=0.15), found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "model"),
    [
        (["gradient_checkpointing=false"], "wide"),
        (["model={name: PLACE, dtype: bfloat16}"], "small"),
        (["per_device_train_batch_size=1", "data.eval_rows=12", "per_device_eval_batch_size=12"], "wide"),
    ],
    ids=["large vocabulary", "bfloat16 weights", "evaluation"],
)
def test_estimate_of_other_models_is_the_measured_peak(given, tmp_path, words, model):
    words = [word.replace("PLACE", str(given / model)) for word in words]
    run = checked(given, *words, model=model)
    found = estimate(run)
    assert found.memory.peak == pytest.approx(peak_of_run(run, tmp_path), rel=0.15), found


@pytest.mark.slow
def test_long_rows_take_what_was_estimated(given, tmp_path):
    (tmp_path / "long.jsonl").write_text("\n".join(json.dumps({"text": "hello world " * 200}) for _ in range(4)))
    words = [f"data.train={tmp_path / 'long.jsonl'}", "attention=eager", "per_device_train_batch_size=1"]
    run = checked(given, *words, max_length=400)
    assert estimate(run).memory.peak == pytest.approx(peak_of_run(run, tmp_path / "out"), rel=0.15)


def test_sizes_of_the_parts_are_those_of_the_model(given):
    found = estimate(checked(given, "per_device_train_batch_size=4", "num_train_epochs=2"))
    model = make_llama(make_tokenizer(), **SIZES)
    size = sum(one.numel() for one in model.parameters()) * 4
    assert found.memory.trained == found.memory.gradients == size
    assert found.memory.optimizer == pytest.approx(2 * size, rel=0.05)
    assert (found.rows, found.steps) == (ROWS, 2 * ROWS // 4)
    assert found.as_dict()["memory"]["peak"] == found.memory.peak


def test_a_model_that_is_known_only_once_it_is_loaded_is_refused_in_our_words(given, tmp_path):
    config = json.loads((given / "small" / "config.json").read_text())
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(given / "small" / name)
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SFTCoreError, match="quantised by gptq"):
        estimate(checked(given, f"model={tmp_path}", "adapter=lora"))
