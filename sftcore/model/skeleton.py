"""What of a model is known before its weights are read: its modules, its positions, the rows of its embeddings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from sftcore.config.probe import adapter_folder
from sftcore.config.processes import uses_deepspeed
from sftcore.config.selections import DEFAULTS
from sftcore.core.types import Plan, Problem
from sftcore.model.unwrap import causal_model

_NOT_OF_A_CONFIG = ("config", "subfolder", "gguf_file", "_from_auto")
"""Arguments of `from_pretrained` that change which configuration is read."""

_OFFSETS = 4
"""How many rows a table of positions may have before the first position (two in OPT and BART)."""

_CAUSAL = ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM")
_NOT_CAUSAL = {
    "SEQUENCE_CLASSIFICATION": "classifies texts",
    "TOKEN_CLASSIFICATION": "classifies tokens",
    "QUESTION_ANSWERING": "marks answers in a text",
    "MULTIPLE_CHOICE": "chooses among answers",
    "MASKED_LM": "fills in masked tokens",
}
"""Tasks of which transformers lists the classes."""


def skeleton_of(model: Any, plan: Plan) -> Any:
    """The modules of a run's model: a ready model itself, else one made on torch's meta device, without weights.

    None where only loading tells: another loader than the default one, a saved adapter, a GGUF file, code of its own,
    DeepSpeed, or a configuration that cannot be read.
    """
    if not isinstance(model, str):
        return causal_model(model)
    request = plan.model
    loaders = [one.name for one in plan.selected("loader")]
    special = request.trust_remote_code or any(name in request.init_kwargs for name in _NOT_OF_A_CONFIG)
    if loaders != [DEFAULTS["loader"]] or special or adapter_folder(request) is not None:
        return None
    if uses_deepspeed(plan.settings):  # under ZeRO-3 whatever is made is partitioned among the processes
        return None
    import torch
    import transformers

    # whatever is wrong with it is said when it is loaded
    with contextlib.suppress(Exception), torch.device("meta"):
        options = {name: value for name, value in request.init_kwargs.items() if name != "attn_implementation"}
        config, _ = transformers.AutoConfig.from_pretrained(
            request.name, revision=request.revision, return_unused_kwargs=True, **options
        )
        named = getattr(transformers, (config.architectures or [""])[0], None)
        return named._from_config(config) if named else transformers.AutoModelForCausalLM.from_config(config)
    return None


def task_problems(model: Any) -> Iterator[Problem]:
    """A model of transformers' that does not predict the next token: it has no head, or one for another task.

    Classes that transformers does not list, and those of others, are taken as they are.
    """
    if model is None:
        return
    kind = type(model)
    if _reads_ahead(model):
        yield Problem(
            f"{kind.__name__} is an encoder, whose tokens see those that follow them, and what is trained here is a "
            "causal language model.",
            "model",
            "Load it as a decoder: AutoModelForCausalLM.from_pretrained(…, is_decoder=True).",
        )
        return
    if not kind.__module__.startswith("transformers.") or any(
        kind.__name__ in _listed(f"FOR_{one}") for one in _CAUSAL
    ):
        return
    tasks = [does for task, does in _NOT_CAUSAL.items() if kind.__name__ in _listed(f"FOR_{task}")]
    if model.config.is_encoder_decoder and kind.__name__ in _listed("FOR_SEQ_TO_SEQ_CAUSAL_LM"):
        tasks = ["has an encoder and a decoder"]
    elif kind.__name__ in _listed("") | _listed("FOR_TEXT_ENCODING") and model.get_output_embeddings() is None:
        tasks = ["has no head"]
    if tasks:
        yield Problem(
            f"{kind.__name__} {tasks[0]}, and what is trained here is a causal language model.",
            "model",
            "Load one: AutoModelForCausalLM.from_pretrained(…).",
        )


def _reads_ahead(model: Any) -> bool:
    """Whether a causal head of transformers' stands on an encoder that is not used as a decoder, such as BERT."""
    from transformers.models.auto import modeling_auto

    config, kind = model.config, type(model)
    encoders = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.keys()
    if not kind.__module__.startswith("transformers.") or kind.__name__ not in _listed("FOR_CAUSAL_LM"):
        return False
    decodes = getattr(config, "is_decoder", False) or getattr(config, "causal", False)
    return getattr(config, "model_type", "") in encoders and not decodes


def _listed(task: str) -> set[str]:
    """The names of the classes that transformers lists for a task; of an empty one those without a head."""
    from transformers.models.auto import modeling_auto

    named = getattr(modeling_auto, f"MODEL_{task}_MAPPING_NAMES".replace("__", "_"), {})
    return {name for names in named.values() for name in ([names] if isinstance(names, str) else names)}


def module_names(skeleton: Any) -> tuple[str, ...] | None:
    """The names of all modules, also of those that stand under two; None where they are not known."""
    if skeleton is None:
        return None
    return tuple(name for name, _ in skeleton.named_modules(remove_duplicate=False) if name)


def learned_positions(skeleton: Any) -> int | None:
    """How many positions the model has, where it reads them from a table; None where it computes them.

    A longer row is an IndexError, and on a GPU an assertion that ends the process. Tables are learned (GPT-2, OPT), or
    were computed once (GPT-J).
    """
    import torch

    if skeleton is None:
        return None
    config = skeleton.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int):
        return None
    decoder = skeleton.get_decoder() if hasattr(skeleton, "get_decoder") else skeleton
    words = skeleton.get_input_embeddings()
    for name, module in decoder.named_modules():
        if not isinstance(module, torch.nn.Embedding) or module is words or not _is_position(name, module):
            continue
        if 0 <= module.num_embeddings - limit <= _OFFSETS:
            # RoBERTa counts from behind its padding token, and has no rows more for it
            before = 0 if module.padding_idx is None or module.num_embeddings > limit else module.padding_idx + 1
            return limit - before
    for name, buffer in decoder.named_buffers():
        if _is_position(name) and buffer.ndim == 2 and buffer.shape[0] == limit:
            return limit
    return None


def _is_position(name: str, module: Any = None) -> bool:
    last = name.rpartition(".")[2]
    return last == "wpe" or "pos" in last.lower() or "Position" in type(module).__name__


def virtual_tokens(model: Any, plan: Plan) -> int:
    """How many tokens an adapter puts before each row, which take positions too."""
    configs = [*getattr(model, "peft_config", {}).values()]
    options = [one.options for one in plan.selected("adapter")]
    return max((found for one in (*configs, *options) for found in _counts(one)), default=0)


def _counts(value: Any) -> Iterator[int]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name == "num_virtual_tokens" and isinstance(inner, int):
                yield inner
            else:
                yield from _counts(inner)
    elif isinstance(count := getattr(value, "num_virtual_tokens", None), int):
        yield count
