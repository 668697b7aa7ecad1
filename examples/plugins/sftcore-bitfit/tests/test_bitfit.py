"""The package as its users meet it: it must be installed (`pip install ".[test]"`)."""

import pytest
import torch
from datasets import Dataset
from sftcore_bitfit import BitFit
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from sftcore import LoadedModel, ModelError, Plan, SFTConfig, SFTTrainer
from sftcore.testing import AdapterTests

pytest_plugins = "sftcore.testing"


class TestBitFit(AdapterTests):
    plugin = BitFit


def trained_by(plugin, model):
    wrapped = plugin.wrap_model(LoadedModel(model, None), Plan(()))
    return wrapped, {name for name, one in wrapped.model.named_parameters() if one.requires_grad}


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=2, n_head=2))


def test_biases_and_norms_are_trained_and_nothing_else():
    wrapped, names = trained_by(BitFit(), gpt2())
    layers = {
        f"transformer.h.{layer}.{name}"
        for layer in (0, 1)
        for name in (
            "ln_1.weight", "ln_1.bias", "attn.c_attn.bias", "attn.c_proj.bias", "ln_2.weight", "ln_2.bias",
            "mlp.c_fc.bias", "mlp.c_proj.bias",
        )
    }  # fmt: skip
    assert names == layers | {"transformer.ln_f.weight", "transformer.ln_f.bias"}
    # 4 vectors of a norm, 3 + 1 of the attention, 4 + 1 of the MLP in each layer, 2 at the end, of 16 numbers
    assert wrapped.notes[0].startswith(f"bitfit trains {(13 * 2 + 2) * 16} of ")


def test_without_norms_only_biases_are_trained():
    _, names = trained_by(BitFit(norms=False), gpt2())
    assert {name.rpartition(".")[2] for name in names} == {"bias"}


def test_a_model_without_biases_is_refused_without_norms(tiny_model):
    with pytest.raises(ModelError, match="no biases to train"):
        trained_by(BitFit(norms=False), tiny_model)


def test_a_run_changes_what_is_trained_and_saves_a_model_that_loads(tiny_model, tiny_processor, tmp_path):
    before = {name: one.clone() for name, one in tiny_model.state_dict().items()}
    rows = Dataset.from_list([{"prompt": "say", "completion": " hello world"}] * 4)
    chosen = {"adapter": "bitfit"}
    args = SFTConfig(str(tmp_path), max_steps=1, learning_rate=0.1, use_cpu=True, report_to="none", plugins=chosen)
    trainer = SFTTrainer(tiny_model, args, train_dataset=rows, processing_class=tiny_processor)
    trainer.train()
    trainer.save_model()
    after = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "norm" in name}
