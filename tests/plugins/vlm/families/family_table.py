"""The families that are tried: how each is made, what its processor writes for an image, and what is refused."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from attrs import field, frozen

from sftcore.testing.tiny_vlm import make_vlm
from tests.plugins.vlm.families import grids, llavas, others

COLUMNS = ("padded", "accumulated", "assistant only", "packed", "padding-free", "LoRA", "4 bits")
"""What is tried of each family; the columns of the table in docs/how-to/vision-language.md."""


@frozen(eq=False)
class Family:
    """One family of models.

    Args:
        name: as people call it.
        make: makes a tiny model and its processor.
        end: what ends an assistant's turn.
        image: an expression for what the processor writes for one image.
        lead: what the chat template writes between the prompt for an answer and its words.
        torchvision: whether its processor, as transformers has it, needs torchvision.
        nested: whether its processor takes a list of images for each text.
        one_size: whether a picture's features depend on the sizes of the others in its batch; there its pictures have
            one.
        one_number: whether the rows of a batch need to have as many images; its rows have two.
        frozen: names of its modules that stay in evaluation mode, as transformers makes them.
        changes_texts: whether its processor changes the words of rows without images too.
        refused: the words of the refusal of each column that is refused, "*" for all of them.
        faults: why a column does not hold yet.
        completes: what a loop by hand adds to the batch, from it and its labels.
    """

    name: str
    make: Callable[[], tuple[Any, Any]]
    end: str = "<|im_end|>"
    image: str = "(<image>)+"
    lead: str = ""
    torchvision: bool = False
    nested: bool = True
    one_size: bool = False
    one_number: bool = False
    frozen: tuple[str, ...] = ()
    changes_texts: bool = False
    refused: dict[str, str] = field(factory=dict)
    faults: dict[str, str] = field(factory=dict)
    completes: Callable[[Any, Any], dict[str, Any]] | None = None


def _from_the_first_label(batch: Any, labels: Any) -> dict[str, Any]:
    """PaliGemma's token types: the prompt, whose tokens see each other, is what comes before all that counts."""
    return {"token_type_ids": (labels != -100).cumsum(1).clamp(max=1)}


def _not_packed(model: str) -> dict[str, str]:
    return dict.fromkeys(("packed", "padding-free"), f"{model} does not keep documents .*apart")


def _known(name: str) -> Callable[[], tuple[Any, Any]]:
    return functools.partial(make_vlm, name)


_AROUND = "<fake_token_around_image>"
_TILES = rf"{_AROUND}(<image>|{_AROUND}|<row_.*?>|<global-img>|\n)*{_AROUND}"
# With the space that the processor puts before a word that follows directly
_IDEFICS2 = rf"{_AROUND}(<image>)+{_AROUND}( (?=\?))?"
_PIXTRAL = r"(\[IMG\]|\[IMG_BREAK\])+\[IMG_END\]"
_PADS = r"(<\|image_pad\|>)+"
_GLM = r"(<\|image\|>)+"
_JANUS = r"<begin_of_image>(<image_placeholder>)+<end_of_image>"
_COHERE = r"<\|START_OF_IMG\|>.*?<\|END_OF_IMG\|>"
_TURN = "<|END_OF_TURN_TOKEN|>"
_OVIS = r"<IMG_START>.*?<IMG_END>"
_LFM = r"<\|image_start\|>.*?<\|image_end\|>"
_LLAMA4 = r"<\|image_start\|>.*?<\|image_end\|>"
_EMU = r"<\|image start\|>.*?<\|image end\|>"
_CHAMELEON = r"<racm3:break>(<image>)+<eoss>"
_GEMMA = "\n\n<start_of_image>(<image_soft_token>)+<end_of_image>\n\n"

FAMILIES = (
    Family("LLaVA", _known("llava")),
    Family("VipLLaVA", llavas.vipllava),
    Family("LLaVA-NeXT", llavas.llava_next),
    Family("LLaVA-OneVision", llavas.llava_onevision, torchvision=True),
    Family("Idefics2", others.idefics2, "<end_of_utterance>", _IDEFICS2, lead=" "),
    Family("Idefics3", _known("idefics3"), "<end_of_utterance>", _TILES, lead=" "),
    Family("SmolVLM", _known("smolvlm"), "<end_of_utterance>", _TILES, lead=" "),
    Family("Qwen2-VL", grids.qwen2_vl, image=_PADS, torchvision=True),
    Family("Qwen2.5-VL", _known("qwen2_5_vl"), image=_PADS),
    Family("Qwen3-VL", grids.qwen3_vl, image=_PADS, torchvision=True),
    Family("Qwen3-VL-MoE", grids.qwen3_vl_moe, image=_PADS, torchvision=True),
    Family("Gemma 3", _known("gemma3"), "<end_of_turn>", _GEMMA),
    Family(
        "PaliGemma", others.paligemma, "<eos>",
        refused=dict.fromkeys(("packed", "padding-free"), "PaliGemmaProcessor .* documents cannot share a row"),
        completes=_from_the_first_label,
    ),
    Family("InternVL", llavas.internvl, image="<img>(<IMG_CONTEXT>)+</img>", torchvision=True),
    Family("Pixtral", llavas.pixtral, "</s>", _PIXTRAL),
    Family("Mistral 3", llavas.mistral3, "</s>", _PIXTRAL),
    Family("LightOnOCR", llavas.lighton_ocr, image=_PADS),
    Family("Aya Vision", llavas.aya_vision, _TURN, _COHERE),
    Family("Command A Vision", llavas.cohere2_vision, _TURN, _COHERE, torchvision=True),
    Family("GLM-4V", grids.glm4v, "<|user|>", _GLM, torchvision=True),
    Family("GLM-4.6V", grids.glm46v, "<|user|>", _GLM, torchvision=True),
    Family("VideoLLaMA 3", grids.video_llama_3, image=_PADS, torchvision=True),
    Family(
        "LFM2-VL", llavas.lfm2_vl, image=_LFM, torchvision=True,
        refused=_not_packed("Lfm2VlForConditionalGeneration"),
    ),
    Family("DeepSeek-VL", llavas.deepseek_vl, "<eos>", "(<image_placeholder>)+", lead=" "),
    Family("Janus", llavas.janus, "<eos>", _JANUS, lead=" "),
    Family("Ovis2", others.ovis2, image=_OVIS),
    Family("GOT-OCR 2", llavas.got_ocr2, image="(<imgpad>)+", nested=False),
    Family("Llama 4", others.llama4, "<|eot|>", _LLAMA4, torchvision=True),
    Family(
        "Llama 3.2 Vision", others.mllama, "<|eot_id|>", r"<\|image\|>",
        one_number=True,
        refused=dict.fromkeys(("packed", "padding-free"), "MllamaProcessor .* images cannot share a row"),
    ),
    Family(
        "Emu3", others.emu3, "<eos>", _EMU, one_size=True, lead=" ", torchvision=True, frozen=("model.vqmodel",),
        changes_texts=True,
    ),
    Family("Chameleon", others.chameleon, "</s>", _CHAMELEON, frozen=("model.vqmodel",), changes_texts=True),
    Family(
        "Kosmos-2", others.kosmos2, "</s>", "<image>.*?</image>",
        refused={"*": "Kosmos2Processor .* so its model cannot be trained on images"},
    ),
    Family(
        "BLIP-2", others.blip2, "</s>",
        refused={"*": "Blip2Processor .* so its model cannot be trained on images"},
    ),
)  # fmt: skip
