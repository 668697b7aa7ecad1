"""Where generation stops and what pads: found from what the run trains, and said of every change."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

from sftcore.chat.render import Renderer
from sftcore.chat.template import SpecialTexts
from sftcore.core.errors import DataError, ModelError
from sftcore.core.types import Example, Message

_QUESTION, _ANSWER = "q7zXquestionXz7q", "q7zXanswerXz7q"
_PAD = re.compile(r"(?<![a-z])pad(?![a-z])", re.IGNORECASE)
_UNUSED = re.compile(r"reserved|unused|extra_id|dummy", re.IGNORECASE)
_IN_PLACE_OF = re.compile(r"image|video|vision|audio|fim", re.IGNORECASE)
"""Tokens that stand for something else in models that read it."""


def probe_turns() -> list[Message]:
    """A question with its answer, which is trained; the words occur nowhere else."""
    return [Message("user", _QUESTION), Message("assistant", _ANSWER, train=True)]


def turn_end(tokenizer: Any) -> str | None:
    """The token with which training ends the assistant's last turn: the last special one of what it supervises.

    It is read off a rendered conversation, and appended there as in a run where the template writes none. None where
    there is no template, or none of its turns can be told apart.
    """
    if not tokenizer.chat_template:
        return None
    try:
        rendered = Renderer(tokenizer).render(Example(messages=probe_turns()))
    except DataError:
        return None
    assert rendered.spans is not None
    start, end = rendered.text.rfind(_ANSWER) + len(_ANSWER), rendered.spans[-1].end
    found = [token.group() for token in SpecialTexts.of(tokenizer).pattern.finditer(rendered.text, start, end)]
    return found[-1] if found else None


def trained_stop(tokenizer: Any, labels: Collection[int] | None = None) -> str | None:
    """The token with which the run's answers end: that of the template, or EOS where the data are texts.

    Args:
        tokenizer: with its chat template.
        labels: ids that some rows supervise; None where they are not known.
    """
    eos: str | None = tokenizer.eos_token
    return turn_end(tokenizer) if uses_template(tokenizer, labels) else eos


def uses_template(tokenizer: Any, labels: Collection[int] | None) -> bool:
    """Whether rows that supervise these ids are conversations: long ones may be cut before any end, texts have EOS."""
    end = turn_end(tokenizer)
    if end is None:
        return False
    return labels is None or tokenizer.convert_tokens_to_ids(end) in labels or tokenizer.eos_token_id not in labels


def align_stop(model: Any, tokenizer: Any, labels: Collection[int] | None, *, eos_is_chosen: bool) -> tuple[str, ...]:
    """Let generation stop where the run's answers end; notes on what was changed.

    With `eos_is_chosen` the tokenizer's EOS comes first. Else the token that ends answers becomes the EOS of tokenizer
    and model where generation did not stop at it, unless the template prints the EOS itself.
    """
    stop, eos = trained_stop(tokenizer, labels), tokenizer.eos_token
    if stop is None:
        return ()
    stop_id = tokenizer.convert_tokens_to_ids(stop)
    if eos_is_chosen:
        stop_at(model, [tokenizer.eos_token_id, *([stop_id] if stop != eos else [])])
        note = f'generation stops at "{stop}" too: the chat template ends turns with it, and not with eos_token "{eos}"'
        return (note,) if stop != eos else ()
    if stop_id in known_stops(model) or not _generates(model):
        return ()
    stop_at(model, [stop_id])
    if stop == eos:
        return (f'generation stops at "{stop}", with which answers end in training',)
    if _take_as_eos(tokenizer, stop):
        taken = "and it is the tokenizer's EOS now"
    else:
        taken = "and the tokenizer's EOS stays, which the template prints"
    return (
        f'the chat template ends turns with "{stop}", and the EOS was "{eos}": generation stops at "{stop}" first, '
        f"{taken} (eos_token chooses another)",
    )


def align_pad(model: Any, tokenizer: Any, labels: Collection[int] | None) -> tuple[str, ...]:
    """Let no token pad that ends the run's answers; a note where another pads from now on.

    Whoever trains on, or reads a batch, takes padding for nothing: a stop token that pads is one that is never learned.

    Raises:
        ModelError: padding is a token for which the model has no row, and no other token can pad.
    """
    stop = trained_stop(tokenizer, labels)
    stop_id = None if stop is None else tokenizer.convert_tokens_to_ids(stop)
    before = tokenizer.pad_token
    beyond = before is not None and not _has_row(model, tokenizer.pad_token_id)
    if before is None or beyond or tokenizer.pad_token_id == stop_id:
        pad = next(_paddings(model, tokenizer, stop_id), None)
        if beyond and pad is None:
            raise ModelError(
                f'padding is "{before}", for which the model has no row.',
                fix="Let the model grow: model.resize_token_embeddings(len(tokenizer)).",
            )
        if pad is None:
            if before is None:
                return ()
            return (f'padding is "{before}", which ends answers too, as the vocabulary has no other token for it',)
        tokenizer.pad_token = pad
    _pad_with(model, tokenizer.pad_token_id, stop_id)
    if tokenizer.pad_token == before:
        return ()
    why = "the tokenizer had none" if before is None else f'"{before}" ends answers'
    why = f'"{before}" has no row in the embeddings' if beyond else why
    return (f'padding is "{tokenizer.pad_token}": {why}',)


def known_stops(model: Any) -> list[int]:
    """The ids at which generation stops, as the generation configuration has them."""
    config = getattr(model, "generation_config", None)
    return as_list(config.eos_token_id) if config is not None else []


def as_list(ids: int | list[int] | None) -> list[int]:
    """One id, several or none, as a list."""
    return list(ids) if isinstance(ids, (list, tuple)) else [] if ids is None else [ids]


def stop_at(model: Any, ids: list[int]) -> None:
    """Put these ids first into the list at which generation stops, and the first into the model's configuration."""
    model.config.get_text_config().eos_token_id = ids[0]
    if _generates(model):
        stops = list(dict.fromkeys([*ids, *known_stops(model)]))
        model.generation_config.eos_token_id = stops


