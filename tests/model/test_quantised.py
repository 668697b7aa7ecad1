"""Bases that bitsandbytes quantises, on the CPU: what trains, and what is refused before a weight is read."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from peft import LoHaConfig, LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from sftcore import SFTCoreError, SFTTrainer
from sftcore.model.precision import keep_gradients
from tests.conftest import alpaca_rows, make_llama
from tests.train.test_trainer import config, losses

EIGHT, FOUR = BitsAndBytesConfig(load_in_8bit=True), BitsAndBytesConfig(load_in_4bit=True)
LORA = LoraConfig(r=4, task_type="CAUSAL_LM", target_modules="all-linear")
ROWS = Dataset.from_list(alpaca_rows(16))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """A Llama of 64 dimensions: bitsandbytes packs blocks of 64."""
    folder = tmp_path_factory.mktemp("wide")
    make_llama(tokenizer, hidden_size=64, intermediate_size=128).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


BASES = {
    "qlora, nf4": {"plugins": {"adapter": {"qlora": {"r": 4}}}},
    "qlora, fp4": {"plugins": {"adapter": {"qlora": {"r": 4, "quant_type": "fp4", "double_quant": False}}}},
    "qlora, 8-bit": {"plugins": {"adapter": {"qlora": {"r": 4, "bits": 8}}}},
    "qlora, DoRA": {"plugins": {"adapter": {"qlora": {"r": 4, "use_dora": True}}}},
    "an argument": {"model_init_kwargs": {"quantization_config": FOUR}, "plugins": {"adapter": {"lora": {"r": 4}}}},
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("fields", BASES.values(), ids=BASES)
def test_an_adapter_trains_on_a_quantised_base_and_reloads(tmp_path, folder, fields, checkpointing):
    args = config(tmp_path, max_steps=12, gradient_checkpointing=checkpointing, **fields)
    trainer = SFTTrainer(str(folder), args, train_dataset=ROWS)
    notes = "\n".join(trainer.loaded.notes)
    assert "base frozen" in notes
    assert "memory of the weights:" in notes
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]
    trainer.save_model()
    quantised = trainer.model.get_base_model().config.quantization_config

    def reloaded(same_kernel):
        base = AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantised, dtype=torch.float32)
        if same_kernel:
            keep_gradients(base)
        with torch.no_grad():
            return PeftModel.from_pretrained(base, tmp_path / "out").eval()(input_ids=ids).logits

    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        wanted = trainer.model.eval()(input_ids=ids).logits
    torch.testing.assert_close(reloaded(same_kernel=True), wanted, atol=1e-4, rtol=1e-4)
    # on a CPU with AVX-512 bitsandbytes evaluates 4-bit layers in bfloat16
    assert (reloaded(same_kernel=False) - wanted).norm() < 0.2 * wanted.norm()


@pytest.mark.parametrize("wanted", [FOUR, EIGHT], ids=["4-bit", "8-bit"])
def test_a_base_quantised_outside_the_trainer_is_prepared_and_said(tmp_path, tokenizer, folder, wanted):
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=wanted, dtype=torch.float32)
    args = config(tmp_path, max_steps=8, prepare_in_int8_kwargs={"use_gradient_checkpointing": False})
    trainer = SFTTrainer(model, args, train_dataset=ROWS, processing_class=tokenizer, peft_config=LORA)
    assert "PEFT's prepare_model_for_kbit_training cast" in "\n".join(trainer.loaded.notes)
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]


def test_an_evaluation_does_not_end_the_training_of_a_4_bit_base(tmp_path, folder):
    args = config(tmp_path, max_steps=6, eval_strategy="steps", eval_steps=2, **BASES["qlora, nf4"])
    trainer = SFTTrainer(str(folder), args, train_dataset=ROWS, eval_dataset=ROWS)
    before = {name: one.clone() for name, one in trainer.model.named_parameters() if "lora_B" in name}
    trainer.evaluate()
    trainer.train()
    assert all(not torch.equal(trainer.model.get_parameter(name), one) for name, one in before.items())


def qlora(**options):
    return {"plugins": {"adapter": {"qlora": options}}}


REFUSED = {
    "8-bit and 4-bit at once": (
        {"model_init_kwargs": {"load_in_8bit": True, "load_in_4bit": True}}, None,
        "load_in_8bit, load_in_4bit and quantization_config exclude each other",
    ),
    "full fine-tuning": (
        {"model_init_kwargs": {"quantization_config": FOUR}}, None,
        "a quantised base cannot be trained in full",
    ),
    "DoRA on 8 bits": (qlora(bits=8, use_dora=True), None, "DoRA reads the norm of the base's weights"),
    "4-bit options with 8 bits": (qlora(bits=8, compute_dtype="bfloat16"), None, "compute_dtype belong to 4 bits"),
    "two quantisations": (
        {"model_init_kwargs": {"quantization_config": FOUR}, **qlora()}, None,
        "ask for two quantisations",
    ),
    "saving a quantised module whole": (
        qlora(modules_to_save=["q_proj"]), None,
        "modules_to_save names q_proj: a 4-bit base holds whole numbers there",
    ),
    "an initialisation that decomposes weights": (
        qlora(arguments={"init_lora_weights": "pissa"}), None,
        'init_lora_weights "pissa" decomposes the base\'s weights',
    ),
    "a method without 4-bit layers": (
        {"model_init_kwargs": {"quantization_config": FOUR}},
        LoHaConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]),
        "loha has no layers for 4-bit weights",
    ),
    "float16 on a CPU": ({"fp16": True, **qlora()}, None, "float16 autocast needs a GPU"),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "peft_config", "said"), REFUSED.values(), ids=REFUSED)
@pytest.mark.filterwarnings("ignore:load_in_:FutureWarning")
def test_what_cannot_work_is_refused_before_weights_are_read(tmp_path, folder, monkeypatch, fields, peft_config, said):
    def read(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr("safetensors.safe_open", read)
    with pytest.raises(SFTCoreError, match=said):
        SFTTrainer(str(folder), config(tmp_path, **fields), train_dataset=ROWS, peft_config=peft_config)


def test_a_gguf_file_is_not_quantised_a_second_time(tmp_path, write):
    file = write("model.gguf", "not read")
    with pytest.raises(SFTCoreError, match="a GGUF file is quantised in its own way"):
        SFTTrainer(str(file), config(tmp_path, **qlora()), train_dataset=ROWS)
