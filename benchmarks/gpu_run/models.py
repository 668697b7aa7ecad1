"""Llamas with random weights that are made on the device, their tokenizer, and rows of known lengths."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attrs import frozen


@frozen
class Shape:
    """Sizes of a Llama, by the names of its configuration."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    tied: bool = False

    @property
    def head(self) -> int:
        """Parameters of the output head."""
        return self.vocab_size * self.hidden_size

    @property
    def body(self) -> int:
        """Parameters of all layers' products; norms and embeddings multiply nothing."""
        width, grouped = self.hidden_size, self.hidden_size * self.num_key_value_heads // self.num_attention_heads
        return self.num_hidden_layers * (2 * width * width + 2 * width * grouped + 3 * width * self.intermediate_size)


SHAPES = {
    "tiny": Shape(512, 64, 128, 2, 4, 2),
    "check": Shape(1024, 256, 512, 2, 4, 2),
    "wide": Shape(1024, 2048, 8192, 4, 32, 8),
    "1B": Shape(128_256, 2048, 8192, 16, 32, 8, tied=True),  # Llama 3.2 1B
    "8B": Shape(128_256, 4096, 14_336, 32, 32, 8),  # Llama 3.1 8B
}


def device() -> Any:
    """The accelerator of this process."""
    import torch

    return torch.device(os.environ.get("ACCELERATE_TORCH_DEVICE", "cuda:0"))


def on_cuda() -> bool:
    """Whether it is a real one, whose speed and memory mean something."""
    return bool(device().type == "cuda")


@functools.cache
def folder_of(name: str) -> str:
    """A folder with configuration and tokenizer of the named shape, and no weight in its file, for this process."""
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    shape, folder = SHAPES[name], tempfile.mkdtemp()
    pad, end = shape.vocab_size - 2, shape.vocab_size - 1
    core = Tokenizer(models.WordLevel({f"w{i}": i for i in range(pad)} | {"<pad>": pad, "</s>": end}, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="w0", pad_token="<pad>", eos_token="</s>")
    made.save_pretrained(folder)
    LlamaConfig(
        vocab_size=shape.vocab_size, hidden_size=shape.hidden_size, intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers, num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads, tie_word_embeddings=shape.tied, max_position_embeddings=8192,
        rms_norm_eps=1e-5, bos_token_id=None, eos_token_id=end, pad_token_id=pad, architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    ).save_pretrained(folder)  # fmt: skip
    save_file({}, Path(folder) / "model.safetensors")  # which is looked for before a model is loaded
    return folder


@contextlib.contextmanager
def random_weights() -> Iterator[None]:
    """Inside, `LlamaForCausalLM.from_pretrained` makes the weights on the device, from one seed, and reads no file.

    Weights of 8B in a file would take 15 GiB of disk, and longer to read than a step takes. The libraries that are
    compared load their models through this method.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def from_pretrained(kind: Any, folder: str, *_: Any, **given: Any) -> Any:
        config = given.get("config") or LlamaConfig.from_pretrained(folder)
        config._name_or_path = folder
        kept = {name: given[name] for name in ("dtype", "attn_implementation") if given.get(name) is not None}
        if isinstance(kept.get("dtype"), str):
            kept["dtype"] = getattr(torch, kept["dtype"])
        torch.manual_seed(0)
        with torch.device(device()) if on_cuda() else contextlib.nullcontext():
            return kind._from_config(config, **kept)

    own = vars(LlamaForCausalLM).get("from_pretrained")
    LlamaForCausalLM.from_pretrained = classmethod(from_pretrained)
    try:
        yield
    finally:
        if own is None:
            del LlamaForCausalLM.from_pretrained
        else:
            LlamaForCausalLM.from_pretrained = own


@frozen
class Lengths:
    """Tokens of a row's prompt, and of its completion with the end token; both lie between these bounds."""

    prompt: tuple[int, int]
    completion: tuple[int, int]


LENGTHS = {"short": Lengths((4, 12), (4, 48)), "usual": Lengths((16, 128), (32, 896))}
"""`usual` are rows of about 300 tokens in the mean, as instruction data have, and of 1,024 at most."""


def rows(count: int, lengths: str, vocabulary: int) -> list[dict[str, str]]:
    """Prompts and completions of that many words, of which each is a token; most rows are short, and some are long.

    The words are drawn from 64 that are common and from all others, so that a loss has something to learn.
    """
    chance, bounds = random.Random(0), LENGTHS[lengths]

    def words(low: int, high: int) -> str:
        length = round(math.exp(chance.uniform(math.log(low), math.log(high))))
        drawn = (chance.randrange(64 if chance.random() < 0.8 else vocabulary - 2) for _ in range(length))
        return " ".join(f"w{one}" for one in drawn)

    def row() -> dict[str, str]:
        low, high = bounds.completion
        return {"prompt": words(*bounds.prompt), "completion": " " + words(low - 1, high - 1)}

    return [row() for _ in range(count)]


def output_folder() -> str:
    """An empty folder for a trainer, among the temporary files, which whoever starts the process removes."""
    return tempfile.mkdtemp()
