"""Families that have something of their own: prefix attention, cross attention, experts, pixels as tokens."""

from __future__ import annotations

from typing import Any

import transformers

from tests.plugins.vlm.families.family_parts import (
    CHATML,
    EDGE,
    LLAMA3,
    SQUARE,
    TEXT,
    VISION,
    Words,
    chatml,
    ids,
    image_processor,
    llama3,
    made,
    siglip,
    template,
)  # fmt: skip


def paligemma() -> tuple[Any, Any]:
    # It has no chat template; this is what people write for it
    turns = template("", "<image>", "{{ '\n' if m.role == 'user' else eos_token }}", images_first=True)
    tokenizer = Words(
        ("<pad>", "<eos>", "<bos>", "<image>"), turns, "<eos>", begin="<bos>", named={"image_token": "<image>"}
    ).tokenizer()
    images = image_processor("siglip", "SiglipImageProcessor", size=SQUARE)
    images.image_seq_length = 4
    processor = transformers.PaliGemmaProcessor(images, tokenizer, chat_template=tokenizer.chat_template)
    config = transformers.PaliGemmaConfig(
        vision_config=siglip(projection_dim=32),
        text_config=transformers.GemmaConfig(**TEXT, **ids(tokenizer), head_dim=8),
        image_token_index=tokenizer.image_token_id, projection_dim=32, hidden_size=32, vocab_size=len(tokenizer),
    )  # fmt: skip
    return made("PaliGemmaForConditionalGeneration", config), processor


def idefics2() -> tuple[Any, Any]:
    special = ("<pad>", "<s>", "</s>", "<fake_token_around_image>", "<image>", "<end_of_utterance>")
    turn = "{{ m.role | capitalize }}{{ ':' if m.content[0].type == 'image' else ': ' }}"
    turns = template(turn, "<image>", "<end_of_utterance>\n", "Assistant:", "<s>")
    tokenizer = Words(special, turns, "</s>", begin="<s>", begins=True).tokenizer()
    images = image_processor(
        "idefics2", "Idefics2ImageProcessor", size={"shortest_edge": 16, "longest_edge": 32}, do_image_splitting=False
    )
    processor = transformers.Idefics2Processor(
        images, tokenizer, image_seq_len=4, chat_template=tokenizer.chat_template
    )
    reader = {
        "hidden_size": 32, "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 4,
        "resampler_head_dim": 8, "num_key_value_heads": 2,
    }  # fmt: skip
    config = transformers.Idefics2Config(
        vision_config={**VISION, "image_size": 32}, perceiver_config=reader,
        text_config={**TEXT, **ids(tokenizer), "model_type": "mistral"}, pad_token_id=tokenizer.pad_token_id,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return made("Idefics2ForConditionalGeneration", config), processor


def mllama() -> tuple[Any, Any]:
    special = (*LLAMA3, "<|image|>", "<|python_tag|>")
    tokenizer = Words(special, llama3("<|image|>"), "<|eot_id|>", begin="<|begin_of_text|>", begins=True).tokenizer()
    images = image_processor("mllama", "MllamaImageProcessor", size=SQUARE, max_image_tiles=4)
    processor = transformers.MllamaProcessor(images, tokenizer, chat_template=tokenizer.chat_template)
    ratios = [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]
    vision = transformers.MllamaVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_global_layers=1, attention_heads=4,
        image_size=EDGE, patch_size=8, max_num_tiles=4, intermediate_layers_indices=[1], vision_output_dim=64,
        supported_aspect_ratios=ratios,
    )  # fmt: skip
    text = transformers.MllamaTextConfig(
        **TEXT, **ids(tokenizer), cross_attention_layers=[1],
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )  # fmt: skip
    # The processor's own token lies behind those that the head can say
    config = transformers.MllamaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<|image|>")
    )
    return made("MllamaForConditionalGeneration", config), processor


def llama4() -> tuple[Any, Any]:
    special = (
        "<pad>", "<|begin_of_text|>", "<|header_start|>", "<|header_end|>", "<|eot|>", "<|image|>", "<|image_start|>",
        "<|image_end|>", "<|patch|>", "<|tile_x_separator|>", "<|tile_y_separator|>",
    )  # fmt: skip
    turn = "<|header_start|>{{ m.role }}<|header_end|>\n\n"
    asked = "<|header_start|>assistant<|header_end|>\n\n"
    turns = template(turn, "<|image|>", "<|eot|>", asked, "{{ bos_token }}")
    tokenizer = Words(special, turns, "<|eot|>", begin="<|begin_of_text|>", begins=True).tokenizer()
    images = transformers.Llama4ImageProcessor(size=SQUARE, max_patches=4)
    processor = transformers.Llama4Processor(images, tokenizer, patch_size=8, chat_template=tokenizer.chat_template)
    vision = transformers.Llama4VisionConfig(
        hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=EDGE,
        patch_size=8, vision_output_dim=32, projector_input_dim=32, projector_output_dim=32,
    )  # fmt: skip
    text = transformers.Llama4TextConfig(
        **TEXT, **ids(tokenizer), head_dim=8, intermediate_size_mlp=64, num_local_experts=2, attention_chunk_size=512
    )
    config = transformers.Llama4Config(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<|patch|>"),
        boi_token_index=tokenizer.convert_tokens_to_ids("<|image_start|>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<|image_end|>"),
    )  # fmt: skip
    return made("Llama4ForConditionalGeneration", config), processor