def _generates(model: Any) -> bool:
    return getattr(model, "generation_config", None) is not None


def _take_as_eos(tokenizer: Any, token: str) -> bool:
    """Make it the EOS unless the template renders otherwise then."""
    before, eos = rendering(tokenizer), tokenizer.eos_token
    tokenizer.eos_token = token
    if rendering(tokenizer) == before:
        return True
    tokenizer.eos_token = eos
    return False


def rendering(tokenizer: Any) -> str:
    """Two questions with their answers, as a run renders them.

    Raises:
        RowError: the chat template refuses them.
    """
    turns = [Message("user", _QUESTION), Message("assistant", _ANSWER)] * 2
    return Renderer(tokenizer).render(Example(messages=turns)).text


def _paddings(model: Any, tokenizer: Any, stop_id: int | None) -> Iterator[str]:
    """What may pad, best first: what the model pads with, tokens spelled so, unused ones, the unknown token."""
    vocabulary = tokenizer.get_vocab()
    names = {index: token for token, index in vocabulary.items()}
    generation = getattr(model, "generation_config", None)
    configured = [getattr(one, "pad_token_id", None) for one in (generation, model.config.get_text_config())]
    added = [token.content for token in tokenizer.added_tokens_decoder.values()]
    spelled = [token for token in added if not _IN_PLACE_OF.search(token)]
    candidates = [
        *(names[index] for index in configured if index in names),
        *(token for token in spelled if _PAD.search(token)),
        *(token for token in spelled if _UNUSED.search(token)),
        tokenizer.unk_token,
    ]
    taken = (stop_id, tokenizer.bos_token_id)
    for token in candidates:
        index = vocabulary.get(token) if token else None
        if index is not None and index not in taken and _has_row(model, index):
            yield token


def _has_row(model: Any, index: int) -> bool:
    rows: int = model.get_input_embeddings().weight.shape[0]
    return rows == 0 or index < rows  # under ZeRO-3 the weight is elsewhere


def _pad_with(model: Any, pad_id: int, stop_id: int | None) -> None:
    model.config.get_text_config().pad_token_id = pad_id
    if _generates(model):
        model.generation_config.pad_token_id = pad_id
    embeddings = model.get_input_embeddings()
    if stop_id is not None and getattr(embeddings, "padding_idx", None) == stop_id:
        # torch gives the row of padding no gradient, and the stop token would never be learned as an input
        embeddings.padding_idx = pad_id
