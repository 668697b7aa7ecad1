"""Finds faults in the texts of an example: roles out of order, turns without words, wrong encodings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from attrs import frozen

from sftcore.core.types import Example, Message

Fault: TypeAlias = tuple[str, str]
"""The id of a finding, and where in the row it is and what it is."""

LONG_CHARACTERS = 32_000
"""A turn or row with more characters than this is reported (about 8,000 tokens of English)."""


@frozen
class Words:
    """A text of an example: who says it, and where in the example it is."""

    role: str
    where: str
    text: str


# --- Texts and turns ------------------------------------------------------------------------------------------------
def turns_of(example: Example) -> list[Message]:
    """The messages of the example, or of its prompt and completion; none if it consists of texts or tokens."""
    if example.messages is not None:
        return list(example.messages)
    prompt, completion = example.prompt or (), example.completion or ()
    return [] if isinstance(prompt, str) or isinstance(completion, str) else [*prompt, *completion]


def words_of(example: Example) -> list[Words]:
    """All texts of an example: contents, reasoning, prompt, completion."""
    if example.text is not None:
        return [Words("text", "text", example.text)]
    if isinstance(example.prompt, str):
        return [Words("prompt", "prompt", example.prompt), Words("completion", "completion", str(example.completion))]
    found = []
    for i, turn in enumerate(turns_of(example)):
        where = f"turn {i} ({turn.role})"
        found.append(Words(turn.role, where, content_of(turn)))
        if turn.reasoning:
            found.append(Words(turn.role, f"{where}, reasoning", _as_text(turn.reasoning)))
    return found


def content_of(turn: Message) -> str:
    """The turn's words; parts that are not texts are ignored."""
    if isinstance(turn.content, (list, tuple)):
        return "".join(_as_text(getattr(part, "text", None)) for part in turn.content)
    return _as_text(turn.content)


def _as_text(value: object) -> str:
    # a format may let through values that are not texts
    return value if isinstance(value, str) else "" if value is None else str(value)


def answer_of(example: Example) -> tuple[str, str] | None:
    """Prompt and answer as texts to compare, or None if the example cannot be divided in this way."""
    if isinstance(example.prompt, str):
        return example.prompt, str(example.completion)
    turns = turns_of(example)
    last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=0)
    if not last:
        return None
    # tools are part of the prompt
    return repr([_said(turn) for turn in turns[:last]] + list(example.tools or ())), repr(_said(turns[last]))


def _said(turn: Message) -> tuple[str, str, str, str]:
    return turn.role, content_of(turn), _as_text(turn.reasoning), repr(list(turn.tool_calls)) if turn.tool_calls else ""


def whole_of(example: Example) -> str:
    """The whole example as one text to compare."""
    if example.tokens is not None:
        return repr((list(example.tokens.input_ids), example.tokens.labels))
    if example.text is not None or isinstance(example.prompt, str):
        return repr((example.text, example.prompt, example.completion))
    return repr([_said(turn) for turn in turns_of(example)] + list(example.tools or ()))


# --- Turns ----------------------------------------------------------------------------------------------------------
def turn_faults(example: Example) -> Iterator[Fault]:
    """Missing answers, turns without words, and roles in an order that no conversation has."""
    if example.tokens is not None:
        return
    turns = turns_of(example)
    if not turns:
        for one in words_of(example):
            if not one.text.strip():
                yield "missing-answer" if one.role == "completion" else "empty-turn", f"the {one.where} has no words"
        return
    answers = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
    if not answers:
        yield "missing-answer", "the assistant has no turn"
    for i, turn in enumerate(turns):
        if not content_of(turn).strip() and not turn.tool_calls and not _has_other_parts(turn):
            kind = "missing-answer" if answers and i == answers[-1] else "empty-turn"
            yield kind, f"turn {i} ({turn.role}) has no words"
    yield from _order(turns)
    if answers and turns[-1].role != "assistant":
        yield "ends-unanswered", f"the last turn is the {turns[-1].role}'s"


