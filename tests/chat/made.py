"""Tokenizers as base models and chat models have them, trained on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sftcore.testing.tiny import CHATML, CORPUS, make_llama


def build(
    special: Sequence[str], *, eos: str, pad: str | None = None, unk: str | None = None, template: str | None = None
):
    """A byte-level BPE tokenizer whose special tokens come first, in this order."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, pad_token=pad, unk_token=unk)
    tokenizer.chat_template = template
    return tokenizer


def base_tokenizer(**options):
    """Of a base model: no chat template, and none of its tokens."""
    return build(["<unk>", "</s>"], **{"eos": "</s>", "unk": "<unk>", **options})


def chat_tokenizer(**options):
    """Of a chat model with ChatML."""
    options = {"eos": "<|im_end|>", "pad": "<|endoftext|>", "template": CHATML, **options}
    return build(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], **options)


def qwen_like(**options):
    """Of a base model in the manner of Qwen2.5: its template ends turns with <|im_end|>, its EOS is <|endoftext|>."""
    return chat_tokenizer(**{"eos": "<|endoftext|>", **options})


def saved(folder: Path, tokenizer, **config) -> Path:
    """A folder with a tiny model of this tokenizer."""
    make_llama(tokenizer, **config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def answer(model, tokenizer, question: str, max_new_tokens: int = 24) -> list[int]:
    """What a plain `generate` says, its stop token included."""
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    produced = model.eval().generate(**prompt, do_sample=False, max_new_tokens=max_new_tokens)
    return produced[0, prompt["input_ids"].shape[1] :].tolist()
