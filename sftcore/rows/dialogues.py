"""Conversations that are no list of messages: texts in turn, pairs of a question and its answer, a transcript."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sftcore.core.errors import RowError
from sftcore.rows.roles import is_role
from sftcore.util.shown import shortened

_PAIRS = (
    ("input", "output"), ("human", "assistant"), ("user", "assistant"), ("human", "bot"), ("human", "moss"),
    ("user", "bot"), ("question", "answer"), ("query", "response"), ("prompt", "response"), ("prompt", "completion"),
    ("instruction", "output"), ("instruction", "response"), ("q", "a"),
)  # fmt: skip
"""What a question and its answer are called in one mapping."""

_SPEAKERS, _WORDS = ("role", "from", "speaker", "author"), ("content", "value", "text", "message", "utterance")
"""What a turn calls its speaker and what is said."""

_STYLES = {
    "USER": {"SYSTEM": "system", "USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"},
    "Human": {"System": "system", "Human": "user", "Assistant": "assistant"},
    "User": {"System": "system", "User": "user", "Assistant": "assistant"},
}
"""How transcripts mark who speaks, by the word for the user."""

_ENDS = re.compile(r"\s*(?:<\|endoftext\|>|</s>|<eoh>|<eom>|<eot>|<eoc>|<eor>)?\s*\Z")
_MOSS = re.compile(r"\A<\|(?:Human|MOSS)\|>:\s*")


def as_turns(value: Any, where: str) -> Any:
    """Turns with role and content, where the value holds a conversation in another shape; else the value itself.

    >>> as_turns(["2 + 2?", "4"], "data")
    [{'role': 'user', 'content': '2 + 2?'}, {'role': 'assistant', 'content': '4'}]
    >>> as_turns([{"input": "2 + 2?", "output": "4"}], "data") == as_turns("USER: 2 + 2?\\n\\nASSISTANT: 4", "data")
    True

    Raises:
        RowError: a text is neither JSON nor a transcript, or a turn holds something that is not read.
    """
    if isinstance(value, str):
        value = _parsed(value, where)
    if isinstance(value, Mapping):
        value = _numbered(value)
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or not value:
        return value
    first = value[0]
    if all(isinstance(one, str) for one in value):
        return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(value)]
    if all(isinstance(one, (list, tuple)) and len(one) == 2 for one in value):
        if all(is_role(one[0]) for one in value):
            return [{"role": one[0], "content": one[1]} for one in value]
        pairs = [({"user": one[0], "assistant": one[1]}, f"{where}[{i}]") for i, one in enumerate(value)]
        return [turn for pair, place in pairs for turn in _both(pair, ("user", "assistant"), place)]
    if not isinstance(first, Mapping):
        return value
    if names := _pair_in(first):
        return [turn for i, one in enumerate(value) for turn in _both(one, names, f"{where}[{i}]")]
    return [_spoken(turn) for turn in value]


def _parsed(text: str, where: str) -> Any:
    if text.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise RowError(f'the column "{where}" is not valid JSON: {error}.', fix="Give a list of turns.") from None
    turns = list(_transcribed(text))
    if not turns:
        raise RowError(
            f'the column "{where}" is a text in which nobody is marked as speaking: {shortened(text)}.',
            fix="Write a list of messages, or begin each turn on a line of its own with USER: or ASSISTANT:.",
        )
    return turns


def _transcribed(text: str) -> Iterator[dict[str, Any]]:
    """The turns of a transcript: each begins on a line of its own, and all are marked in the style of the first."""
    begin = re.match(r"\s*(SYSTEM|USER|Human|User|System)\s*:", text)
    if begin is None:
        return
    style = next((name for name in _STYLES if re.search(rf"^{name}\s*:", text.lstrip(), re.MULTILINE)), None)
    if style is None:
        return
    speakers = _STYLES[style]
    marks = list(re.finditer(rf"^({'|'.join(speakers)})\s*:[ \t]*", text, re.MULTILINE))
    for mark, after in zip(marks, [*marks[1:], None], strict=True):
        said = text[mark.end() : after.start() if after else len(text)]
        yield {"role": speakers[mark[1]], "content": _ENDS.sub("", said)}


def _numbered(turns: Mapping[str, Any]) -> Any:
    """The turns of a mapping from their numbers (`turn_1`), as MOSS has them, in order."""
    found = [key for key in turns if turns[key] is not None]
    if not found or not all(re.fullmatch(r"(?:turn_?)?\d+", str(key)) for key in found):
        return turns
    return [turns[key] for key in sorted(found, key=lambda key: int(re.sub(r"\D", "", str(key))))]


def _pair_in(turn: Mapping[str, Any]) -> tuple[str, str] | None:
    """The names of question and answer in this mapping, as it spells them."""
    spelled = {str(key).lower(): key for key in turn}
    if {"role", "from"} & spelled.keys():
        return None
    found = next((pair for pair in _PAIRS if set(pair) <= spelled.keys()), None)
    return found and (spelled[found[0]], spelled[found[1]])


def _both(pair: Any, names: tuple[str, str], where: str) -> Iterator[dict[str, Any]]:
    if not isinstance(pair, Mapping):
        raise RowError(f"{where} is not a pair of {names[0]} and {names[1]}: {shortened(pair)}.")
    others = [key for key, value in pair.items() if key not in names and value not in (None, "", [], {})]
    if others:
        raise RowError(
            f'{where} holds "{others[0]}" beside {names[0]} and {names[1]}, which would be left out.',
            fix="Write the conversation as a list of messages, or remove it.",
        )
    for role, name in zip(("user", "assistant"), names, strict=True):
        if (words := pair.get(name)) is not None or role == "user":
            if isinstance(words, str) and (marked := _MOSS.match(words)):
                words = _ENDS.sub("", words[marked.end() :])
            yield {"role": role, "content": words}


def _spoken(turn: Any) -> Any:
    """The turn with role and content, or from and value, where it calls them otherwise."""
    if not isinstance(turn, Mapping) or ("role" in turn and "content" in turn) or ("from" in turn and "value" in turn):
        return turn
    speaker = next((key for key in _SPEAKERS if turn.get(key) is not None), None)
    words = next((key for key in _WORDS if turn.get(key) is not None), None)
    if speaker is None or words is None:
        return turn
    rest = {key: value for key, value in turn.items() if key not in (speaker, words)}
    names = ("role", "content") if speaker == "role" else ("from", "value")
    return {**rest, names[0]: turn[speaker], names[1]: turn[words]}
