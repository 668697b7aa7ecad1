"""Chooses where generation stops and what it pads with, from what the run trains; every change is noted."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

from sftcore.chat.render import Renderer
from sftcore.chat.template import SpecialTexts
from sftcore.core.errors import DataError, ModelError, quoted
from sftcore.core.types import Example, Message

_QUESTION, _ANSWER = "q7zXquestionXz7q", "q7zXanswerXz7q"
_PAD = re.compile(r"(?<![a-z])pad(?![a-z])", re.IGNORECASE)
_UNUSED = re.compile(r"reserved|unused|extra_id|dummy", re.IGNORECASE)
_IN_PLACE_OF = re.compile(r"image|video|vision|audio|fim", re.IGNORECASE)
"""Tokens that have another meaning in models that use them."""


def probe_turns() -> list[Message]:
    """A question with an answer to train on; the words occur nowhere else."""
    return [Message("user", _QUESTION), Message("assistant", _ANSWER, train=True)]


def turn_end(tokenizer: Any) -> str | None:
    """The token that ends the assistant's last turn in training: the last special token of the supervised text.

    It is read from a rendered conversation, to which it is appended, as in a run, if the template writes none. None if
    there is no template, or if its turns cannot be located.
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


def stops_of_calls(tokenizer: Any) -> tuple[str, ...]:
    """The tokens other than `turn_end` at which serving has to stop, because a turn that calls a tool ends with them.

    A token behind which the model goes on in any turn (gpt-oss ends its thinking and earlier answers with `<|end|>`) is
    none of them.
    """
    return _ends_of_calls(_tried_turns(tokenizer), SpecialTexts.of(tokenizer), turn_end(tokenizer))


def _ends_of_calls(turns: list[tuple[bool, str]], special: SpecialTexts, answers_end: str | None) -> tuple[str, ...]:
    inside = _inside(turns, special)
    found = dict.fromkeys(special.at_end(text.rstrip()) for calls, text in turns if calls)
    return tuple(token for token in found if token and token not in inside and token != answers_end)


def _tried_turns(tokenizer: Any) -> list[tuple[bool, str]]:
    """The supervised texts of turns of each kind that the template takes, and whether they call a tool."""
    thought, call = "q7zXthoughtXz7q", {"name": "q7zXtool", "arguments": {"q7zXkey": "q7zXvalue"}}
    calls = [{"id": f"call0000{i}", "type": "function", "function": call} for i in range(2)]
    schema = {"name": "q7zXtool", "description": "none", "parameters": {"type": "object", "properties": {}}}
    found = []
    renderer = Renderer(tokenizer)
    for reasoning in (None, thought):
        for made in ([], calls[:1], calls):
            content = "" if made else _ANSWER
            answer = Message("assistant", content, train=True, reasoning=reasoning, tool_calls=made)
            tools = [{"type": "function", "function": schema}] if made else None
            try:
                one = renderer.render(Example(messages=[Message("user", _QUESTION), answer], tools=tools))
            except DataError:  # the template does not take such a turn
                continue
            found.append((bool(made), "".join(one.text[span.start : span.end] for span in one.spans or ())))
    return found


def _inside(turns: list[tuple[bool, str]], special: SpecialTexts) -> set[str]:
    """The tokens that stand in these turns before their end."""
    found: set[str] = set()
    for _, text in turns:
        end = len(text.rstrip()) - len(special.at_end(text.rstrip()))
        found |= {token.group() for token in special.added.finditer(text, 0, end)}
    return found


def trained_stop(tokenizer: Any, labels: Collection[int] | None = None) -> str | None:
    """The token that ends the run's answers: the chat template's, or EOS if the data are texts.

    Args:
        tokenizer: the run's tokenizer, with its chat template.
        labels: the ids that some of the rows supervise, or None if they are not known.
    """
    eos: str | None = tokenizer.eos_token
    return turn_end(tokenizer) if uses_template(tokenizer, labels) else eos


def uses_template(tokenizer: Any, labels: Collection[int] | None) -> bool:
    """Whether rows with these labels are conversations. Long ones may be cut before they end; texts end with EOS."""
    end = turn_end(tokenizer)
    if end is None:
        return False
    return labels is None or tokenizer.convert_tokens_to_ids(end) in labels or tokenizer.eos_token_id not in labels


