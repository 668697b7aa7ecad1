"""Clips that tests draw and PyAV writes, and tiny models of families that read videos, with their real processors."""

from __future__ import annotations

import functools
import io

import numpy as np
import pytest

torchvision = pytest.importorskip("torchvision", reason="transformers' video processors need torchvision")
av = pytest.importorskip("av", reason="the extra video brings PyAV")

import torch  # noqa: E402
import transformers  # noqa: E402

from sftcore.testing import tiny_vlm  # noqa: E402

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "llava_onevision", "smolvlm", "internvl")
SAMPLED = {"qwen2_5_vl": {"fps": 0.8}, "qwen3_vl": {"fps": 0.8}}
"""How many frames the tests take: the options of the format, else four frames."""
_PLACES = {"qwen2_5_vl": "<|vision_start|>VIDEO<|vision_end|>", "qwen3_vl": "<|vision_start|>VIDEO<|vision_end|>"}
_TOKENS = {
    "qwen2_5_vl": "<|video_pad|>", "qwen3_vl": "<|video_pad|>", "llava_onevision": "<video>", "smolvlm": "<video>",
    "internvl": "<video>",
}  # fmt: skip
_IMAGES = {
    "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>", "llava_onevision": "<image>\n", "smolvlm": "<image>",
    "internvl": "<IMG_CONTEXT>\n",
}  # fmt: skip
_BASE = {"qwen3_vl": "qwen2_5_vl", "llava_onevision": "llava", "internvl": "llava"}
_TEXT = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048,
}  # fmt: skip
_VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def frames(count=100, size=(64, 48)):
    """Frames (count, height, width, 3) uint8 in which a bar moves to the right."""
    made = np.full((count, size[1], size[0], 3), 30, np.uint8)
    for at in range(count):
        made[at, :, : 1 + at * size[0] // count] = (250, at % 256, 90)
    return made


def encoded(pictures, rate=10):
    """The bytes of an .mp4 of these frames."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def read(source):
    """All frames of a file, and its rate, as a reader would write it by hand."""
    with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as container:
        rate = float(container.streams.video[0].average_rate)
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]), rate


def template_of(family):
    place = _PLACES.get(family, "VIDEO").replace("VIDEO", _TOKENS[family])
    image = _IMAGES.get(family, _IMAGES["qwen2_5_vl"])
    return (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
        f"{{% for p in m.content %}}{{% if p.type == 'text' %}}{{{{ p.text }}}}{{% elif p.type == 'video' %}}{place}"
        f"{{% else %}}{image}{{% endif %}}{{% endfor %}}{{% endif %}}<|im_end|>\n{{% endfor %}}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


@functools.cache
def _tokenizer_of(family):
    tokenizer = tiny_vlm.make_vlm_tokenizer(_BASE.get(family, family))
    added = [token for token in ("<|im_start|>", "<|im_end|>", _TOKENS[family]) if token not in tokenizer.get_vocab()]
    tokenizer.add_tokens(added, special_tokens=True)
    tokenizer.eos_token = "<|im_end|>"
    if family == "internvl":
        names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
        names["video_token"] = "<video>"
        tokenizer.add_tokens([*names.values()], special_tokens=True)
        return type(tokenizer)(
            tokenizer_object=tokenizer.backend_tokenizer, extra_special_tokens=names, eos_token="<|im_end|>",
            pad_token="<pad>",
        )  # fmt: skip
    return tokenizer


def make_processor(family):
    """The family's own processor, with a template that writes a place for a video."""
    if family == "smolvlm":
        pytest.importorskip("num2words")
    tokenizer = _tokenizer_of(family)
    made = globals()[f"_{family}_processor"](tokenizer)
    made.chat_template = tokenizer.chat_template = template_of(family)
    return made


def make_vlm(family, seed=0):
    """A tiny model with random weights, and its processor."""
    processor = make_processor(family)
    torch.manual_seed(seed)
    return globals()[f"_{family}"](processor.tokenizer).eval(), processor


def _qwen2_5_vl_processor(tokenizer):
    sizes = {"patch_size": 8, "size": {"shortest_edge": 4 * 16 * 16, "longest_edge": 16 * 16 * 16}}
    videos = transformers.Qwen2VLVideoProcessor(**sizes)
    return transformers.Qwen2_5_VLProcessor(transformers.Qwen2VLImageProcessor(**sizes), tokenizer, videos)


def _qwen3_vl_processor(tokenizer):
    sizes = {"patch_size": 8, "size": {"shortest_edge": 4 * 16 * 16, "longest_edge": 16 * 16 * 16}}
    videos = transformers.Qwen3VLVideoProcessor(
        patch_size=8, size={"shortest_edge": 4 * 16 * 16, "longest_edge": 64 * 16 * 16}
    )
    return transformers.Qwen3VLProcessor(transformers.Qwen2VLImageProcessor(**sizes), tokenizer, videos)


def _llava_onevision_processor(tokenizer):
    size = {"height": 32, "width": 32}
    images = transformers.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[32, 32], [32, 64], [64, 32]])
    videos = transformers.LlavaOnevisionVideoProcessor(size=size)
    return transformers.LlavaOnevisionProcessor(
        images, tokenizer, videos, num_image_tokens=16, vision_feature_select_strategy="full"
    )


def _smolvlm_processor(tokenizer):
    return tiny_vlm._smolvlm_processor(tokenizer)


def _internvl_processor(tokenizer):
    size = {"height": 32, "width": 32}
    images = transformers.GotOcr2ImageProcessor(size=size, crop_to_patches=False)
    return transformers.InternVLProcessor(
        images, tokenizer, transformers.InternVLVideoProcessor(size=size), image_seq_length=4
    )


def _ids(tokenizer, **more):
    named = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return {**named, **more}


def _qwen2_5_vl(tokenizer):
    return tiny_vlm._qwen(tokenizer)


def _qwen3_vl(tokenizer):
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "patch_size": 8, "out_hidden_size": 64,
        "deepstack_visual_indexes": [0], "num_position_embeddings": 64,
    }  # fmt: skip
    text = {
        **_TEXT, **_ids(tokenizer), "head_dim": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 2, 2]},
    }  # fmt: skip
    places = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>") for name, token in places.items()}
    return transformers.Qwen3VLForConditionalGeneration(
        transformers.Qwen3VLConfig(vision_config=vision, text_config=text, **ids)
    )


def _llava_onevision(tokenizer):
    return transformers.LlavaOnevisionForConditionalGeneration(
        transformers.LlavaOnevisionConfig(
            vision_config=transformers.SiglipVisionConfig(
                **_VISION, image_size=32, patch_size=8, vision_use_head=False
            ),
            text_config=transformers.LlamaConfig(**_TEXT, **_ids(tokenizer)),
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
            image_grid_pinpoints=[[32, 32], [32, 64], [64, 32]],
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        )
    )


def _smolvlm(tokenizer):
    return tiny_vlm._tiled("SmolVLM", tokenizer)


def _internvl(tokenizer):
    vision = transformers.InternVLVisionConfig(**_VISION, image_size=[32, 32], patch_size=[8, 8])
    return transformers.InternVLForConditionalGeneration(
        transformers.InternVLConfig(
            vision_config=vision,
            text_config=transformers.LlamaConfig(**_TEXT, **_ids(tokenizer)),
            image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
            image_seq_length=4,
        )
    )
