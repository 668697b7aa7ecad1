"""Tiny vision-language models with random weights, and their real processors, made without a hub.

Each family has what sets it apart: LLaVA one fixed grid, Idefics3 and SmolVLM images cut into tiles, Qwen2.5-VL grids
of any shape with positions in three dimensions, Gemma-3 images that attend both ways. An image is 4 to 40 tokens.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from sftcore.testing.tiny import CORPUS

FAMILIES = ("llava", "idefics3", "smolvlm", "qwen2_5_vl", "gemma3")
_TORCHVISION = transformers.utils.is_torchvision_available()
_ROW_COL = [f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)]
_TILE_TOKENS = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *_ROW_COL]
SPECIAL = {
    "llava": ["<pad>", "<|im_start|>", "<|im_end|>", "<image>"],
    "idefics3": ["<pad>", "<|begin_of_text|>", *_TILE_TOKENS],
    "smolvlm": ["<pad>", "<|im_start|>", *_TILE_TOKENS],
    "qwen2_5_vl": [
        "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
        "<|video_pad|>",
    ],
    "gemma3": [
        "<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>",
        "<image_soft_token>",
    ],
}  # fmt: skip

_PARTS = "{% for p in m.content %}{{ p.text if p.type == 'text' else 'IMAGE' }}{% endfor %}"
_CONTENT = "{% if m.content is string %}{{ m.content }}{% else %}" + _PARTS + "{% endif %}"
_TILED = (
    "BEGIN{% for m in messages %}{{ m.role | capitalize }}{{ ':' if m.content[0].type == 'image' else ': ' }}"
    + _CONTENT.replace("IMAGE", "<image>")
    + "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
TEMPLATES = {
    # Images before all words, wherever they stood
    "llava": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for p in m.content if p.type == 'image' %}<image>\n{% endfor %}"
        "{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "idefics3": _TILED.replace("BEGIN", "<|begin_of_text|>"),
    "smolvlm": _TILED.replace("BEGIN", "<|im_start|>"),
    "qwen2_5_vl": (
        "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\n"
        "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ m.role }}\n"
        + _CONTENT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
        + "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    # No turn of the system's own, roles that must alternate, words trimmed
    "gemma3": (
        "{{ bos_token }}{% set first = '' %}{% set turns = messages %}{% if messages[0].role == 'system' %}"
        "{% set system = messages[0].content %}"
        "{% set first = (system if system is string else system[0].text) + '\n\n' %}{% set turns = messages[1:] %}"
        "{% endif %}{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ first if loop.first }}"
        "{% if m.content is string %}{{ m.content | trim }}{% else %}{% for p in m.content %}"
        "{{ p.text | trim if p.type == 'text' else '<start_of_image>' }}{% endfor %}{% endif %}<end_of_turn>\n"
        "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
}
_TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024,
}  # fmt: skip
_VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip


def make_vlm(family: str, seed: int = 0) -> tuple[Any, Any]:
    """Model and processor; the same weights for the same seed. Skips the test where `make_processor` does."""
    processor = make_processor(family)
    torch.manual_seed(seed)
    model = _MODELS[family](processor.tokenizer)
    if family == "gemma3":
        # Zero in a new model, so that it would not see
        torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)
    return model, processor


def save(family: str, folder: Path) -> Path:
    """Model and processor as `save_pretrained` writes them. Skips the test where AutoProcessor cannot load them."""
    missing = missing_for_loading(family)
    if missing:
        pytest.skip(f"transformers loads the processor of {family} with {missing} alone")
    model, processor = make_vlm(family)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def make_processor(family: str) -> Any:
    """The family's own processor. Skips the test, with the reason, where a library that it needs is missing."""
    if family == "smolvlm" and importlib.util.find_spec("num2words") is None:
        pytest.skip("transformers' processor of smolvlm needs num2words")
    return _PROCESSORS[family](make_vlm_tokenizer(family))


def missing_for_loading(family: str) -> str | None:
    """The name of a library without which AutoProcessor does not load the family's processor, or None."""
    if _TORCHVISION or family in ("llava", "gemma3"):
        return None
    # transformers 5.17 takes its Pillow classes for those that need torchvision
    dummy = getattr(transformers.Idefics3ImageProcessorPil, "is_dummy", False)
    return "torchvision" if family != "idefics3" or dummy else None


# --- Tokenizers -----------------------------------------------------------------------------------------------------
def make_vlm_tokenizer(family: str) -> Any:
    """A byte-level BPE tokenizer of some 400 tokens, with the family's special tokens and names for them."""
    names = {
        "llava": {"eos_token": "<|im_end|>"},
        "idefics3": {"eos_token": "<end_of_utterance>", "bos_token": "<|begin_of_text|>"},
        "smolvlm": {"eos_token": "<end_of_utterance>", "bos_token": "<|im_start|>"},
        "qwen2_5_vl": {"eos_token": "<|im_end|>"},
        "gemma3": {
            "eos_token": "<eos>", "bos_token": "<bos>", "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>",
        },
    }[family]  # fmt: skip
    named = {name: names.pop(name) for name in ("image_token", "boi_token", "eoi_token") if name in names}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained(family)), pad_token=SPECIAL[family][0],
        extra_special_tokens=named, chat_template=TEMPLATES[family], **names,
    )  # fmt: skip


@functools.cache
def _trained(family: str) -> str:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=len(SPECIAL[family]) + 300,
            special_tokens=SPECIAL[family],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    bos = {"idefics3": "<|begin_of_text|>", "gemma3": "<bos>"}.get(family)
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, core.token_to_id(bos))]
        )
    return core.to_str()


