"""A tokenizer and a model that are made in a moment, with random weights, and without a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = ["The answer is a word. say hello, world 0123456789 question instruction prompt completion"] * 8


def make_tokenizer(*, bos: bool = False, template: str | None = CHATML) -> Any:
    """A byte-level BPE tokenizer of 400 tokens, with ChatML's special tokens; `bos` makes it put <s> in front."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<pad>", bos_token="<s>" if bos else None
    )
    tokenizer.chat_template = template
    return tokenizer


def make_llama(tokenizer: Any, seed: int = 0, **overrides: Any) -> Any:
    """A Llama of two layers and 32 dimensions with weights from `seed`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": 1,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**{**config, **overrides}))


def save_tiny(folder: Path) -> Path:
    """The two as `save_pretrained` writes them."""
    tokenizer = make_tokenizer()
    make_llama(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
