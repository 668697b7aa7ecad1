"""The chat set-up as plain values: what a run trained with, and what a saved folder would be served with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from sftcore.chat.stops import as_list, turn_end
from sftcore.chat.template import refuse_unbounded
from sftcore.chat.tokens import load_tokenizer
from sftcore.core.errors import ModelError

_WORDS = ("What is 17 x 3?", "It is 51.", "And in  words?", "Fifty-one.")
_TEXTS = (
    "Hello, world! 1234567890",
    " two  spaces,\ttab\nnewline\r\n",
    "naïve façade — “quotes” 你好，世界 🙂 Привет",
    "def f(x: int) -> str:\n    return f'{x:>5}'  # comment",
)
"""Texts that different tokenizers split differently."""

_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")


@frozen
class Chat:
    """What training and serving must agree on.

    template_sha256: hash of the chat template, or None if there is none.
    rendered: a conversation that it rendered, or None if there is no template or it refuses the conversation.
    dated: whether the rendering changes from day to day.
    stop: the token that ends answers. stop_ids: the ids at which generation stops. pad_id: what generation pads with.
    specials: the named special tokens. added_sha256: hash of all added tokens with their ids.
    size: size of the vocabulary without added tokens. rows: rows of the embeddings, or None if they are not known.
    probes: texts with their ids.
    bos: how many BOS tokens begin the rendered conversation, and a text, when tokenized with special tokens.
    """

    template_sha256: str | None
    rendered: str | None
    dated: bool
    stop: str | None
    stop_ids: list[int]
    pad_id: int | None
    specials: dict[str, str | None]
    ids: dict[str, int]
    added_sha256: str
    size: int
    rows: int | None
    probes: list[dict[str, Any]]
    bos: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """The values as they stand in the manifest."""
        return attrs.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Chat:
        """Read the values of a manifest, of this version or a later one.

        Raises:
            ModelError: something is missing.
        """
        names = [one.name for one in attrs.fields(cls)]
        if missing := [name for name in names if name not in values]:
            raise ModelError(f"the record of the chat set-up lacks {', '.join(missing)}.", where="manifest.json: chat")
        return cls(**{name: values[name] for name in names})


@frozen
class Served:
    """A saved folder, or a hub id, as plain transformers and peft read it."""

    where: str
    tokenizer: Any
    chat: Chat
    generation: Mapping[str, Any] | None
    config: Mapping[str, Any]
    adapter: Mapping[str, Any] | None
    manifest: Mapping[str, Any]

    @property
    def record(self) -> Chat | None:
        """What the run that saved the folder trained with, or None if it left no record."""
        return Chat.from_dict(self.manifest["chat"]) if "chat" in self.manifest else None


def chat_of(tokenizer: Any, *, stop: str | None, stop_ids: Sequence[int], pad_id: int | None, rows: int | None) -> Chat:
    """The chat set-up of this tokenizer and generation configuration; without `stop`, the chat template tells it."""
    vocabulary = tokenizer.get_vocab()
    added = {token.content: index for index, token in tokenizer.added_tokens_decoder.items()}
    template = template_of(tokenizer)
    rendered = render(tokenizer)
    specials = {name: getattr(tokenizer, name, None) for name in _NAMED}
    stop = stop or turn_end(tokenizer) or tokenizer.eos_token
    named = filter(None, [*specials.values(), stop])
    texts = [*([rendered] if rendered else []), *_TEXTS, " ".join(sorted(added)[:64])]
    return Chat(
        template_sha256=_sha256(template) if template else None,
        rendered=rendered,
        dated=bool(template) and "strftime_now" in str(template),
        stop=stop,
        stop_ids=list(stop_ids),
        pad_id=pad_id,
        specials=specials,
        ids={token: vocabulary[token] for token in dict.fromkeys(named) if token in vocabulary},
        added_sha256=_sha256(json.dumps(sorted(added.items()))),
        size=max((index for token, index in vocabulary.items() if token not in added), default=-1) + 1,
        rows=rows,
        probes=[{"text": text, "ids": ids_of(tokenizer, text)} for text in texts],
        bos={"chat": _leading_bos(tokenizer, rendered or ""), "text": _leading_bos(tokenizer, _TEXTS[0])},
    )


def template_of(tokenizer: Any) -> str | None:
    """The template for conversations without tools."""
    if not tokenizer.chat_template:
        return None
    try:
        return str(tokenizer.get_chat_template())
    except ValueError:  # several named ones, and none of them is the default
        return None


def render(tokenizer: Any) -> str | None:
    """A conversation rendered by transformers' own `apply_chat_template`, or None if it has no template or refuses."""
    if template_of(tokenizer) is None:
        return None
    for wrapped in (False, True):
        contents = [[{"type": "text", "text": words}] if wrapped else words for words in _WORDS]
        roles = ("user", "assistant") * 2
        turns = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        refuse_unbounded(tokenizer, turns)
        try:
            text: str = tokenizer.apply_chat_template(turns, tokenize=False)
        except Exception:  # templates raise TemplateError on purpose and Python errors by accident
            continue
        if _WORDS[0] in text and _WORDS[-1] in text:
            return text
    return None


