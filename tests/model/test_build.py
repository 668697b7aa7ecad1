"""Loading: dtypes as asked and said, weights only from safe files, attention that the model has."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, GPTNeoConfig, GPTNeoForCausalLM

from sftcore import CheckError, ConflictError, ModelError, SFTTrainer, get_kbit_device_map
from tests.conftest import alpaca_rows, make_llama
from tests.train.test_trainer import config, losses

LORA = {"peft_config": LoraConfig(r=4, task_type="CAUSAL_LM")}


@pytest.fixture
def rows() -> Dataset:
    return Dataset.from_list(alpaca_rows(16))


def notes(trainer) -> str:
    return "\n".join(trainer.loaded.notes)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "dtypes: weights float32, compute float32, adapter float32"),
        ({"bf16": True}, "dtypes: weights float32, compute bfloat16 (autocast), adapter float32"),
        ({"model_init_kwargs": {"dtype": "bfloat16"}}, "dtypes: weights bfloat16, compute bfloat16, adapter float32"),
        ({"adapter_dtype": "bfloat16"}, "dtypes: weights float32, compute float32, adapter bfloat16"),
    ],
)
def test_the_plan_says_in_which_dtypes_a_run_holds_computes_and_trains(tmp_path, model_folder, rows, fields, said):
    trainer = SFTTrainer(str(model_folder), config(tmp_path, **fields), train_dataset=rows, **LORA)
    assert said in notes(trainer)
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]


def test_small_steps_reach_a_bfloat16_adapter_through_its_float32_copies(tmp_path, model_folder, rows):
    def moved(name, **fields):
        """What 40 steps, each smaller than bfloat16 can add to most weights, make of the first matrix."""
        args = config(tmp_path / name, max_steps=40, learning_rate=1e-4, lr_scheduler_type="constant", **fields)
        trainer = SFTTrainer(str(model_folder), args, train_dataset=rows, **LORA)
        weight = next(one for key, one in trainer.model.named_parameters() if "lora_A" in key)
        before = weight.detach().float().clone()
        trainer.train()
        return weight.detach().float() - before

    wanted = moved("float32")
    with_copies = moved("copies", adapter_dtype="bfloat16")
    without = moved("none", adapter_dtype="bfloat16", master_weights=False)
    assert (with_copies - wanted).norm() < 0.2 * wanted.norm()
    assert (without - wanted).norm() > 0.5 * wanted.norm()


def test_weights_in_a_pickle_are_refused_before_they_are_read(tmp_path, tokenizer, rows):
    folder = tmp_path / "pickled"
    model = make_llama(tokenizer)
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(CheckError, match=r"pytorch_model\.bin is a pickle file, which can run code when it is read"):
        SFTTrainer(str(folder), config(tmp_path), train_dataset=rows)
    trainer = SFTTrainer(str(folder), config(tmp_path, allow_pickle=True), train_dataset=rows)
    torch.testing.assert_close(trainer.model.lm_head.weight, model.lm_head.weight)


def test_a_hub_model_with_pickles_alone_names_allow_pickle(tmp_path, tokenizer, rows, monkeypatch):
    name, commit = "owner/pickled", "0" * 40
    cache = tmp_path / "cache" / f"models--{name.replace('/', '--')}"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit)
    model, folder = make_llama(tokenizer), cache / "snapshots" / commit
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    for constants in (
        "huggingface_hub.constants",
        "huggingface_hub.file_download.constants",
        "transformers.utils.hub.constants",
    ):
        monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ModelError, match=rf"model {name}: there is no safetensors file.*Set allow_pickle: true"):
        SFTTrainer(name, config(tmp_path), train_dataset=rows)


def test_a_dtype_that_a_loader_does_not_keep_is_an_error(tmp_path, model_folder, rows, monkeypatch):
    from sftcore_plugins.loaders.hf import HuggingFace

    from sftcore import LoadedModel, hookimpl

    @hookimpl
    def load_model(self, request, options):
        return LoadedModel(AutoModelForCausalLM.from_pretrained(request.name, dtype="bfloat16"), None, request)

    monkeypatch.setattr(HuggingFace, "load_model", load_model)
    for asked in ("float32", "float16"):
        args = config(tmp_path, model_init_kwargs={"dtype": asked})
        with pytest.raises(
            ModelError, match=rf'loader "hf@sftcore" .+ loaded the weights in bfloat16, and the run asks for {asked}'
        ):
            SFTTrainer(str(model_folder), args, train_dataset=rows)
    for kept in ("bfloat16", "auto"):
        args = config(tmp_path, model_init_kwargs={"dtype": kept})
        assert SFTTrainer(str(model_folder), args, train_dataset=rows).model.dtype == torch.bfloat16


def test_a_few_weights_that_transformers_keeps_in_float32_are_no_other_dtype(tmp_path, model_folder, rows, monkeypatch):
    from transformers import LlamaForCausalLM

    monkeypatch.setattr(LlamaForCausalLM, "_keep_in_fp32_modules_strict", {"norm"}, raising=False)
    args = config(tmp_path, model_init_kwargs={"dtype": "bfloat16"})
    trainer = SFTTrainer(str(model_folder), args, train_dataset=rows)
    assert trainer.model.lm_head.weight.dtype == torch.bfloat16
    assert trainer.model.model.norm.weight.dtype == torch.float32


def test_reading_pickles_takes_more_than_an_argument(tmp_path, model_folder, rows):
    args = config(tmp_path, model_init_kwargs={"use_safetensors": False})
    with pytest.raises(ValueError, match="use_safetensors: false reads pickle files"):
        SFTTrainer(str(model_folder), args, train_dataset=rows)


def test_a_cpu_needs_no_device_map():
    assert get_kbit_device_map() is None


def test_an_attention_that_the_models_class_does_not_have_is_refused(tmp_path, tokenizer, rows):
    model = GPTNeoForCausalLM(
        GPTNeoConfig(vocab_size=len(tokenizer), hidden_size=32, num_layers=2, num_heads=4,
                     attention_types=[[["global", "local"], 1]], max_position_embeddings=256)
    )  # fmt: skip
    args = config(tmp_path, plugins={"attention": "varlen"})
    with pytest.raises(ModelError, match='GPTNeoForCausalLM has no attention "varlen"'):
        SFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer)
    model.save_pretrained(tmp_path / "neo")
    tokenizer.save_pretrained(tmp_path / "neo")
    with pytest.raises(ModelError, match='has no attention "varlen"'):
        SFTTrainer(str(tmp_path / "neo"), args, train_dataset=rows)


def test_arguments_of_from_pretrained_beside_a_ready_model_are_refused(tmp_path, tokenizer, llama, rows):
    args = config(tmp_path, model_init_kwargs={"dtype": "bfloat16"})
    with pytest.raises(ConflictError, match="the model is a ready object"):
        SFTTrainer(llama, args, train_dataset=rows, processing_class=tokenizer)


def test_a_folder_saved_by_a_run_loads_with_plain_transformers(tmp_path, model_folder, rows):
    trainer = SFTTrainer(str(model_folder), config(tmp_path, bf16=True), train_dataset=rows)
    trainer.train()
    trainer.save_model()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.float32
