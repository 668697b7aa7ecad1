"""Families whose images are grids of any shape, with positions in height and width."""

from __future__ import annotations

from typing import Any

import transformers

from tests.plugins.vlm.families.family_parts import CHATML, TEXT, Words, chatml, ids, made, template

_PIXELS = {"shortest_edge": 4 * 16 * 16, "longest_edge": 16 * 16 * 16}
_ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
_QWEN = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def _text(tokenizer: Any, **options: Any) -> dict[str, Any]:
    return {**TEXT, **ids(tokenizer), "hidden_size": 64, "rope_parameters": _ROPE, **options}


def _places(tokenizer: Any) -> dict[str, int]:
    names = ("vision_start", "vision_end", "image_pad", "video_pad")
    return {f"{name.removesuffix('_pad')}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in names}


def _qwen_words() -> Words:
    return Words((*CHATML, *_QWEN), chatml("<|vision_start|><|image_pad|><|vision_end|>"), "<|im_end|>")


def _qwen_processor(name: str, videos: str, tokenizer: Any) -> Any:
    return getattr(transformers, name)(
        transformers.Qwen2VLImageProcessor(patch_size=8, size=_PIXELS), tokenizer,
        getattr(transformers, videos)(patch_size=8, size=_PIXELS), chat_template=tokenizer.chat_template,
    )  # fmt: skip


def qwen2_vl() -> tuple[Any, Any]:
    tokenizer = _qwen_words().tokenizer()
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 4, "patch_size": 8, "mlp_ratio": 2}
    config = transformers.Qwen2VLConfig(vision_config=vision, text_config=_text(tokenizer), **_places(tokenizer))
    processor = _qwen_processor("Qwen2VLProcessor", "Qwen2VLVideoProcessor", tokenizer)
    return made("Qwen2VLForConditionalGeneration", config), processor


_QWEN3_VISION = {
    "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "patch_size": 8, "out_hidden_size": 64,
    "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
}  # fmt: skip


def qwen3_vl() -> tuple[Any, Any]:
    tokenizer = _qwen_words().tokenizer()
    text = _text(tokenizer, head_dim=16)
    config = transformers.Qwen3VLConfig(vision_config=_QWEN3_VISION, text_config=text, **_places(tokenizer))
    processor = _qwen_processor("Qwen3VLProcessor", "Qwen3VLVideoProcessor", tokenizer)
    return made("Qwen3VLForConditionalGeneration", config), processor


def qwen3_vl_moe() -> tuple[Any, Any]:
    tokenizer = _qwen_words().tokenizer()
    text = _text(tokenizer, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
    config = transformers.Qwen3VLMoeConfig(vision_config=_QWEN3_VISION, text_config=text, **_places(tokenizer))
    processor = _qwen_processor("Qwen3VLProcessor", "Qwen3VLVideoProcessor", tokenizer)
    return made("Qwen3VLMoeForConditionalGeneration", config), processor


def video_llama_3() -> tuple[Any, Any]:
    tokenizer = Words((*CHATML, "<|image_pad|>", "<|video_pad|>"), chatml("<|image_pad|>"), "<|im_end|>").tokenizer()
    sizes = {"patch_size": 8, "size": {"shortest_edge": 2 * 16 * 16, "longest_edge": 4 * 16 * 16}}
    processor = transformers.VideoLlama3Processor(
        transformers.VideoLlama3ImageProcessor(**sizes), tokenizer, transformers.VideoLlama3VideoProcessor(**sizes),
        chat_template=tokenizer.chat_template,
    )  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 8
    }  # fmt: skip
    config = transformers.VideoLlama3Config(
        vision_config=vision, text_config={**TEXT, **ids(tokenizer), "model_type": "qwen2"},
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
    )  # fmt: skip
    return made("VideoLlama3ForConditionalGeneration", config), processor


def _glm(name: str, config_name: str, processor_name: str, images: str, videos: str) -> tuple[Any, Any]:
    pictures = ("image", "video", "begin_of_image", "end_of_image", "begin_of_video", "end_of_video")
    special = ("<pad>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", *(f"<|{each}|>" for each in pictures))
    shown = "<|begin_of_image|><|image|><|end_of_image|>"
    # What ends the assistant's turn is the next one's role
    turns = template("<|{{ m.role }}|>\n", shown, "", "<|assistant|>\n", "[gMASK]<sop>")
    tokenizer = Words(special, turns + "{% if not add_generation_prompt %}<|user|>{% endif %}", "<|user|>").tokenizer()
    processor = getattr(transformers, processor_name)(
        getattr(transformers, images)(patch_size=8, size=_PIXELS), tokenizer,
        getattr(transformers, videos)(patch_size=8, size=_PIXELS), chat_template=tokenizer.chat_template,
    )  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "patch_size": 8, "image_size": 32,
        "out_hidden_size": 64,
    }  # fmt: skip
    rope = {**_ROPE, "partial_rotary_factor": 1.0}
    tokens = {
        "image": "image", "video": "video", "image_start": "begin_of_image", "image_end": "end_of_image",
        "video_start": "begin_of_video", "video_end": "end_of_video",
    }  # fmt: skip
    places = {f"{key}_token_id": tokenizer.convert_tokens_to_ids(f"<|{each}|>") for key, each in tokens.items()}
    config = getattr(transformers, config_name)(
        vision_config=vision, text_config=_text(tokenizer, rope_parameters=rope), **places
    )
    return made(name, config), processor


def glm4v() -> tuple[Any, Any]:
    return _glm(
        "Glm4vForConditionalGeneration", "Glm4vConfig", "Glm4vProcessor", "Glm4vImageProcessor", "Glm4vVideoProcessor"
    )


def glm46v() -> tuple[Any, Any]:
    return _glm(
        "Glm46VForConditionalGeneration", "Glm46VConfig", "Glm46VProcessor", "Glm46VImageProcessor",
        "Glm46VVideoProcessor",
    )  # fmt: skip