def ovis2() -> tuple[Any, Any]:
    written = ("<IMG_ATOM>", "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
    tokenizer = Words((*CHATML, "<image>", *written), chatml("<image>\n"), "<|im_end|>").tokenizer()
    images = image_processor("ovis2", "Ovis2ImageProcessor", size=SQUARE, crop_to_patches=True, max_patches=4)
    processor = transformers.Ovis2Processor(
        images, tokenizer, image_seq_length=4, chat_template=tokenizer.chat_template
    )
    atom, *marks = tokenizer.convert_tokens_to_ids(list(written))
    vision = transformers.Ovis2VisionConfig(**VISION, vocab_size=32, num_visual_indicator_tokens=5)
    config = transformers.Ovis2Config(
        vision_config=vision, text_config=transformers.Qwen2Config(**TEXT, **ids(tokenizer)), image_token_id=atom,
        visual_indicator_token_ids=marks, vocab_size=len(tokenizer), hidden_size=32,
    )  # fmt: skip
    return made("Ovis2ForConditionalGeneration", config), processor


def emu3() -> tuple[Any, Any]:
    named = {
        "image_token": "<image>", "boi_token": "<|image start|>", "eoi_token": "<|image end|>",
        "image_wrapper_token": "<|image token|>", "eof_token": "<|extra_201|>",
    }  # fmt: skip
    codes = tuple(f"<|visual token {number:06d}|>" for number in range(16))
    turn = "{{ 'User: ' if m.role == 'user' else 'Assistant: ' }}"
    turns = template(turn, "<image>", "{{ '. ' if m.role == 'user' else eos_token }}", "Assistant:")
    special = ("<pad>", "<bos>", "<eos>", *named.values(), "<|extra_200|>", *codes)
    tokenizer = Words(special, turns, "<eos>", begin="<bos>", named=named).tokenizer()
    images = transformers.Emu3ImageProcessor(min_pixels=16 * 16, max_pixels=24 * 24, spatial_factor=8)
    processor = transformers.Emu3Processor(images, tokenizer, chat_template=tokenizer.chat_template)
    pictures = {
        "codebook_size": 16, "embed_dim": 4, "latent_channels": 4, "base_channels": 32, "hidden_size": 32,
        "channel_multiplier": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [],
        "temporal_downsample_factor": 1,
    }  # fmt: skip
    config = transformers.Emu3Config(
        vq_config=pictures, text_config={**TEXT, **ids(tokenizer), "attention_dropout": 0.0},
        vocabulary_map=tokenizer.get_vocab(),
    )  # fmt: skip
    return made("Emu3ForConditionalGeneration", config), processor


def chameleon() -> tuple[Any, Any]:
    special = ("<pad>", "<s>", "</s>", "<image>", "<racm3:break>", "<eoss>", "<reserved08706>")
    codes = tuple(f"IMGIMG{chr(65 + number // 10)}{chr(65 + number % 10)}Z" for number in range(16))
    turns = template("", "<image>", "{{ '<reserved08706>' if m.role == 'user' else eos_token }}", "", "{{ bos_token }}")
    words = Words((*special, *codes), turns, "</s>", begin="<s>", begins=True)
    tokenizer = words.tokenizer()
    tokenizer.sep_token = "<reserved08706>"
    images = image_processor("chameleon", "ChameleonImageProcessor", size={"shortest_edge": EDGE}, crop_size=SQUARE)
    processor = transformers.ChameleonProcessor(images, tokenizer, image_seq_length=4)
    processor.chat_template = tokenizer.chat_template
    pictures = {
        "embed_dim": 8, "num_embeddings": 16, "latent_channels": 8, "resolution": EDGE, "base_channels": 32,
        "channel_multiplier": [1, 1, 1, 1], "num_res_blocks": 1,
    }  # fmt: skip
    config = transformers.ChameleonConfig(
        **TEXT, **ids(tokenizer), vq_config=pictures, vocabulary_map=tokenizer.get_vocab()
    )
    return made("ChameleonForConditionalGeneration", config), processor


def kosmos2() -> tuple[Any, Any]:
    turns = template("", "", "{{ ' ' if m.role == 'user' else eos_token }}")
    tokenizer = Words(("<pad>", "<s>", "</s>", "<unk>"), turns, "</s>", begin="<s>").tokenizer()
    tokenizer.unk_token = "<unk>"
    processor = transformers.Kosmos2Processor(
        image_processor("clip", "CLIPImageProcessor", size={"shortest_edge": EDGE}, crop_size=SQUARE), tokenizer, 16
    )
    processor.chat_template = tokenizer.chat_template
    text = {
        "vocab_size": len(tokenizer), "embed_dim": 32, "layers": 2, "ffn_dim": 64, "attention_heads": 4, "dropout": 0.0,
        "attention_dropout": 0.0, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "max_position_embeddings": 512,
    }  # fmt: skip
    config = transformers.Kosmos2Config(text_config=text, vision_config=VISION, latent_query_num=64)
    return made("Kosmos2ForConditionalGeneration", config), processor


def blip2() -> tuple[Any, Any]:
    turns = template(
        "{{ 'Question: ' if m.role == 'user' else 'Answer: ' }}", "", "{{ ' ' if m.role == 'user' else eos_token }}"
    )
    tokenizer = Words(("<pad>", "</s>", "<image>"), turns, "</s>", begin="</s>").tokenizer()
    processor = transformers.Blip2Processor(
        image_processor("blip", "BlipImageProcessor", size=SQUARE), tokenizer, num_query_tokens=4
    )
    processor.chat_template = tokenizer.chat_template
    reader = {
        **{key: TEXT[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")},
        "vocab_size": 16, "encoder_hidden_size": 32, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    text = transformers.OPTConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, ffn_dim=64, num_attention_heads=4, dropout=0.0,
        max_position_embeddings=512, word_embed_proj_dim=32, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    config = transformers.Blip2Config(
        vision_config=VISION, qformer_config=reader, text_config=text, num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), image_text_hidden_size=32,
    )  # fmt: skip
    return made("Blip2ForConditionalGeneration", config), processor
