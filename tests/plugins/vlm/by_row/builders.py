"""Tiny models whose processors look at a row as a whole: at the number of its images, or at the words around them."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from PIL import Image

from sftcore import SFTConfig, SFTTrainer
from sftcore.testing.tiny_vlm import _TORCHVISION, _image_processor, _WithoutVideos, make_vlm_tokenizer

FAMILIES = ("llava_onevision", "paligemma", "mllama", "idefics2")

TOKENS = {
    "llava_onevision": ["<image>", "<video>"],
    "paligemma": ["<image>", "<bos>", "<eos>"],
    "mllama": ["<|image|>", "<|begin_of_text|>", "<|python_tag|>"],
    "idefics2": ["<image>", "<fake_token_around_image>", "<end_of_utterance>"],
    "llama4": [
        "<|image|>", "<|image_start|>", "<|image_end|>", "<|patch|>", "<|tile_x_separator|>", "<|tile_y_separator|>",
        "<|begin_of_text|>",
    ],
}  # fmt: skip
_BEGINS = {"mllama": "<|begin_of_text|>", "llama4": "<|begin_of_text|>"}
_PLACE = {name: tokens[0] for name, tokens in TOKENS.items()}
_TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096,
}  # fmt: skip
_TOWER = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip


def template(family: str) -> str:
    """A chat template that writes the family's placeholder where an image stands."""
    return (
        _BEGINS.get(family, "")
        + "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for p in m.content %}{{ p.text if p.type == 'text' else '" + _PLACE[family] + "' }}{% endfor %}{% endif %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def tokenizer_for(family: str) -> Any:
    tokenizer = make_vlm_tokenizer("llava")
    tokenizer.add_special_tokens({"additional_special_tokens": TOKENS[family]})
    if family == "paligemma":
        tokenizer.add_special_tokens({"bos_token": "<bos>"})
    if family in _BEGINS:
        tokenizer.add_special_tokens({"bos_token": _BEGINS[family]})
    tokenizer.chat_template = template(family)
    return tokenizer


class OnevisionProcessor(_WithoutVideos, transformers.LlavaOnevisionProcessor): ...


def make_processor(family: str) -> Any:
    return _PROCESSORS[family](tokenizer_for(family))


def make(family: str, seed: int = 0) -> tuple[Any, Any]:
    """Model and processor; the same weights for the same seed."""
    processor = make_processor(family)
    torch.manual_seed(seed)
    return _MODELS[family](processor.tokenizer), processor


# --- Processors -----------------------------------------------------------------------------------------------------
def _onevision_processor(tokenizer: Any) -> Any:
    size = {"height": 32, "width": 32}
    pinpoints = [[32, 32], [32, 64], [64, 32], [64, 64]]
    images = _image_processor(
        "llava_onevision", "LlavaOnevisionImageProcessor", size=size, image_grid_pinpoints=pinpoints
    )
    if _TORCHVISION:
        videos = transformers.LlavaOnevisionVideoProcessor(size=size)
        kind = transformers.LlavaOnevisionProcessor
    else:
        videos, kind = images, OnevisionProcessor
    return kind(
        images, tokenizer, videos, num_image_tokens=16, vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9", chat_template=tokenizer.chat_template,
    )  # fmt: skip


def _paligemma_processor(tokenizer: Any) -> Any:
    images = _image_processor("siglip", "SiglipImageProcessor", size={"height": 32, "width": 32})
    images.image_seq_length = 16
    return transformers.PaliGemmaProcessor(images, tokenizer, chat_template=tokenizer.chat_template)


def _mllama_processor(tokenizer: Any) -> Any:
    images = _image_processor("mllama", "MllamaImageProcessor", size={"height": 32, "width": 32}, max_image_tiles=2)
    return transformers.MllamaProcessor(images, tokenizer, chat_template=tokenizer.chat_template)


def _idefics2_processor(tokenizer: Any) -> Any:
    size = {"shortest_edge": 16, "longest_edge": 32}
    images = _image_processor("idefics2", "Idefics2ImageProcessor", size=size, do_image_splitting=False)
    return transformers.Idefics2Processor(images, tokenizer, image_seq_len=4, chat_template=tokenizer.chat_template)


def _llama4_processor(tokenizer: Any) -> Any:
    if not _TORCHVISION:
        pytest.skip("transformers' image processor of Llama 4 needs torchvision")
    images = transformers.Llama4ImageProcessor(size={"height": 32, "width": 32}, max_patches=4)
    return transformers.Llama4Processor(images, tokenizer, patch_size=8, chat_template=tokenizer.chat_template)


_PROCESSORS: dict[str, Callable[[Any], Any]] = {
    "llava_onevision": _onevision_processor,
    "paligemma": _paligemma_processor,
    "mllama": _mllama_processor,
    "idefics2": _idefics2_processor,
    "llama4": _llama4_processor,
}


# --- Models ---------------------------------------------------------------------------------------------------------
def _text(tokenizer: Any) -> dict[str, Any]:
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("eos", "pad", "bos")}
    return {**_TEXT, "vocab_size": len(tokenizer), **ids}