def align_stop(model: Any, tokenizer: Any, labels: Collection[int] | None, *, eos_is_chosen: bool) -> tuple[str, ...]:
    """Make generation stop where the run's answers end; returns notes on what was changed.

    With `eos_is_chosen` the tokenizer's EOS comes first. Otherwise, if generation did not stop at the token that ends
    answers, that token becomes the EOS of tokenizer and model, unless the template itself prints the EOS.
    """
    stop, special = trained_stop(tokenizer, labels), SpecialTexts.of(tokenizer)
    turns = _tried_turns(tokenizer) if uses_template(tokenizer, labels) else []
    goes_on = stop != tokenizer.eos_token and stop in _inside(turns, special)
    notes: tuple[str, ...]
    if goes_on:
        notes = (f'generation does not stop at "{stop}", though answers end with it: the model goes on behind it',)
    else:
        notes = _align_answers(model, tokenizer, stop, eos_is_chosen=eos_is_chosen)
    if not _generates(model):
        return notes
    more = [tokenizer.convert_tokens_to_ids(token) for token in _ends_of_calls(turns, special, stop)]
    missing = [index for index in more if index not in known_stops(model)]
    if not missing:
        return notes
    model.generation_config.eos_token_id = [*known_stops(model), *missing]
    named = quoted(tokenizer.convert_ids_to_tokens(missing))
    return (*notes, f"generation stops at {named} too, which ends turns that call a tool")


def _align_answers(model: Any, tokenizer: Any, stop: str | None, *, eos_is_chosen: bool) -> tuple[str, ...]:
    eos = tokenizer.eos_token
    if stop is None:
        return ()
    stop_id = tokenizer.convert_tokens_to_ids(stop)
    if eos_is_chosen:
        stop_at(model, [tokenizer.eos_token_id, *([stop_id] if stop != eos else [])])
        note = f'generation stops at "{stop}" too, because the chat template ends turns with it, not with "{eos}"'
        return (note,) if stop != eos else ()
    if stop_id in known_stops(model) or not _generates(model):
        return ()
    stop_at(model, [stop_id])
    if stop == eos:
        return (f'generation stops at "{stop}", which ends answers in training',)
    before, taken = rendering(tokenizer), "and it becomes the tokenizer's EOS"
    tokenizer.eos_token = stop
    if rendering(tokenizer) != before:
        tokenizer.eos_token = eos
        taken = "while the tokenizer keeps its EOS, because the template prints it"
    return (
        f'the chat template ends turns with "{stop}", but the EOS was "{eos}": generation now stops at "{stop}" first, '
        f"{taken} (set eos_token to choose another)",
    )


def align_pad(model: Any, tokenizer: Any, labels: Collection[int] | None) -> tuple[str, ...]:
    """Make sure that the token that ends answers is not used for padding; returns a note if the padding token changed.

    Further training ignores padding, so a stop token that is used for padding is never learned.

    Raises:
        ModelError: the model has no row for the padding token, and no other token can be used.
    """
    stop = trained_stop(tokenizer, labels)
    stop_id = None if stop is None else tokenizer.convert_tokens_to_ids(stop)
    before = tokenizer.pad_token
    beyond = before is not None and not _has_row(model, tokenizer.pad_token_id)
    if before is None or beyond or tokenizer.pad_token_id == stop_id:
        pad = next(_paddings(model, tokenizer, stop_id), None)
        if beyond and pad is None:
            raise ModelError(
                f'the padding token "{before}" has no row in the model\'s embeddings.',
                fix="Let the embeddings grow: model.resize_token_embeddings(len(tokenizer)).",
            )
        if pad is None:
            why = "because the vocabulary has no other suitable token"
            return () if before is None else (f'padding is "{before}", which ends answers too, {why}',)
        tokenizer.pad_token = pad
    _pad_with(model, tokenizer.pad_token_id, stop_id)
    if tokenizer.pad_token == before:
        return ()
    why = "the tokenizer had no padding token" if before is None else f'"{before}" ends answers'
    why = f'"{before}" has no row in the embeddings' if beyond else why
    return (f'padding is now "{tokenizer.pad_token}", because {why}',)


def known_stops(model: Any) -> list[int]:
    """The ids at which generation stops, according to the generation configuration."""
    config = getattr(model, "generation_config", None)
    return as_list(config.eos_token_id) if config is not None else []


def as_list(ids: int | list[int] | None) -> list[int]:
    """One id, several or none, as a list."""
    return list(ids) if isinstance(ids, (list, tuple)) else [] if ids is None else [ids]


def stop_at(model: Any, ids: list[int]) -> None:
    """Put these ids first in the list of stops for generation, and the first one into the model's configuration."""
    model.config.get_text_config().eos_token_id = ids[0]
    if _generates(model):
        stops = list(dict.fromkeys([*ids, *known_stops(model)]))
        model.generation_config.eos_token_id = stops


def _generates(model: Any) -> bool:
    return getattr(model, "generation_config", None) is not None


def rendering(tokenizer: Any) -> str:
    """Two questions with their answers, rendered as in a run.

    Raises:
        RowError: the chat template refuses them.
    """
    turns = [Message("user", _QUESTION), Message("assistant", _ANSWER)] * 2
    return Renderer(tokenizer).render(Example(messages=turns)).text


def _paddings(model: Any, tokenizer: Any, stop_id: int | None) -> Iterator[str]:
    """Candidates for padding, best first: the model's own, tokens named for padding, unused ones, the unknown token."""
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
        # torch gives the padding row no gradient, so the stop token would never be learned as an input
        embeddings.padding_idx = pad_id
