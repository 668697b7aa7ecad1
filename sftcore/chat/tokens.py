"""Chat template and special tokens: set on the tokenizer first, and on the model once it is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sftcore.chat.stops import turn_end
from sftcore.core.errors import ModelError, RecipeError

_TEMPLATE_FILES = (".jinja", ".j2")


def clone_chat_template(
    model: Any, tokenizer: Any, source_tokenizer_path: str, resize_to_multiple_of: int | None = 64
) -> tuple[Any, Any, list[int]]:
    """Take over the chat template of another tokenizer, with its added tokens and its EOS.

    The embeddings (and the head) grow to hold the new tokens, rounded up to a multiple; they never shrink. New rows
    start at the mean of the old ones. The tokenizer is filled with `<extra_id_N>` up to the number of rows, so that
    `len(tokenizer)` says how large the embeddings are.

    Args:
        model: a `PreTrainedModel`; changed in place.
        tokenizer: its tokenizer; changed in place.
        source_tokenizer_path: a folder or hub id with a tokenizer that has a chat template.
        resize_to_multiple_of: of rows; None: as many as there are tokens.

    Returns:
        The model, the tokenizer, and the ids of all tokens that were added, those that only fill up last.

    Raises:
        ModelError: there is no such tokenizer, it has no chat template, or the model has an adapter around it.
    """
    if hasattr(model, "peft_config"):
        raise _has_adapter("clone_chat_template")
    added = clone_tokens(tokenizer, source_tokenizer_path)
    added += fit_embeddings(model, tokenizer, resize_to_multiple_of)
    stop_where_cloned(model, tokenizer)
    return model, tokenizer, added


def clones_tokenizer(path: str | None) -> bool:
    """Whether `chat_template_path` names a tokenizer to take over, rather than a file with a template alone."""
    return path is not None and Path(path).suffix not in _TEMPLATE_FILES


def set_chat_template(tokenizer: Any, path: str) -> None:
    """Read a .jinja or .j2 file into the tokenizer's chat template.

    Raises:
        RecipeError: no such file, or it is no template.
    """
    from jinja2 import Environment, TemplateSyntaxError

    file = Path(path).expanduser()
    if not file.is_file():
        raise RecipeError("no such file.", where=f"chat_template_path {path}")
    template = file.read_text(encoding="utf-8")
    try:
        Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_without_generation_marks(template))
    except TemplateSyntaxError as error:
        raise RecipeError(f"line {error.lineno}: {error.message}.", where=f"chat_template_path {path}") from None
    tokenizer.chat_template = template


def clone_tokens(tokenizer: Any, source: str) -> list[int]:
    """The tokenizer's half of `clone_chat_template`: template, added tokens and EOS; the ids of new tokens.

    Raises:
        ModelError: there is no such tokenizer, or it has no chat template.
    """
    other = _tokenizer_of(source)
    if not other.chat_template:
        raise ModelError(
            "this tokenizer has no chat template.",
            where=f"chat_template_path {source}",
            fix="Name one that has, usually that of a model whose name ends with Instruct or Chat.",
        )
    known = tokenizer.get_vocab()
    missing = [token for token in other.added_tokens_decoder.values() if token.content not in known]
    if other.eos_token and other.eos_token not in {*known, *(token.content for token in missing)}:
        missing.append(_special(other.eos_token))
    tokenizer.add_tokens(missing)
    tokenizer.chat_template = other.get_chat_template()
    if other.eos_token:
        tokenizer.eos_token = other.eos_token
    ids: list[int] = tokenizer.convert_tokens_to_ids([token.content for token in missing])
    return ids


def fit_embeddings(model: Any, tokenizer: Any, multiple: int | None) -> list[int]:
    """Grow embeddings and head until each token has a row, and fill the tokenizer up to the last; the fillers' ids.

    Raises:
        ModelError: the model has an adapter around it, and would have to grow.
    """
    if multiple is not None and multiple < 1:
        raise ModelError(f"resize_to_multiple_of is {multiple}.", fix="Give a number of rows from 1 on, or None.")
    rows = num_rows(model)
    vocabulary = tokenizer.get_vocab()
    wanted = max(rows, max(vocabulary.values()) + 1)
    wanted += -wanted % (multiple or 1)
    if wanted != rows:
        if hasattr(model, "peft_config"):
            raise _has_adapter("chat_template_path")
        # transformers draws new rows around the mean of the old ones, in embeddings and in an untied head alike
        model.resize_token_embeddings(wanted)
    fillers = _fillers(vocabulary, wanted - max(vocabulary.values()) - 1)
    tokenizer.add_tokens(fillers)
    ids: list[int] = tokenizer.convert_tokens_to_ids(fillers)
    return ids


def stop_where_cloned(model: Any, tokenizer: Any) -> None:
    """Generation stops where turns of the cloned template end, and nowhere else; the EOS stands everywhere."""
    ends = dict.fromkeys(filter(None, (turn_end(tokenizer), tokenizer.eos_token)))
    ids = [tokenizer.convert_tokens_to_ids(token) for token in ends]
    if not ids:
        return
    model.config.get_text_config().eos_token_id = tokenizer.eos_token_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = ids[0] if len(ids) == 1 else ids


def num_rows(model: Any) -> int:
    """Rows of the model's embeddings, which is more than the tokenizer's vocabulary in many models."""
    embeddings = model.get_input_embeddings()
    # under ZeRO-3 the weight itself is elsewhere, and has no rows here
    found = getattr(embeddings, "num_embeddings", None)
    return int(embeddings.weight.shape[0] if found is None else found)


def set_eos_token(tokenizer: Any, token: str) -> None:
    """Make `token` the tokenizer's EOS.

    Raises:
        ModelError: the vocabulary does not have it.
    """
    if token not in tokenizer.get_vocab():
        raise ModelError(
            f'the token "{token}" is not in the vocabulary.',
            where="eos_token",
            fix="Use a token that the tokenizer has, such as the one that ends a turn in its chat template.",
        )
    tokenizer.eos_token = token


def set_pad_token(tokenizer: Any, token: str) -> None:
    """Make `token` the tokenizer's padding token.

    Raises:
        ModelError: the vocabulary does not have it.
    """
    if token not in tokenizer.get_vocab():
        raise ModelError(
            f'the token "{token}" is not in the vocabulary.', where="pad_token", fix="Use one that it has."
        )
    tokenizer.pad_token = token


def _tokenizer_of(source: str) -> Any:
    from transformers import AutoTokenizer

    path = Path(source).expanduser()
    where = f"chat_template_path {source}"
    if not clones_tokenizer(source):
        raise ModelError(
            "this is a file with a template alone, and brings no tokens.",
            where=where,
            fix="Name a tokenizer, or set tokenizer.chat_template to the file's text.",
        )
    if not path.exists() and source.startswith((".", "/", "~")):
        raise ModelError("no such folder.", where=where, fix="Give a folder with a tokenizer, or a hub id.")
    try:
        return AutoTokenizer.from_pretrained(path if path.exists() else source)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"no tokenizer can be loaded from there ({reason.rstrip(':. ')}).",
            where=where,
            fix="Give a folder with a tokenizer, a hub id, or (to chat_template_path) a .jinja or .j2 file.",
        ) from error


def _special(token: str) -> Any:
    from transformers import AddedToken

    return AddedToken(token, special=True)


def _fillers(vocabulary: Iterable[str], count: int) -> list[str]:
    known = set(vocabulary)
    names = (f"<extra_id_{i}>" for i in range(len(known) + count))
    free = (name for name in names if name not in known)
    return [next(free) for _ in range(count)]


def _has_adapter(where: str) -> ModelError:
    return ModelError(
        "the model has an adapter around it, and its embeddings cannot grow beneath that.",
        where=where,
        fix="Clone the template into the base model first, and put the adapter on it then.",
    )


def _without_generation_marks(template: str) -> str:
    # transformers' own extension of Jinja; it is no syntax of plain Jinja
    import re

    return re.sub(r"\{%-?\s*(?:end)?generation\s*-?%\}", "", template)