def _onevision(tokenizer: Any) -> Any:
    config = transformers.LlavaOnevisionConfig(
        vision_config=transformers.SiglipVisionConfig(**_TOWER, vision_use_head=False),
        text_config=transformers.Qwen2Config(**_text(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[32, 32], [32, 64], [64, 32], [64, 64]],
        vision_feature_layer=-1, vision_feature_select_strategy="full", vision_aspect_ratio="anyres_max_9",
    )  # fmt: skip
    return transformers.LlavaOnevisionForConditionalGeneration(config)


def _paligemma(tokenizer: Any) -> Any:
    config = transformers.PaliGemmaConfig(
        vision_config=transformers.SiglipVisionConfig(**_TOWER, projection_dim=32, vision_use_head=False),
        text_config=transformers.GemmaConfig(**_text(tokenizer), head_dim=8),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=32,
    )
    return transformers.PaliGemmaForConditionalGeneration(config)


def _mllama(tokenizer: Any) -> Any:
    vision = transformers.MllamaVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_global_layers=1, attention_heads=4,
        vision_output_dim=64, image_size=32, patch_size=8, max_num_tiles=2, intermediate_layers_indices=[0],
        supported_aspect_ratios=[[1, 1], [1, 2], [2, 1]],
    )  # fmt: skip
    text = transformers.MllamaTextConfig(
        **{**_text(tokenizer), "num_hidden_layers": 3}, cross_attention_layers=[1],
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )  # fmt: skip
    image = tokenizer.convert_tokens_to_ids("<|image|>")
    config = transformers.MllamaConfig(vision_config=vision, text_config=text, image_token_index=image)
    model = transformers.MllamaForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if "gate" in name and parameter.numel() == 1:  # zero in a new model, which would not see
            torch.nn.init.constant_(parameter, 0.7)
    return model


def _idefics2(tokenizer: Any) -> Any:
    perceiver = {
        "hidden_size": 32, "hidden_act": "silu", "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 4,
        "resampler_head_dim": 8, "num_key_value_heads": 2,
    }  # fmt: skip
    config = transformers.Idefics2Config(
        vision_config=_TOWER, perceiver_config=perceiver,
        text_config=transformers.MistralConfig(**_text(tokenizer), sliding_window=None),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return transformers.Idefics2ForConditionalGeneration(config)


def _llama4(tokenizer: Any) -> Any:
    vision = transformers.Llama4VisionConfig(
        hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8,
        vision_output_dim=32, projector_input_dim=32, projector_output_dim=32,
    )  # fmt: skip
    text = transformers.Llama4TextConfig(
        **_text(tokenizer), head_dim=8, intermediate_size_mlp=64, num_local_experts=2, attention_chunk_size=2048,
    )  # fmt: skip
    config = transformers.Llama4Config(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<|patch|>")
    )
    return transformers.Llama4ForConditionalGeneration(config)


_MODELS: dict[str, Callable[[Any], Any]] = {
    "llava_onevision": _onevision,
    "paligemma": _paligemma,
    "mllama": _mllama,
    "idefics2": _idefics2,
    "llama4": _llama4,
}


# --- Rows and runs --------------------------------------------------------------------------------------------------
SIZES = {"a": (40, 70), "b": (50, 50)}


@functools.cache
def picture(name: str, seed: int = 0) -> Image.Image:
    torch.manual_seed(seed)
    width, height = SIZES[name]
    return Image.fromarray(torch.randint(0, 255, (height, width, 3), dtype=torch.uint8).numpy())


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def row(*parts: str, answer: str = "red dog") -> dict[str, Any]:
    """A conversation of one turn each; "@a" and "@b" stand for images."""
    content = [{"type": "image"} if part[:1] == "@" else {"type": "text", "text": part} for part in parts]
    turns = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    return {"messages": turns, "images": [picture(part[1:], i) for i, part in enumerate(parts) if part[:1] == "@"]}


ROWS = [
    row("@a", "say it"),
    row("one and ", "@a", " two ", "@b", "which?", answer="the second"),
    row("Look: ", "@b", "@a", "\n", "@b", answer="three of them"),
]
TEXT_ROW = row("Hello", answer="Good day to you")


def config(folder: Any, **options: Any) -> SFTConfig:
    settings = {
        "use_cpu": True, "report_to": "none", "save_strategy": "no", "logging_steps": 1, "bf16": False,
        "dataset_cache": False, "gradient_checkpointing": False, "disable_tqdm": True, "max_steps": 1,
        "learning_rate": 0.0, "max_length": 1024, "per_device_train_batch_size": 1,
    }  # fmt: skip
    return SFTConfig(str(folder), **{**settings, **options})


def make_trainer(folder: Any, family: str, rows: list[dict[str, Any]], model: Any = None, **options: Any) -> SFTTrainer:
    made, processor = options.pop("made", None) or make(family)
    peft_config = options.pop("peft_config", None)
    evaluated = options.pop("eval_rows", None)
    return SFTTrainer(
        made if model is None else model, config(folder, **options), train_dataset=_dataset(rows),
        eval_dataset=None if evaluated is None else _dataset(evaluated), processing_class=processor,
        peft_config=peft_config,
    )  # fmt: skip


def _dataset(rows: list[dict[str, Any]]) -> Dataset:
    return Dataset.from_list([{**row, "images": [encoded(one) for one in row["images"]]} for row in rows])


def loss_of(trainer: SFTTrainer) -> float:
    trainer.train()
    return float(next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry))
