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

_SHORT = 4
"""Letters of a name that may be another word with one letter less, as bot and boat."""

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


def slips(columns: Sequence[str], name: str) -> list[str]:
    """The columns that are this name with a letter doubled or left out, or two of them swapped, within the word.

    >>> slips(["mesages", "Messagges", "messgaes", "message", "messages_a", "massages"], "messages")
    ['mesages', 'Messagges', 'messgaes']
    """
    wrong = {name[:at] + name[at + 1 :] for at in range(1, len(name) - 1)}
    wrong |= {name[:at] + name[at] + name[at:] for at in range(len(name))}
    wrong |= {name[: at - 1] + name[at] + name[at - 1] + name[at + 1 :] for at in range(2, len(name) - 1)}
    return [column for column in columns if column.lower() in wrong - {name}] if len(name) > _SHORT else []


def column_in(columns: Sequence[str], names: Sequence[str], *taken: str) -> str | None:
    """The first of these names that is a column, as it is spelled there, and that is not taken."""
    spelled = _spelled(columns)
    return next((spelled[name] for name in names if name in spelled and spelled[name] not in taken), None)


def _spelled(columns: Sequence[str]) -> dict[str, str]:
    return {column.strip().lower(): column for column in reversed(columns)}


def _misspelt(columns: Sequence[str]) -> dict[str, str]:
    """The columns by their names in pairs, and misspelt ones also by the name that was meant, if no other has it."""
    names = {name for pair in PAIRS for name in pair}
    others = [column for column in columns if column.lower() not in names]
    meant = {name: found[0] for name in sorted(names) if (found := slips(others, name))}
    return {**meant, **_spelled(columns)}
