"""Preference data: a question with an answer that was chosen and one that was rejected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs

from sftcore import Example, Formatter, Message, Row, RowError, hookimpl, plugin
from sftcore.rows import as_turns, template_kwargs_of, text_of, tools_of, value_of
from sftcore_plugins.formats._names import CONTEXTS, SYSTEMS, column_in
from sftcore_plugins.formats._sharegpt_turns import ShareGPTTurns

_CHOSEN = (
    ("chosen", "rejected"), ("chosen_response", "rejected_response"), ("chosen_answer", "rejected_answer"),
    ("accepted", "rejected"), ("preferred", "dispreferred"), ("preferred", "rejected"),
    ("preferred_output", "non_preferred_output"), ("response_chosen", "response_rejected"),
    ("response_j", "response_k"),
)  # fmt: skip
"""What the chosen and the rejected answer are called."""

_TWO = (("conversation_a", "conversation_b"), ("response_a", "response_b"), ("answer_a", "answer_b"))
"""Answers of two models, beside the column `winner`."""

_ASKED = ("prompt", "conversations", "messages", "question", "instruction", "query", "input", "history")


@plugin
class Preference:
    """Rows with a better and a worse answer, of which one is trained on: `use` says which. The loss is on the answer.

    Answers are texts, messages, or whole conversations that end with the answer. The question is in `prompt` (by
    default the first that is there of prompt, conversations, messages, question, instruction, query, input, history).
    Where two models answered (`conversation_a` and `conversation_b`, or `response_…`, `answer_…`), `winner` decides,
    and ties are left out. `style` "text" joins texts as they are, without the chat template.
    """

    use: Literal["chosen", "rejected"] = "chosen"
    chosen: str | None = None
    rejected: str | None = None
    prompt: str | None = None
    system: str | None = None
    winner: str = "winner"
    tools: str = "tools"
    roles: dict[str, str] = attrs.field(factory=dict)
    style: Literal["chat", "text"] = "chat"

    @hookimpl
    def suggest(self, columns: tuple[str, ...]) -> Mapping[str, Any] | None:
        return {"use": "chosen"} if _answers(columns) else None

    @hookimpl
    def make_formatter(self, columns: tuple[str, ...]) -> Formatter:
        names = _answers(columns) or (("chosen", "rejected"), False)
        (chosen, rejected), decided = names
        chosen, rejected = self.chosen or chosen, self.rejected or rejected
        prompt = self.prompt or next(
            (name for name in _ASKED if name in columns and name not in (chosen, rejected)), None
        )
        system = self.system or column_in(columns, SYSTEMS)
        context = column_in(columns, CONTEXTS) if prompt in ("instruction", "question") else None

        def read(row: Row) -> Example | list[Example]:
            better = chosen
            if decided:
                won = str(value_of(row, self.winner)).lower()
                if won not in (_WINS_A | _WINS_B):
                    return []  # a tie, or both bad
                better = chosen if won in _WINS_A else rejected
            column = better if self.use == "chosen" else chosen if better == rejected else rejected
            before = [Message("system", text_of(row, system))] if system and row.get(system) else []
            asked = self._asked(row, prompt, context) if prompt and row.get(prompt) is not None else []
            return self._example(row, column, before, asked)

        return read

    def _asked(self, row: Row, prompt: str, context: str | None) -> list[Message]:
        value = row[prompt]
        if not isinstance(value, str):
            return self._turns(value, prompt)
        more = row.get(context) if context and context != prompt else None
        return [Message("user", f"{value}\n{more}" if isinstance(more, str) and more else value)]

    def _example(self, row: Row, column: str, before: list[Message], asked: list[Message]) -> Example:
        value = value_of(row, column)
        transcript = isinstance(value, str) and not asked and value.lstrip().startswith(("Human:", "USER:", "User:"))
        if isinstance(value, str) and not transcript:
            if not asked:
                raise RowError(
                    f'the column "{column}" is an answer, and no column holds the question.',
                    fix="Name it: format: {preference: {use: chosen, prompt: COLUMN}}.",
                )
            if self.style == "text" and len(asked) == 1 and not before:
                return Example(prompt=str(asked[0].content), completion=value)
            turns = [Message("assistant", value)]
        else:
            turns = self._turns([value] if isinstance(value, Mapping) else value, column)
        if len(turns) > 1 and turns[0].role != "assistant":
            asked = []  # a whole conversation, which holds the question too
        whole = [*asked, *turns]
        if whole[0].role != "system":
            whole = [*before, *whole]
        if whole[-1].role != "assistant":
            raise RowError(f'the column "{column}" does not end with an answer of the assistant.', fix="Drop the row.")
        return Example(
            prompt=whole[:-1],
            completion=whole[-1:],
            tools=tools_of(row, self.tools),
            template_kwargs=template_kwargs_of(row),
        )

    def _turns(self, value: Any, column: str) -> list[Message]:
        return ShareGPTTurns(column, "", self.roles).messages_of({column: as_turns(value, column)})


_WINS_A = {"model_a", "a", "conversation_a", "response_a", "answer_a"}
_WINS_B = {"model_b", "b", "conversation_b", "response_b", "answer_b"}


def _answers(columns: Sequence[str]) -> tuple[tuple[str, str], bool] | None:
    """The columns of the two answers, and whether another column says which of them is better."""
    spelled = {name.lower(): name for name in columns}
    for names in _CHOSEN:
        if set(names) <= spelled.keys():
            return (spelled[names[0]], spelled[names[1]]), False
    for names in _TWO:
        if {*names, "winner"} <= spelled.keys():
            return (spelled[names[0]], spelled[names[1]]), True
    return None
