"""Resizes embeddings and head to fit a tokenizer, and saves them if they have grown."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from sftcore.chat.stops import turn_end
from sftcore.chat.tokens import clone_tokens
from sftcore.core.errors import ModelError

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def num_rows(model: Any) -> int:
    """The number of rows of the model's embeddings; in many models more than the tokenizer has tokens."""
    embeddings = model.get_input_embeddings()
    # under ZeRO-3 the weight itself is partitioned, and has no rows here
    found = getattr(embeddings, "num_embeddings", None)
    return int(embeddings.weight.shape[0] if found is None else found)


def clone_chat_template(
    model: Any, tokenizer: Any, source_tokenizer_path: str, resize_to_multiple_of: int | None = 64
) -> tuple[Any, Any, list[int]]:
    """Clone the chat template of another tokenizer, with its added tokens and its EOS.

    The embeddings (and the head) grow to hold the new tokens, rounded up to a multiple; they never shrink. New rows
    start at the mean of the old ones. The tokenizer is filled with `<extra_id_N>` up to the number of rows, so that
    `len(tokenizer)` says how large the embeddings are.

    Args:
        model: a `PreTrainedModel`; changed in place.
        tokenizer: its tokenizer; changed in place.
        source_tokenizer_path: a folder or hub id with a tokenizer that has a chat template.
        resize_to_multiple_of: the number of rows is a multiple of this; None: one row for each token.

    Returns:
        The model, the tokenizer, and the ids of all tokens that were added, with the fillers last.

    Raises:
        ModelError: the tokenizer does not exist or has no chat template, or an adapter wraps the model.
    """
    if hasattr(model, "peft_config"):
        raise _has_adapter("clone_chat_template")
    added = clone_tokens(tokenizer, source_tokenizer_path)
    added += fit_embeddings(model, tokenizer, resize_to_multiple_of)
    stop_where_cloned(model, tokenizer)
    return model, tokenizer, added


def fit_embeddings(model: Any, tokenizer: Any, multiple: int | None) -> list[int]:
    """Grow embeddings and head until each token has a row, and fill up the tokenizer; returns the fillers' ids.

    Raises:
        ModelError: the embeddings would have to grow, but an adapter wraps the model.
    """
    if multiple is not None and multiple < 1:
        raise ModelError(f"resize_to_multiple_of is {multiple}.", fix="Set it to at least 1, or to None.")
    rows = num_rows(model)
    vocabulary = tokenizer.get_vocab()
    wanted = max(rows, max(vocabulary.values()) + 1)
    wanted += -wanted % (multiple or 1)
    if wanted != rows:
        if hasattr(model, "peft_config"):
            raise _has_adapter("chat_template_path")
        # transformers initialises new rows around the mean of the old ones, in embeddings and in an untied head
        model.resize_token_embeddings(wanted)
    free = (name for i in itertools.count() if (name := f"<extra_id_{i}>") not in vocabulary)
    fillers = list(itertools.islice(free, wanted - max(vocabulary.values()) - 1))
    tokenizer.add_tokens(fillers)
    ids: list[int] = tokenizer.convert_tokens_to_ids(fillers)
    return ids


def make_room(model: Any, tokens: int) -> None:
    """Grow embeddings and head to so many rows; they stay as they are where there are enough.

    What loads an adapter grows its base to the length of the tokenizer, so that the rows are not rounded up.

    Raises:
        ModelError: they would have to grow, but an adapter wraps the model.
    """
    if tokens <= num_rows(model):
        return
    if hasattr(model, "peft_config"):
        raise _has_adapter("new tokens")
    model.resize_token_embeddings(tokens)


def stop_where_cloned(model: Any, tokenizer: Any) -> None:
    """Make generation stop only at the EOS and where turns of the cloned template end."""
    ends = dict.fromkeys(filter(None, (turn_end(tokenizer), tokenizer.eos_token)))
    ids = [tokenizer.convert_tokens_to_ids(token) for token in ends]
    if not ids:
        return
    model.config.get_text_config().eos_token_id = tokenizer.eos_token_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = ids[0] if len(ids) == 1 else ids


def save_grown_rows(model: Any, folder: Path, state_dict: dict[str, Any] | None) -> None:
    """Save embeddings and head with the adapter if PEFT did not.

    PEFT (0.21) compares with the base's config.json to see that a vocabulary grew. A base from a single file has none,
    and the new rows would be lost.
    """
    names = embedding_names(model.get_base_model())
    if not any(is_whole_weight(name, names) for name in saved_shapes(folder)):
        model.save_pretrained(folder, state_dict=state_dict, save_embedding_layers=True)


def saved_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a saved adapter's tensors, from the file's header."""
    from safetensors import safe_open

    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def embedding_names(causal: Any) -> set[str]:
    """The model's names for its embeddings and its head, such as embed_tokens and lm_head."""
    both = (causal.get_input_embeddings(), causal.get_output_embeddings())
    return {name.rpartition(".")[2] for name, module in causal.named_modules() if module in both}


def is_whole_weight(name: str, embeddings: set[str]) -> bool:
    return name.endswith(".weight") and ".lora_" not in name and bool(embeddings & set(name.split(".")))


def _has_adapter(where: str) -> ModelError:
    return ModelError(
        "an adapter wraps the model, and its embeddings cannot grow inside an adapter.",
        where=where,
        fix="Clone the template into the base model first, or let it grow there, and add the adapter afterwards.",
    )
