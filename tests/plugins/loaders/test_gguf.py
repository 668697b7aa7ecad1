"""Ready models that were loaded from llama.cpp's single files: their tokenizer, and weights that can be trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from sftcore_plugins.loaders.gguf import GGUF
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftcore import ModelError, ModelRequest, SFTConfig, SFTTrainer
from tests.conftest import alpaca_rows, make_llama


def write_gguf(path: Path, model, tokenizer) -> None:
    """A Llama with a byte-level BPE tokenizer, its weights whole."""
    config, vocabulary = model.config, tokenizer.get_vocab()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    tokens = sorted(vocabulary, key=vocabulary.get)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    special = [token in tokenizer.all_special_tokens or token.startswith("<|") for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if one else 1 for one in special])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(vocabulary["<s>"])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def file(tmp_path, tokenizer) -> Path:
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "tiny.gguf"
    write_gguf(path, make_llama(tokenizer), tokenizer)
    return path


def train(folder, model, **arguments):
    args = SFTConfig(
        str(folder), max_steps=1, learning_rate=1e-2, use_cpu=True, report_to="none", save_strategy="no",
        disable_tqdm=True, gradient_checkpointing=False,
    )  # fmt: skip
    trainer = SFTTrainer(model, args, train_dataset=Dataset.from_list(alpaca_rows(4)), **arguments)
    trainer.train()
    trainer.save_model()
    return trainer


def load(file: Path):
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)


@pytest.mark.parametrize("adapter", [False, True])
def test_a_ready_model_from_a_file_is_trained_with_the_files_tokenizer(tmp_path, file, tokenizer, adapter):
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM") if adapter else None
    trainer = train(tmp_path / "out", load(file), peft_config=config)
    own = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    assert trainer.processing_class.get_vocab() == own.get_vocab()
    assert trainer.processing_class.chat_template == tokenizer.chat_template
    assert any("floats" in note for note in trainer.loaded.notes)


def test_a_ready_model_from_a_file_is_saved_as_any_other(tmp_path, file):
    trainer = train(tmp_path / "out", load(file))
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.arange(4, 12)[None]
    torch.testing.assert_close(saved.eval()(ids).logits, trainer.model.eval()(ids).logits)


def test_among_several_files_of_a_folder_none_is_guessed(tmp_path, file):
    model = load(file)
    shutil.copy(file, file.with_name("other.gguf"))
    with pytest.raises(ModelError, match="processing_class"):
        train(tmp_path / "out", model)


def test_a_folder_with_nothing_but_one_file_is_loaded_by_it(tmp_path, file, model_folder):
    assert GGUF().loads(ModelRequest(str(file)))
    assert GGUF().loads(ModelRequest(str(file.parent)))
    assert not GGUF().loads(ModelRequest(str(model_folder)))
    assert not GGUF().loads(ModelRequest("owner/name"))
