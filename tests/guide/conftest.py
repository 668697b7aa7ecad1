"""What the guide names, made on the spot: tiny models of its architectures and its data sets, as local folders.

A test runs in a folder that holds them under the names of the hub, so that its lines are those of a script.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import CHATML, made_once, make_tokenizer

SMALL = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def models(tokenizer):
    """The guide's models by name, with the architecture of each."""
    from transformers import (
        GPTNeoConfig,
        GPTNeoForCausalLM,
        MistralConfig,
        MistralForCausalLM,
        OPTConfig,
        OPTForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    known = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": 1}
    llama_like = {**SMALL, **known, "intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 2048}
    opt = {**SMALL, **known, "ffn_dim": 64, "word_embed_proj_dim": 16, "max_position_embeddings": 2048}
    neo = {**SMALL, **known, "intermediate_size": 64, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 2048}
    del neo["num_hidden_layers"], neo["num_attention_heads"]
    return {
        "facebook/opt-350m": OPTForCausalLM(OPTConfig(**opt)),
        "EleutherAI/gpt-neo-125m": GPTNeoForCausalLM(
            GPTNeoConfig(**neo, attention_types=[[["global", "local"], 1]], window_size=256)
        ),
        "Qwen/Qwen2.5-0.5B": Qwen2ForCausalLM(Qwen2Config(**llama_like, tie_word_embeddings=True)),
        "mistralai/Mistral-7B-v0.1": MistralForCausalLM(MistralConfig(**llama_like, sliding_window=64)),
    }


def data_sets() -> dict[str, list[dict]]:
    """The guide's data sets by name, with the columns of each."""
    count = range(6)
    return {
        "stanfordnlp/imdb": [{"text": f"The film number {i} was good", "label": i % 2} for i in count],
        "lucasmccabe-lmi/CodeAlpaca-20k": [
            {"instruction": f"Say {i}", "input": "", "output": f"The answer is {i}"} for i in count
        ],
        "timdettmers/openassistant-guanaco": [
            {"text": f"### Human: Say {i}### Assistant: It is {i}.### Human: And now?### Assistant: Again {i}."}
            for i in count
        ],
        "philschmid/dolly-15k-oai-style": [
            {"messages": [
                {"role": "system", "content": "You are helpful"}, {"role": "user", "content": f"Say {i}"},
                {"role": "assistant", "content": f"It is {i}"},
            ]}
            for i in count
        ],
        "trl-lib/Capybara": [
            {"messages": [
                {"role": "user", "content": f"Say {i}"}, {"role": "assistant", "content": f"It is {i}"},
                {"role": "user", "content": "Again"}, {"role": "assistant", "content": f"It is {i} again"},
            ]}
            for i in count
        ],
        "questions": [{"question": f"What is {i}?", "answer": f"The number after {i - 1} and before {i + 1}"}
                      for i in count],
        "instructions": [{"prompt": f"Say {i}", "completion": f" It is {i}"} for i in count],
    }  # fmt: skip


def _make(folder: Path) -> None:
    import torch

    torch.manual_seed(0)
    plain, chat = make_tokenizer(template=None), make_tokenizer(template=CHATML)
    for name, model in models(plain).items():
        model.save_pretrained(folder / name)
        (chat if name.startswith("Qwen") else plain).save_pretrained(folder / name)
    for name, rows in data_sets().items():
        path = folder / name / "train.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="session")
def hub_folder(tmp_path_factory) -> Path:
    return made_once(tmp_path_factory, "guide", _make)


@pytest.fixture
def hub(hub_folder, tmp_path, monkeypatch) -> Path:
    """The working folder of a script, in which the hub's names lead to local folders."""
    for folder in hub_folder.iterdir():
        (tmp_path / folder.name).symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path