def ids_of(tokenizer: Any, text: str) -> list[int]:
    """The text's tokens, as rendered conversations are tokenised."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def read_served(name: str) -> Served:
    """Read what this folder or hub id holds, except its weights.

    Raises:
        ModelError: there is no such folder, or no tokenizer can be loaded from it.
    """
    path = Path(name).expanduser()
    fix = "Give a folder that save_model wrote, or a hub id."
    if not path.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ModelError("the folder does not exist.", where=name, fix=fix)
    if path.is_file():
        raise ModelError("this is a file, not a folder.", where=name, fix=fix)
    source = str(path) if path.exists() else name
    adapter = _json(source, "adapter_config.json")
    base = str((adapter or {}).get("base_model_name_or_path") or "")
    own, of_base = (_json(one, "config.json") if one else None for one in (source, base))
    config = _text(own or of_base or {})
    generation: Mapping[str, Any] | None = _json(source, "generation_config.json")
    of_base = _json(base, "generation_config.json") if generation is None and base else None
    effective = next((one for one in (generation, of_base) if one is not None), config)
    manifest: Mapping[str, Any] = _json(source, "manifest.json") or {}
    fix = "Save the run's tokenizer there: tokenizer.save_pretrained(folder)."
    tokenizer = load_tokenizer(source, "no tokenizer can be loaded", source, fix)
    rows = config.get("vocab_size")
    if adapter is not None:
        # an adapter is saved with the rows that it needs, while its base may have fewer
        rows = (manifest.get("chat") or {}).get("rows", rows)
    stop_ids = as_list(effective.get("eos_token_id"))
    chat = chat_of(tokenizer, stop=None, stop_ids=stop_ids, pad_id=effective.get("pad_token_id"), rows=rows)
    return Served(name, tokenizer, chat, generation, config, adapter, manifest)


def _json(source: str, name: str) -> dict[str, Any] | None:
    """A JSON file of a folder or hub id, or None if it does not exist."""
    from transformers.utils import cached_file

    if not Path(source).expanduser().is_dir() and source.startswith((".", "/", "~")):
        return None
    path = cached_file(
        source,
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return None
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"this file is not valid JSON: {error}.", where=f"{source}/{name}") from None
    if not isinstance(found, dict):
        raise ModelError(f"expected an object, got {type(found).__name__}.", where=f"{source}/{name}")
    return found


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a configuration."""
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, dict) else config


def _leading_bos(tokenizer: Any, text: str) -> int:
    if tokenizer.bos_token_id is None:
        return 0
    ids = tokenizer(text)["input_ids"]
    return next((count for count, index in enumerate(ids) if index != tokenizer.bos_token_id), len(ids))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
