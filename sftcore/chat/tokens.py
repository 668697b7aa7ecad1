"""Sets the chat template and special tokens on the tokenizer; the model follows once it is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sftcore.config.settings.templates import FILES, named, read_template, refuse_large, template_text
from sftcore.core.errors import ModelError, RecipeError


def clones_tokenizer(path: str | None) -> bool:
    """Whether `chat_template_path` names a tokenizer to clone from, rather than a file that holds only a template."""
    return path is not None and Path(path).suffix not in FILES


def set_chat_template(tokenizer: Any, path: str) -> None:
    """Read a .jinja or .j2 file into the tokenizer's chat template.

    Raises:
        RecipeError: the file does not exist, or is not a template.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise RecipeError("no such file.", where=f"chat_template_path {path}")
    tokenizer.chat_template = read_template(file, f"chat_template_path {path}")


def use_template(tokenizer: Any, given: str) -> list[int]:
    """Give the tokenizer a template by name, as a text or from a file. Returns the ids of tokens that are new to it.

    A named template brings the tokens that it writes around turns, where the tokenizer has not got them.

    Raises:
        RecipeError: there is no such template.
    """
    tokenizer.chat_template = template_text(given)
    own = named(given)
    return [] if own is None else add_tokens(tokenizer, own.tokens)


def add_tokens(tokenizer: Any, tokens: Iterable[str], *, special: bool = True) -> list[int]:
    """Add those of these tokens that the tokenizer has not got; returns their ids.

    Special ones can be left out where texts are decoded.
    """
    from transformers import AddedToken

    known = tokenizer.get_vocab()
    missing = [token for token in dict.fromkeys(tokens) if token not in known]
    tokenizer.add_tokens([AddedToken(token, special=special, normalized=False) for token in missing])
    ids: list[int] = tokenizer.convert_tokens_to_ids(missing)
    return ids


def clone_tokens(tokenizer: Any, source: str) -> list[int]:
    """The tokenizer's half of `clone_chat_template`: template, added tokens and EOS. Returns the ids of new tokens.

    Raises:
        ModelError: the tokenizer does not exist, or has no chat template.
    """
    from transformers import AddedToken

    other = _tokenizer_of(source)
    if not other.chat_template:
        raise ModelError(
            "this tokenizer has no chat template.",
            where=f"chat_template_path {source}",
            fix="Name a tokenizer that has one, usually of a model whose name ends with Instruct or Chat.",
        )
    known = tokenizer.get_vocab()
    missing = [token for token in other.added_tokens_decoder.values() if token.content not in known]
    if other.eos_token and other.eos_token not in {*known, *(token.content for token in missing)}:
        missing.append(AddedToken(other.eos_token, special=True))
    tokenizer.add_tokens(missing)
    tokenizer.chat_template = other.get_chat_template()
    if other.eos_token:
        tokenizer.eos_token = other.eos_token
    ids: list[int] = tokenizer.convert_tokens_to_ids([token.content for token in missing])
    return ids


def set_named_token(tokenizer: Any, name: str, token: str) -> None:
    """Make `token` the tokenizer's `eos_token`, `bos_token` or another of its named tokens.

    Where the tokenizer puts its BOS before every text, it puts the new one there.

    Raises:
        ModelError: the vocabulary does not have it.
    """
    if token not in tokenizer.get_vocab():
        such = ", such as the one that ends a turn in its chat template" if name == "eos_token" else ""
        raise ModelError(
            f'the token "{token}" is not in the vocabulary.',
            where=name,
            fix=f"Use a token that the tokenizer has{such}, or add it with new_tokens.",
        )
    before = getattr(tokenizer, name)
    setattr(tokenizer, name, token)
    if name == "bos_token" and before != token:
        _begin_with(tokenizer, before, token)


def _begin_with(tokenizer: Any, before: str | None, token: str) -> None:
    """Put `token` where the tokenizer put its former BOS before every text, if it did.

    Raises:
        ModelError: it goes on with the former one.
    """
    if before is None:
        return
    old, new = (tokenizer.convert_tokens_to_ids(one) for one in (before, token))

    def begins(with_id: int) -> bool:
        return list(tokenizer("x")["input_ids"])[:1] == [with_id]

    if not begins(old):
        return
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is not None and core.post_processor is not None:
        from tokenizers.processors import TemplateProcessing

        ends = list(tokenizer("x")["input_ids"])[-1:] == [tokenizer.eos_token_id]
        known = [(token, new), *([(tokenizer.eos_token, tokenizer.eos_token_id)] if ends else [])]
        after = f" {tokenizer.eos_token}" if ends else ""
        pair = f"{token} $A{after} {token}:1 $B:1{after and after + ':1'}"
        core.post_processor = TemplateProcessing(single=f"{token} $A{after}", pair=pair, special_tokens=known)
    if begins(old):
        raise ModelError(
            f'the tokenizer goes on putting "{before}" before every text.',
            where="bos_token",
            fix="Drop bos_token, or save a tokenizer whose BOS it is.",
        )


def _tokenizer_of(source: str) -> Any:
    path = Path(source).expanduser()
    where = f"chat_template_path {source}"
    if not clones_tokenizer(source):
        raise ModelError(
            "this file holds only a template, and no tokens.",
            where=where,
            fix="Name a tokenizer, or set tokenizer.chat_template to the file's text.",
        )
    if not path.exists() and source.startswith((".", "/", "~")):
        raise ModelError("no such folder.", where=where, fix="Give a folder with a tokenizer, or a hub id.")
    fix = "Give a folder with a tokenizer, a hub id, or for chat_template_path a .jinja or .j2 file."
    return load_tokenizer(str(path) if path.exists() else source, "no tokenizer can be loaded from it", where, fix)


def load_tokenizer(source: str, what: str, where: str, fix: str) -> Any:
    """The tokenizer of a folder or hub id.

    Raises:
        ModelError: it cannot be loaded, with these words and the first line of the reason.
    """
    from transformers import AutoTokenizer

    refuse_large(Path(source))
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"{what} ({reason.rstrip(':. ')}).", where=where, fix=fix) from error
