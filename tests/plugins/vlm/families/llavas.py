"""Families whose images are one grid, or tiles of one, joined to a language model by a projection."""

from __future__ import annotations

from typing import Any

import transformers

from tests.plugins.vlm.families.family_parts import (
    CHATML,
    COHERE,
    EDGE,
    MISTRAL,
    SQUARE,
    TEXT,
    TILINGS,
    VISION,
    Words,
    chatml,
    clip,
    cohere,
    ids,
    image_processor,
    llama,
    made,
    mistral,
    siglip,
    template,
)  # fmt: skip

ONE = Words((*CHATML, "<image>"), chatml("<image>\n"), "<|im_end|>")


def _clip_images() -> Any:
    return image_processor("clip", "CLIPImageProcessor", size={"shortest_edge": EDGE}, crop_size=SQUARE)


def vipllava() -> tuple[Any, Any]:
    tokenizer = ONE.tokenizer()
    processor = transformers.LlavaProcessor(
        _clip_images(), tokenizer, patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=tokenizer.chat_template,
    )  # fmt: skip
    config = transformers.VipLlavaConfig(
        vision_config=clip(), text_config=llama(tokenizer), vision_feature_layers=(-2, -1), image_seq_length=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return made("VipLlavaForConditionalGeneration", config), processor


def llava_next() -> tuple[Any, Any]:
    tokenizer = ONE.tokenizer()
    images = image_processor(
        "llava_next", "LlavaNextImageProcessor", size={"shortest_edge": EDGE}, crop_size=SQUARE,
        image_grid_pinpoints=TILINGS,
    )  # fmt: skip
    processor = transformers.LlavaNextProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )  # fmt: skip
    config = transformers.LlavaNextConfig(
        vision_config=clip(), text_config=llama(tokenizer), image_grid_pinpoints=TILINGS, image_seq_length=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return made("LlavaNextForConditionalGeneration", config), processor


def llava_onevision() -> tuple[Any, Any]:
    words = Words((*CHATML, "<image>", "<video>"), chatml("<image>\n"), "<|im_end|>")
    tokenizer = words.tokenizer()
    processor = transformers.LlavaOnevisionProcessor(
        transformers.LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=TILINGS), tokenizer,
        transformers.LlavaOnevisionVideoProcessor(size=SQUARE), num_image_tokens=4,
        vision_feature_select_strategy="full", chat_template=tokenizer.chat_template,
    )  # fmt: skip
    config = transformers.LlavaOnevisionConfig(
        vision_config=siglip(), text_config=transformers.Qwen2Config(**TEXT, **ids(tokenizer)),
        image_grid_pinpoints=TILINGS, image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"), vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )  # fmt: skip
    return made("LlavaOnevisionForConditionalGeneration", config), processor


def _pixtral_processor(tokenizer: Any, merged: int) -> Any:
    patch = {"height": 8, "width": 8}
    images = image_processor("pixtral", "PixtralImageProcessor", patch_size=patch, size={"longest_edge": 32})
    return transformers.PixtralProcessor(
        images, tokenizer, patch_size=8, spatial_merge_size=merged, chat_template=tokenizer.chat_template
    )


def _pixtral_vision() -> Any:
    return transformers.PixtralVisionConfig(**{**VISION, "image_size": 64})


PIXTRAL = Words(MISTRAL, mistral(), "</s>", begin="<s>", begins=True)


def pixtral() -> tuple[Any, Any]:
    tokenizer = PIXTRAL.tokenizer()
    config = transformers.LlavaConfig(
        vision_config=_pixtral_vision(), text_config=transformers.MistralConfig(**TEXT, **ids(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"), vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )  # fmt: skip
    return made("LlavaForConditionalGeneration", config), _pixtral_processor(tokenizer, 1)


def mistral3() -> tuple[Any, Any]:
    tokenizer = PIXTRAL.tokenizer()
    config = transformers.Mistral3Config(
        vision_config=_pixtral_vision(), text_config=transformers.MistralConfig(**TEXT, **ids(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
    )  # fmt: skip
    return made("Mistral3ForConditionalGeneration", config), _pixtral_processor(tokenizer, 2)


def lighton_ocr() -> tuple[Any, Any]:
    special = (*CHATML, "<|image_pad|>", "<|vision_pad|>", "<|vision_end|>")
    named = {
        "image_token": "<|image_pad|>", "image_break_token": "<|vision_pad|>", "image_end_token": "<|vision_end|>"
    }  # fmt: skip
    tokenizer = Words(special, chatml("<|image_pad|>"), "<|im_end|>", named=named).tokenizer()
    patch = {"height": 8, "width": 8}
    images = image_processor("pixtral", "PixtralImageProcessor", patch_size=patch, size={"longest_edge": 32})
    processor = transformers.LightOnOcrProcessor(
        images, tokenizer, patch_size=8, spatial_merge_size=2, chat_template=tokenizer.chat_template
    )
    config = transformers.LightOnOcrConfig(
        vision_config=_pixtral_vision(), text_config=transformers.Qwen3Config(**TEXT, **ids(tokenizer), head_dim=8),
        image_token_id=tokenizer.image_token_id,
    )  # fmt: skip
    return made("LightOnOcrForConditionalGeneration", config), processor


def internvl() -> tuple[Any, Any]:
    named = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    words = Words((*CHATML, *named.values()), chatml("<IMG_CONTEXT>\n"), "<|im_end|>", named=named)
    tokenizer = words.tokenizer()
    processor = transformers.InternVLProcessor(
        transformers.GotOcr2ImageProcessor(size=SQUARE, crop_to_patches=True, max_patches=4), tokenizer,
        transformers.InternVLVideoProcessor(size=SQUARE), image_seq_length=1, chat_template=tokenizer.chat_template,
    )  # fmt: skip
    vision = transformers.InternVLVisionConfig(**{**VISION, "image_size": [EDGE, EDGE], "patch_size": [8, 8]})
    config = transformers.InternVLConfig(
        vision_config=vision, text_config=transformers.Qwen2Config(**TEXT, **ids(tokenizer)), image_seq_length=1,
        image_token_id=tokenizer.context_image_token_id,
    )  # fmt: skip
    return made("InternVLForConditionalGeneration", config), processor


def aya_vision() -> tuple[Any, Any]:
    tiles = ("TILE_GLOBAL", *(f"TILE_{number}" for number in range(1, 5)))
    around = ("<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>")
    words = Words((*COHERE, *around, *tiles), cohere("<image>"), "<|END_OF_TURN_TOKEN|>", begin="<BOS_TOKEN>")
    tokenizer = words.tokenizer()
    images = image_processor("got_ocr2", "GotOcr2ImageProcessor", size=SQUARE, crop_to_patches=True, max_patches=4)
    processor = transformers.AyaVisionProcessor(
        images, tokenizer, patch_size=8, img_size=EDGE, downsample_factor=2, chat_template=tokenizer.chat_template
    )
    config = transformers.AyaVisionConfig(
        vision_config=siglip(), text_config=transformers.Cohere2Config(**TEXT, **ids(tokenizer), sliding_window=512),
        image_token_index=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"), downsample_factor=2,
    )  # fmt: skip
    return made("AyaVisionForConditionalGeneration", config), processor


def cohere2_vision() -> tuple[Any, Any]:
    named = {
        "boi_token": "<|START_OF_IMG|>", "eoi_token": "<|END_OF_IMG|>", "image_token": "<|IMG_PATCH|>",
        "img_line_break_token": "<|IMG_LINE_BREAK|>",
    }  # fmt: skip
    special, end = (*COHERE, *named.values()), "<|END_OF_TURN_TOKEN|>"
    tokenizer = Words(special, cohere("<|IMG_PATCH|>"), end, begin="<BOS_TOKEN>", named=named).tokenizer()
    images = transformers.Cohere2VisionImageProcessor(size=SQUARE, patch_size=1, max_patches=4)
    processor = transformers.Cohere2VisionProcessor(images, tokenizer, chat_template=tokenizer.chat_template)
    config = transformers.Cohere2VisionConfig(
        vision_config=siglip(), text_config=transformers.Cohere2Config(**TEXT, **ids(tokenizer), sliding_window=512),
        image_token_id=tokenizer.image_token_id, downsample_factor=2, alignment_intermediate_size=64,
    )  # fmt: skip
    return made("Cohere2VisionForConditionalGeneration", config), processor


def got_ocr2() -> tuple[Any, Any]:
    special = (*CHATML, "<img>", "</img>", "<imgpad>")
    tokenizer = Words(special, chatml("<img><imgpad></img>\n"), "<|im_end|>").tokenizer()
    # Its processor writes 256 tokens for each image, whatever the model
    images = image_processor("got_ocr2", "GotOcr2ImageProcessor", size={"height": 128, "width": 128})
    processor = transformers.GotOcr2Processor(images, tokenizer, chat_template=tokenizer.chat_template)
    vision = transformers.GotOcr2VisionConfig(
        **{**VISION, "image_size": 128, "patch_size": 2, "num_hidden_layers": 1}, output_channels=16, window_size=4,
        global_attn_indexes=[], mlp_dim=64,
    )  # fmt: skip
    config = transformers.GotOcr2Config(
        vision_config=vision, text_config=transformers.Qwen2Config(**TEXT, **ids(tokenizer)), image_seq_length=256,
        image_token_index=tokenizer.convert_tokens_to_ids("<imgpad>"),
    )  # fmt: skip
    return made("GotOcr2ForConditionalGeneration", config), processor


def lfm2_vl() -> tuple[Any, Any]:
    named = {
        "image_token": "<image>", "image_start_token": "<|image_start|>", "image_end_token": "<|image_end|>",
        "image_thumbnail_token": "<|img_thumbnail|>",
    }  # fmt: skip
    places = tuple(f"<|img_row_{row}_col_{col}|>" for row in range(1, 5) for col in range(1, 5))
    special = (*CHATML, "<|startoftext|>", *named.values(), *places)
    tokenizer = Words(
        special, chatml("<image>", "{{ bos_token }}"), "<|im_end|>", begin="<|startoftext|>", begins=True, named=named
    ).tokenizer()
    images = transformers.Lfm2VlImageProcessor(
        encoder_patch_size=8, tile_size=32, min_image_tokens=2, max_image_tokens=4, max_tiles=4, downsample_factor=2,
        return_row_col_info=True,
    )  # fmt: skip
    processor = transformers.Lfm2VlProcessor(images, tokenizer, chat_template=tokenizer.chat_template)
    vision = {key: value for key, value in VISION.items() if key != "image_size"}
    text = transformers.Lfm2Config(
        **TEXT, **ids(tokenizer), layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False,
        block_multiple_of=8,
    )  # fmt: skip
    config = transformers.Lfm2VlConfig(
        vision_config=transformers.Siglip2VisionConfig(**vision, num_patches=16, vision_use_head=False),
        text_config=text, image_token_id=tokenizer.image_token_id, projector_hidden_size=32,
    )  # fmt: skip
    return made("Lfm2VlForConditionalGeneration", config), processor


def janus_words(image: str, named: dict[str, str]) -> Words:
    turn = "{% if m.role == 'user' %}<|User|>: {% else %}<|Assistant|>: {% endif %}"
    end = "{% if m.role == 'assistant' %}{{ eos_token }}{% else %}\n\n{% endif %}"
    special = ("<pad>", "<bos>", "<eos>", "<|User|>", "<|Assistant|>", *named.values())
    return Words(
        special, template(turn, image, end, "<|Assistant|>:", "{{ bos_token }}"), "<eos>", begin="<bos>", named=named
    )


_GREY = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
"""Given as in their folders: the colour of a picture's borders is made of the mean that is given."""


def deepseek_vl() -> tuple[Any, Any]:
    tokenizer = janus_words("<image_placeholder>", {"image_token": "<image_placeholder>"}).tokenizer()
    images = image_processor("deepseek_vl", "DeepseekVLImageProcessor", size=SQUARE, **_GREY)
    processor = transformers.DeepseekVLProcessor(
        images, tokenizer, num_image_tokens=4, chat_template=tokenizer.chat_template
    )
    config = transformers.DeepseekVLConfig(
        vision_config=siglip(), text_config=llama(tokenizer), image_token_id=tokenizer.image_token_id
    )
    return made("DeepseekVLForConditionalGeneration", config), processor


def janus() -> tuple[Any, Any]:
    named = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = janus_words("<image_placeholder>\n", named).tokenizer()
    images = image_processor("janus", "JanusImageProcessor", size=SQUARE, **_GREY)
    processor = transformers.JanusProcessor(
        images, tokenizer, num_image_tokens=4, chat_template=tokenizer.chat_template
    )
    vision = transformers.JanusVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=EDGE, patch_size=8, projection_dim=32,
        num_image_tokens=4, mlp_ratio=2.0,
    )  # fmt: skip
    codes = transformers.JanusVQVAEConfig(
        embed_dim=8, num_embeddings=16, latent_channels=16, base_channels=32, channel_multiplier=[1, 1],
        num_res_blocks=1, num_patches=2, projection_dim=32, image_token_embed_dim=32,
    )  # fmt: skip
    config = transformers.JanusConfig(
        text_config=llama(tokenizer), vision_config=vision, vq_config=codes, image_token_id=tokenizer.image_token_id
    )
    return made("JanusForConditionalGeneration", config), processor