def _order(turns: Sequence[Message]) -> Iterator[Fault]:
    talk = [i for i, turn in enumerate(turns) if turn.role not in ("system", "developer")]
    if talk and turns[talk[0]].role == "assistant":
        yield "assistant-first", f"turn {talk[0]} is the assistant's, and nobody spoke before it"
    for i, turn in enumerate(turns):
        if turn.role in ("system", "developer"):
            if talk and i > talk[0]:
                yield "system-not-first", f"turn {i} ({turn.role})"
        elif turn.role == "tool":
            if not _is_called(turns, i):
                yield "tool-without-call", f"turn {i}"
        elif i and turn.role == turns[i - 1].role:
            yield "two-in-a-row", f"turns {i - 1} and {i} ({turn.role})"


def _is_called(turns: Sequence[Message], index: int) -> bool:
    """Whether a tool's answer follows a call: the turn before the tools' answers must be an assistant's with calls."""
    caller = next((turn for turn in reversed(turns[:index]) if turn.role != "tool"), None)
    if caller is None or caller.role != "assistant":
        return False
    ids = {call.get("id") for call in caller.tool_calls} - {None}
    wanted = turns[index].tool_call_id
    if wanted is not None and ids and wanted not in ids:
        return False
    # some formats keep calls as text of the assistant
    return bool(caller.tool_calls) or re.search(r"^\s*[\[{]|<\w*(?:call|function)", content_of(caller)) is not None


def _has_other_parts(turn: Message) -> bool:
    parts = turn.content if isinstance(turn.content, (list, tuple)) else ()
    return any(getattr(part, "type", "") != "text" for part in parts)


# --- Texts ----------------------------------------------------------------------------------------------------------
_PATTERNS = {
    "replacement-character": re.compile("\ufffd"),
    "bom-inside": re.compile("\ufeff"),
    "control-characters": re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"),
    "invisible-characters": re.compile("[\u200b\u202a-\u202e\u2060\u2066-\u2069\U000e0000-\U000e007f]"),
    "html-entities": re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|#\d{1,7}|#x[0-9a-fA-F]{1,6});"),
}
# UTF-8 read as Windows-1252: a lead byte and its continuation bytes, each shown as a character of that code page.
_BYTE = (
    "[\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc"
    "\u2013-\u2026\u2030\u2039\u203a\u20ac\u2122]"
)
_ANY = re.compile("|".join(["[\u00c2-\u00f4]", *(pattern.pattern for pattern in _PATTERNS.values())]))
"""A quick test, because most texts have none of these."""
_MISREAD = re.compile(f"(?:[\u00c2-\u00df]{_BYTE}|[\u00e0-\u00ef]{_BYTE}{{2}}|[\u00f0-\u00f4]{_BYTE}{{3}})+")


def text_faults(words: Words) -> Iterator[Fault]:
    """Wrong encodings, and characters that nobody wants to train on; each kind is reported once for a text.

    >>> list(text_faults(Words("user", "turn 0 (user)", "cafÃ©")))
    [('mojibake', 'turn 0 (user): "Ã©" was "é"')]
    """
    if _ANY.search(words.text) is None:
        return
    for fault, pattern in _PATTERNS.items():
        if found := pattern.search(words.text):
            yield fault, f"{words.where}: {_spelled(found.group())} at character {found.start()}"
    for found in _MISREAD.finditer(words.text):
        if (meant := _meant(found.group())) is not None:
            yield "mojibake", f'{words.where}: "{_spelled(found.group())}" was "{_spelled(meant)}"'
            return


def _meant(text: str) -> str | None:
    """The text that was misread, or None if these may be the intended characters.

    `É»` in `«CAFÉ»` would decode too, so a single misread character is reported only if no language writes it.
    """
    try:
        raw = (bytes([ord(char)]) if ord(char) < 256 else char.encode("cp1252") for char in text)
        meant = b"".join(raw).decode()
    except (UnicodeDecodeError, UnicodeEncodeError):
        return None
    alone = text[0] in "ÂÃ" or len(meant) > 1 or text[0] == "ð" or (text[0] == "â" and "\u2000" <= meant <= "\u27ff")
    return meant if (alone and meant.isprintable()) or meant == "\xa0" else None


def _spelled(text: str) -> str:
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode() for char in text
    )


def special_text_pattern(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern for a tokenizer's special tokens inside contents; tokens of one character are too common to report."""
    longest_first = sorted((text for text in texts if len(text) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "$^")
