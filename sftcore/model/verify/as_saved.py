"""Whether the model that a loader gave is the saved one that the run names: its configuration, and its weights.

What the run or a plugin asks to be changed, as arguments of `from_pretrained`, is not compared. Where the files are not
in transformers' layout, or not on this machine, nothing is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftcore.core.types import LoadOptions, ModelRequest
from sftcore.data.source.tokenizers import tokenizer_folder
from sftcore.model.precision import quantisation_of
from sftcore.model.unwrap import causal_model, is_peft_model

if TYPE_CHECKING:
    import torch

_SHAPE = (
    "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "intermediate_size", "vocab_size",
)  # fmt: skip
"""Fields of a configuration that say which weights there are; of the vocabulary there may be more, as padding."""
_COMPARED, _ROWS, _NEAR = 8, 4, 2e-2
"""How many weights are compared, how many rows of each, and how far rounding takes them apart."""
_ELSEWHERE = {"config", "subfolder", "gguf_file"}
"""Arguments by which other files are read."""
_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def other_configuration(model: Any, request: ModelRequest, options: LoadOptions) -> str:
    """What the model has otherwise than its saved configuration; empty where nothing is, or nothing is known."""
    folder = tokenizer_folder(request.name or "", request.revision)
    if folder is None or not (folder / "config.json").is_file() or _ELSEWHERE & options.kwargs.keys():
        return ""
    import transformers

    try:
        saved = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    except Exception:  # a class of its own, or one of a newer version
        return ""
    held = causal_model(model).config.get_text_config()
    asked = {saved.attribute_map.get(name, name) for name in options.kwargs}
    for name in _SHAPE if "text_config" not in options.kwargs else ():
        wanted, got = getattr(saved, name, None), getattr(held, name, None)
        more = name == "vocab_size" and isinstance(got, int) and isinstance(wanted, int) and got > wanted
        if wanted is not None and got != wanted and not more and saved.attribute_map.get(name, name) not in asked:
            return f"its model has {name} {got}, and {folder / 'config.json'} says {wanted}"
    return ""


def other_weights(model: Any, request: ModelRequest) -> tuple[str, str]:
    """What is wrong where no weight is as it was saved, and what is to be said where some are not; both may be empty.

    Matrices of the same name are compared, a few rows of some of them. Only the first process of a machine compares:
    the others may be given their weights later.
    """
    folder = tokenizer_folder(request.name or "", request.revision)
    if folder is None or is_peft_model(model) or quantisation_of(model) or os.environ.get("LOCAL_RANK", "0") != "0":
        return "", ""
    files = _files_of(folder)
    if fault := _fewer_layers(causal_model(model), files):
        return fault, ""
    compared = [*_compared(causal_model(model), folder, files)]
    other = [name for name, same in compared if not same]
    if not other:
        return "", ""
    if len(other) == len(compared):
        fault = f"its weights are not those that are saved in {folder}: none of the {len(compared)} that were compared"
        return f"{fault}, such as {other[0]}, is the same", ""
    many = f"{len(other)} of {len(compared)} weights that were compared"
    return "", f"{many}, such as {other[0]}, are not those that are saved in {folder}"


def _fewer_layers(model: Any, files: Mapping[str, str]) -> str:
    """What is wrong where a list of layers is shorter than the saved one, and than the configuration says."""
    import torch

    count = getattr(model.config.get_text_config(), "num_hidden_layers", 0) or 0
    for name, layers in model.named_modules():
        if isinstance(layers, torch.nn.ModuleList):
            saved = {one[len(name) + 1 :].partition(".")[0] for one in files if one.startswith(f"{name}.")}
            if len(layers) < min(count, len(saved)):
                return f"its model has {len(layers)} of the {len(saved)} layers that are saved in {name}"
    return ""


def _compared(model: Any, folder: Path, files: Mapping[str, str]) -> Iterator[tuple[str, bool]]:
    """Names of weights, and whether each is as it was saved."""
    from safetensors import SafetensorError, safe_open

    held = {name: one for name, one in model.state_dict(keep_vars=True).items() if name in files and _is_matrix(one)}
    ends = [name for name, one in held.items() if one is model.get_input_embeddings().weight]
    names = [*held]
    for name in dict.fromkeys([*names[:: max(1, len(names) // _COMPARED)], *ends, *names[-1:]]):
        try:
            with safe_open(folder / files[name], "pt") as opened:
                saved = opened.get_slice(name)[:_ROWS]
        except (SafetensorError, OSError, KeyError):
            continue
        got = held[name].detach()[: len(saved)]
        saved = saved[: len(got)]
        if saved.is_floating_point() and saved.element_size() > 1 and saved.shape == got.shape:
            apart = (got.cpu().float() - saved.float()).norm()
            yield name, bool(apart <= _NEAR * saved.float().norm())


def _files_of(folder: Path) -> Mapping[str, str]:
    """The file of each weight."""
    from safetensors import SafetensorError, safe_open

    try:
        if (folder / _INDEX).is_file():
            found = json.loads((folder / _INDEX).read_bytes())["weight_map"]
            return found if isinstance(found, dict) else {}
        with safe_open(folder / _WHOLE, "pt") as opened:
            return dict.fromkeys(opened.keys(), _WHOLE)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return {}


def _is_matrix(one: torch.Tensor) -> bool:
    # vectors are often as they are made: ones, or zeros
    return type(one.data).__name__ == "Tensor" and one.ndim >= 2 and one.numel() > 0 and one.device.type != "meta"
