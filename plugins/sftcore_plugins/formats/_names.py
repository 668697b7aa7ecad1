"""What data sets call the parts of a row, in any capitals: what several formats look for in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from sftcore import Message, Row, RowError
from sftcore.rows import is_null

PAIRS = (
    ("instruction", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("question", "completion"),
    ("query", "response"),
    ("query", "answer"),
    ("instruction", "output"),
    ("instruction", "answer"),
    ("instruction", "completion"),
    ("problem", "solution"),
    ("problem", "generation"),
    ("problem", "answer"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("prompt", "output"),
    ("prompt", "completion"),
    ("user", "assistant"),
    ("human", "assistant"),
    ("human", "bot"),
    ("input", "output"),
    ("inputs", "targets"),
    ("input", "target"),
    ("source", "target"),
    ("question", "output"),
    ("context", "response"),
)
"""A question and its answer, the clearer names first."""

CONTEXTS = (
    "input", "context", "contexts", "passage", "document", "background", "article", "paragraph", "story", "knowledge",
)  # fmt: skip
SYSTEMS = ("system", "system_prompt", "system_message")
HISTORIES = ("history", "chat_history")
REASONINGS = (
    "reasoning", "reasoning_content", "thinking", "chain_of_thought", "cot", "complex_cot", "rationale", "thought",
)  # fmt: skip

_SLIP = 0.8
"""How alike names are, by difflib, of which one is a misspelling of the other; answer and anwser are 0.83."""

ANSWERS = ("completion", "response", "answer", "output", "target", "reply", "assistant")
"""What a column is called that may answer a conversation in another column."""


def answers_in(columns: Sequence[str]) -> list[str]:
    """The columns that may answer a conversation, as they are spelled."""
    spelled = _spelled(columns)
    return [spelled[name] for name in ANSWERS if name in spelled]


def refuse_unanswered(messages: Sequence[Message], row: Row, column: str, answers: Sequence[str]) -> None:
    """Refuse a conversation that ends with the user where its answer stands in another column, which is not read.

    Raises:
        RowError: such a column holds something.
    """
    if not messages or messages[-1].role != "user":
        return
    for name in answers:
        if not is_null(row.get(name)) and row[name] not in ("", []):
            raise RowError(
                f'the conversation ends with the user, and the column "{name}", not read, may hold the answer.',
                fix=f"Read both: format: {{prompt-completion: {{prompt: {column}, completion: {name}}}}}.",
            )


def pair_in(columns: Sequence[str]) -> tuple[str, str] | None:
    """The columns of a question and its answer, as these columns spell them, or misspell them if no pair is right."""
    for spelled in (_spelled(columns), _misspelt(columns)):
        if found := [(spelled[ask], spelled[say]) for ask, say in PAIRS if {ask, say} <= spelled.keys()]:
            return found[0]
    return None


def near(columns: Sequence[str], *names: str) -> str | None:
    """The first column that has one of these names in any capitals, or else is one of them with a slip or two."""
    spelled = _spelled(columns)
    exact = next((column for name, column in spelled.items() if name in names), None)
    return exact or next((spelled[name] for name in spelled if get_close_matches(name, names, cutoff=_SLIP)), None)


def column_in(columns: Sequence[str], names: Sequence[str], *taken: str) -> str | None:
    """The first of these names that is a column, as it is spelled there, and that is not taken."""
    spelled = _spelled(columns)
    return next((spelled[name] for name in names if name in spelled and spelled[name] not in taken), None)


def _spelled(columns: Sequence[str]) -> dict[str, str]:
    return {column.strip().lower(): column for column in reversed(columns)}


def _misspelt(columns: Sequence[str]) -> dict[str, str]:
    """The columns by their names in pairs, and misspelt ones also by the name that was meant, if no other has it."""
    spelled, names = _spelled(columns), [name for pair in PAIRS for name in pair]
    meant = {name: get_close_matches(name, names, n=1, cutoff=_SLIP) for name in spelled if name not in names}
    return {**{found[0]: spelled[name] for name, found in meant.items() if found}, **spelled}
