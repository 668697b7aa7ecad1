"""What tiny models of many families share: tokenizers, chat templates, the sizes of their layers, image processors."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
import transformers
from attrs import field, frozen
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from sftcore.testing.tiny import CORPUS

TORCHVISION = transformers.utils.is_torchvision_available()
TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024,
}  # fmt: skip
EDGE = 16
"""Pixels of a tile's side: four patches."""
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": EDGE,
    "patch_size": 8,
}  # fmt: skip
SQUARE = {"height": EDGE, "width": EDGE}
TILINGS = [[EDGE, 2 * EDGE], [2 * EDGE, EDGE], [2 * EDGE, 2 * EDGE]]
"""Heights and widths of the pictures that are cut into tiles."""


@frozen
class Words:
    """A family's special tokens; `named` are those that its processor finds as the tokenizer's own."""

    special: tuple[str, ...]
    template: str
    end: str
    pad: str = "<pad>"
    begin: str | None = None
    begins: bool = False
    named: dict[str, str] = field(factory=dict)

    def tokenizer(self) -> Any:
        """A byte-level BPE tokenizer of some 400 tokens."""
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(_trained(self.special, self.begin if self.begins else None)),
            pad_token=self.pad, eos_token=self.end, bos_token=self.begin, extra_special_tokens=dict(self.named),
            chat_template=self.template,
        )  # fmt: skip


@functools.cache
def _trained(special: tuple[str, ...], begin: str | None) -> str:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=len(special) + 300,
            special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if begin:
        core.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, core.token_to_id(begin))]
        )
    return core.to_str()


# --- Chat templates -------------------------------------------------------------------------------------------------
def template(turn: str, image: str, end: str, ask: str = "", begin: str = "", images_first: bool = False) -> str:
    """Turns between `turn` and `end`, with `image` where an image stands, or before all words."""
    if images_first:
        pictures = "{% for p in m.content if p.type == 'image' %}" + image + "{% endfor %}"
        parts = pictures + "{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}"
    else:
        shown = "{% if p.type == 'text' %}{{ p.text }}{% else %}" + image + "{% endif %}"
        parts = "{% for p in m.content %}" + shown + "{% endfor %}"
    content = "{% if m.content is string %}{{ m.content }}{% else %}" + parts + "{% endif %}"
    asked = "{% if add_generation_prompt %}" + ask + "{% endif %}" if ask else ""
    return begin + "{% for m in messages %}" + turn + content + end + "{% endfor %}" + asked


def chatml(image: str, begin: str = "", images_first: bool = False) -> str:
    turn = "<|im_start|>{{ m.role }}\n"
    return template(turn, image, "<|im_end|>\n", "<|im_start|>assistant\n", begin, images_first)


CHATML = ("<pad>", "<|im_start|>", "<|im_end|>")

LLAMA3 = ("<pad>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def llama3(image: str) -> str:
    head = "<|start_header_id|>{}<|end_header_id|>\n\n"
    turn = head.replace("{}", "{{ m.role }}")
    return template(turn, image, "<|eot_id|>", head.replace("{}", "assistant"), "{{ bos_token }}")


COHERE = (
    "<pad>", "<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>",
    "<|SYSTEM_TOKEN|>",
)  # fmt: skip


def cohere(image: str) -> str:
    who = "{% if m.role == 'assistant' %}<|CHATBOT_TOKEN|>{% else %}<|USER_TOKEN|>{% endif %}"
    asked = "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
    return template(f"<|START_OF_TURN_TOKEN|>{who}", image, "<|END_OF_TURN_TOKEN|>", asked, "{{ bos_token }}")


MISTRAL = ("<pad>", "<s>", "</s>", "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]")


def mistral() -> str:
    parts = "{% for p in m.content %}{{ p.text if p.type == 'text' else '[IMG]' }}{% endfor %}"
    content = "{% if m.content is string %}{{ m.content }}{% else %}" + parts + "{% endif %}"
    return (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}" + content + "{{ eos_token }}"
        "{% else %}[INST]" + content + "[/INST]{% endif %}{% endfor %}"
    )


# --- Processors and models ------------------------------------------------------------------------------------------
def image_processor(module: str, name: str, **options: Any) -> Any:
    """transformers' image processor: the one of torchvision where that is there, else the one of Pillow."""
    if TORCHVISION:
        return getattr(transformers, name)(**options)
    found = importlib.import_module(f"transformers.models.{module}.image_processing_pil_{module}")
    return getattr(found, f"{name}Pil")(**options)


def ids(tokenizer: Any) -> dict[str, int | None]:
    """What a text model's config takes from its tokenizer."""
    return {
        "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }  # fmt: skip


def llama(tokenizer: Any) -> Any:
    return transformers.LlamaConfig(**TEXT, **ids(tokenizer))


def clip() -> Any:
    return transformers.CLIPVisionConfig(**VISION, projection_dim=32)


def siglip(**options: Any) -> Any:
    return transformers.SiglipVisionConfig(**{**VISION, **options}, vision_use_head=False)


def made(name: str, config: Any) -> Any:
    """The model of this class; weights from a fixed seed, large enough for pictures to change its losses."""
    torch.manual_seed(0)
    model = getattr(transformers, name)(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=weight[0].numel() ** -0.5)
            elif not weight.any():
                weight.normal_(std=0.2)
    return model