# --- Processors -----------------------------------------------------------------------------------------------------
class _WithoutVideos:
    """Takes an image processor in the video processor's place: that one needs torchvision, and no test has videos."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        name = "image_processor" if argument_name == "video_processor" else argument_name
        return super().check_argument_for_proper_class(name, argument)  # type: ignore[misc]


class SmolVLMProcessor(_WithoutVideos, transformers.SmolVLMProcessor): ...


class Qwen2_5_VLProcessor(_WithoutVideos, transformers.Qwen2_5_VLProcessor): ...


def _image_processor(module: str, name: str, **options: Any) -> Any:
    """transformers' image processor: the one of torchvision where that is there, else the one of Pillow."""
    if _TORCHVISION:
        return getattr(transformers, name)(**options)
    found = importlib.import_module(f"transformers.models.{module}.image_processing_pil_{module}")
    return getattr(found, f"{name}Pil")(**options)


def _llava_processor(tokenizer: Any) -> Any:
    crop = {"height": 32, "width": 32}
    images = _image_processor("clip", "CLIPImageProcessor", size={"shortest_edge": 32}, crop_size=crop)
    return transformers.LlavaProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )  # fmt: skip


_TILES = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}


def _idefics3_processor(tokenizer: Any) -> Any:
    images = _image_processor("idefics3", "Idefics3ImageProcessor", **_TILES)
    return transformers.Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=tokenizer.chat_template)


def _smolvlm_processor(tokenizer: Any) -> Any:
    images = _image_processor("smolvlm", "SmolVLMImageProcessor", **_TILES)
    if _TORCHVISION:
        sampling = {"fps": 1, "max_frames": 4, "video_size": {"longest_edge": 32}}
        videos = transformers.SmolVLMVideoProcessor(**_TILES, fps=1, num_frames=4, video_sampling=sampling)
        make = transformers.SmolVLMProcessor
    else:
        videos, make = _image_processor("smolvlm", "SmolVLMImageProcessor", fps=1, num_frames=4), SmolVLMProcessor
    return make(images, tokenizer, videos, image_seq_len=4, chat_template=tokenizer.chat_template)


def _qwen_processor(tokenizer: Any) -> Any:
    sizes = {"patch_size": 8, "size": {"shortest_edge": 4 * 16 * 16, "longest_edge": 16 * 16 * 16}}
    images = _image_processor("qwen2_vl", "Qwen2VLImageProcessor", **sizes)
    if _TORCHVISION:
        videos, make = transformers.Qwen2VLVideoProcessor(**sizes), transformers.Qwen2_5_VLProcessor
    else:
        videos, make = images, Qwen2_5_VLProcessor
    return make(images, tokenizer, videos, chat_template=tokenizer.chat_template)


def _gemma3_processor(tokenizer: Any) -> Any:
    images = _image_processor("gemma3", "Gemma3ImageProcessor", size={"height": 32, "width": 32})
    return transformers.Gemma3Processor(
        images, tokenizer, image_seq_length=16, chat_template=tokenizer.chat_template
    )  # fmt: skip


_PROCESSORS = {
    "llava": _llava_processor,
    "idefics3": _idefics3_processor,
    "smolvlm": _smolvlm_processor,
    "qwen2_5_vl": _qwen_processor,
    "gemma3": _gemma3_processor,
}


# --- Models ---------------------------------------------------------------------------------------------------------
def _ids(tokenizer: Any) -> dict[str, int | None]:
    return {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }


def _llava(tokenizer: Any) -> Any:
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**_VISION, projection_dim=32),
        text_config=transformers.LlamaConfig(**_TEXT, **_ids(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    return transformers.LlavaForConditionalGeneration(config)


def _tiled(name: str, tokenizer: Any) -> Any:
    vision = getattr(transformers, f"{name}VisionConfig")(**_VISION)
    config = getattr(transformers, f"{name}Config")(
        vision_config=vision,
        text_config=transformers.LlamaConfig(**_TEXT, **_ids(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    return getattr(transformers, f"{name}ForConditionalGeneration")(config)


def _qwen(tokenizer: Any) -> Any:
    # A window of two by two merged patches in the first layer, the whole image in the second
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "patch_size": 8, "window_size": 32,
        "out_hidden_size": 64, "fullatt_block_indexes": [1],
    }  # fmt: skip
    text = {
        **_TEXT, **_ids(tokenizer), "hidden_size": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]},
    }  # fmt: skip
    places = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>") for name, token in places.items()}
    return transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(vision_config=vision, text_config=text, **ids)
    )


def _gemma3(tokenizer: Any) -> Any:
    text = transformers.Gemma3TextConfig(
        **_TEXT, **_ids(tokenizer), head_dim=8, query_pre_attn_scalar=8, sliding_window=32,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    config = transformers.Gemma3Config(
        vision_config=transformers.SiglipVisionConfig(**{**_VISION, "patch_size": 4}, vision_use_head=False),
        text_config=text,
        mm_tokens_per_image=16,
        boi_token_id=tokenizer.boi_token_id,
        eoi_token_id=tokenizer.eoi_token_id,
        image_token_id=tokenizer.image_token_id,
    )
    return transformers.Gemma3ForConditionalGeneration(config)


_MODELS: dict[str, Callable[[Any], Any]] = {
    "llava": _llava,
    "idefics3": functools.partial(_tiled, "Idefics3"),
    "smolvlm": functools.partial(_tiled, "SmolVLM"),
    "qwen2_5_vl": _qwen,
    "gemma3": _gemma3,
}
