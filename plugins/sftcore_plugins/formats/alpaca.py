"""Instruction rows in the manner of Stanford Alpaca (github.com/tatsu-lab/stanford_alpaca)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from sftcore import Example, Formatter, Message, Row, hookimpl, plugin
from sftcore.rows import as_turns, is_null, read_messages, text_of
from sftcore_plugins.formats._names import CONTEXTS, HISTORIES, REASONINGS, SYSTEMS, column_in, pair_in

_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


@plugin
class Alpaca:
    """Rows with `instruction`, `input` (may be empty) and `output`; the loss is on the output.

    `style` "chat" makes two messages for the tokenizer's chat template; "alpaca" the original prompt text, which needs
    no template. `history` names a column of earlier turns, as (instruction, output) pairs or as messages, `reasoning`
    one of what is thought before the output.
    """

    instruction: str = "instruction"
    input: str = "input"
    output: str = "output"
    system: str = "system"
    history: str = "history"
    reasoning: str | None = None
    style: Literal["chat", "alpaca"] = "chat"

    def __attrs_post_init__(self) -> None:
        if self.input == self.instruction:  # as where the question itself is called input
            self.input = ""

    @hookimpl
    def detects(self, columns: tuple[str, ...]) -> bool:
        return {self.instruction, self.output} <= set(columns) and not {
            "image",
            "images",
            "video",
            "videos",
            "input_ids",
        } & set(columns)

    @hookimpl
    def suggest(self, columns: tuple[str, ...]) -> Mapping[str, Any] | None:
        pair = pair_in(columns)
        if pair is None:
            return None
        parts = {"input": CONTEXTS, "system": SYSTEMS, "history": HISTORIES, "reasoning": REASONINGS}
        found = {key: column_in(columns, names, *pair) for key, names in parts.items()}
        others = {key: name for key, name in found.items() if name is not None and name != getattr(self, key)}
        return {"instruction": pair[0], "output": pair[1], **others}

    @hookimpl
    def make_formatter(self, columns: tuple[str, ...]) -> Formatter:
        return self._as_text if self.style == "alpaca" else self._as_chat

    def _as_chat(self, row: Row) -> Example:
        instruction, context = text_of(row, self.instruction), self._optional(row, self.input)
        prompt = [Message("system", system)] if (system := self._optional(row, self.system)) else []
        if row.get(self.history) and not is_null(row[self.history]):
            prompt += self._earlier(row)
        asked = f"{instruction}\n{context}" if context and instruction else context or instruction
        prompt.append(Message("user", asked))
        thought = self._optional(row, self.reasoning) if self.reasoning else ""
        return Example(
            prompt=prompt, completion=[Message("assistant", text_of(row, self.output), reasoning=thought or None)]
        )

    def _as_text(self, row: Row) -> Example:
        instruction, context = text_of(row, self.instruction), self._optional(row, self.input)
        template = _WITH_INPUT if context else _WITHOUT_INPUT
        return Example(
            prompt=template.format(instruction=instruction, input=context), completion=text_of(row, self.output)
        )

    def _earlier(self, row: Row) -> list[Message]:
        """What was said before, as pairs, as messages, or as JSON of either."""
        turns = as_turns(row[self.history], self.history)
        return read_messages(turns, self.history, format_name="alpaca") if turns else []

    def _optional(self, row: Row, column: str) -> str:
        return "" if is_null(row.get(column)) else text_of(row, column)
