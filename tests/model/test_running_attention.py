"""Plan, manifest and card name the attention that a ready model really runs."""

from __future__ import annotations

import json
import types

import pytest
from datasets import Dataset
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from sftcore import ModelError, SFTConfig, SFTTrainer
from sftcore.model.attention import replaced_attention, running_attention
from sftcore.testing.tiny_vlm import make_vlm
from sftcore.train.record.summary import plan_lines
from tests.conftest import alpaca_rows, make_llama


@pytest.fixture(autouse=True)
def own_attention():
    """An attention that no plugin declares."""
    AttentionInterface.register("own_attention", lambda *args, **kwargs: sdpa_attention_forward(*args, **kwargs))
    AttentionMaskInterface.register("own_attention", sdpa_mask)


def trained(folder, model, tokenizer, **fields):
    args = SFTConfig(
        str(folder), use_cpu=True, report_to="none", disable_tqdm=True, max_steps=1, save_strategy="no",
        gradient_checkpointing=False, **fields,
    )  # fmt: skip
    rows = Dataset.from_list(alpaca_rows(4))
    trainer = SFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    trainer.save_model()
    return trainer


def said(trainer):
    """What of attention stands in plan, manifest and card."""
    from pathlib import Path

    folder = Path(trainer.args.output_dir)
    manifest = json.loads((folder / "manifest.json").read_text())
    card = [line for line in (folder / "README.md").read_text().splitlines() if line.startswith("- Attention: ")]
    bound = next(line for line in plan_lines(trainer) if line.startswith("plugins"))
    own = [line for line in plan_lines(trainer) if line.startswith("attention")]
    return bound, own, manifest["attention"], card


@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_one_that_a_plugin_declares_is_named_by_it(tmp_path, tokenizer, llama, name):
    llama.set_attn_implementation(name)
    bound, own, manifest, card = said(trained(tmp_path / "out", llama, tokenizer))
    assert f"attention {name}" in bound
    assert (own, manifest, card) == ([], name, [f"- Attention: {name}"])


@pytest.mark.parametrize("fields", [{}, {"packing": True, "max_length": 64}], ids=["padded", "packed"])
def test_one_that_no_plugin_declares_is_named_as_the_models_own(tmp_path, tokenizer, llama, fields):
    llama.set_attn_implementation("own_attention")
    bound, own, manifest, card = said(trained(tmp_path / "out", llama, tokenizer, **fields))
    assert "attention" not in bound
    assert own == ["attention  own_attention, the model's own"]
    assert (manifest, card) == ("own_attention", ["- Attention: own_attention"])


def test_one_that_the_run_chose_is_named(tmp_path, tokenizer, llama):
    llama.set_attn_implementation("own_attention")
    bound, own, manifest, _ = said(trained(tmp_path / "out", llama, tokenizer, plugins={"attention": "eager"}))
    assert "attention eager" in bound
    assert (own, manifest) == ([], "eager")


def replaced(model):
    """As Unsloth does it: the forward of each attention layer is a function of another library."""

    def fast_forward(self, *args, **kwargs):
        return type(self).forward(self, *args, **kwargs)

    fast_forward.__module__ = "fast.models"
    for layer in model.model.layers:
        layer.self_attn.forward = types.MethodType(fast_forward, layer.self_attn)
    return model


def test_one_that_another_library_put_in_its_place_is_named_by_it(tmp_path, tokenizer, llama):
    bound, own, manifest, card = said(trained(tmp_path / "out", replaced(llama), tokenizer))
    assert "attention" not in bound
    assert own == ["attention  fast.models, the model's own"]
    assert (manifest, card) == ("fast.models", ["- Attention: fast.models"])
    with pytest.raises(ModelError, match=r'computes attention by fast\.models, whatever attention "eager" says'):
        trained(tmp_path / "other", replaced(make_llama(tokenizer)), tokenizer, plugins={"attention": "eager"})


def test_parts_of_a_model_with_another_one_are_named_beside_it():
    model, _ = make_vlm("llava")
    model.set_attn_implementation({"": "sdpa", "text_config": "eager", "vision_config": "sdpa"})
    assert running_attention(model) == "eager, vision sdpa"
    assert replaced_attention(model) == ""


def test_wrappers_around_a_layer_replace_no_attention(tokenizer, llama):
    from accelerate.hooks import ModelHook, add_hook_to_module

    for layer in llama.model.layers:
        add_hook_to_module(layer.self_attn, ModelHook())
    assert running_attention(llama) == "sdpa"
