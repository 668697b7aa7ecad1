"""What data sets call the parts of a row, in any capitals: what several formats look for in the same way."""

from __future__ import annotations

from collections.abc import Sequence

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
    """The columns of a question and its answer, as these columns spell them."""
    spelled = _spelled(columns)
    return next(((spelled[ask], spelled[say]) for ask, say in PAIRS if {ask, say} <= spelled.keys()), None)


def column_in(columns: Sequence[str], names: Sequence[str], *taken: str) -> str | None:
    """The first of these names that is a column, as it is spelled there, and that is not taken."""
    spelled = _spelled(columns)
    return next((spelled[name] for name in names if name in spelled and spelled[name] not in taken), None)


def _spelled(columns: Sequence[str]) -> dict[str, str]:
    return {column.strip().lower(): column for column in reversed(columns)}
