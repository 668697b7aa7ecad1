"""Trees of messages, as in OpenAssistant's `*.trees.jsonl` (arXiv 2304.07327)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from sftcore import Example, Formatter, Row, RowError, hookimpl, plugin
from sftcore.rows import read_messages, value_of

_ROLES = {"prompter": "user"}


@plugin
class OpenAssistant:
    """Rows that are trees of messages: `prompt` with its `replies`, which have replies themselves.

    `paths` "best" makes one conversation of a tree, by the reply of the best rank each time; "all" one of each way from
    the prompt to a last answer. Deleted messages are left out with what follows them, and so are users' last words.
    """

    prompt: str = "prompt"
    paths: Literal["best", "all"] = "best"

    @hookimpl
    def detects(self, columns: tuple[str, ...]) -> bool:
        return {"message_tree_id", self.prompt} <= set(columns) and "input_ids" not in columns

    @hookimpl
    def make_formatter(self, columns: tuple[str, ...]) -> Formatter:
        return self._read

    def _read(self, row: Row) -> list[Example]:
        tree = value_of(row, self.prompt)
        if not isinstance(tree, Mapping) or not isinstance(tree.get("text"), str):
            raise RowError(f'the column "{self.prompt}" is not a message with text and replies: {tree!r:.60}.')
        return [Example(messages=self._messages(way)) for way in self._ways(tree, [])]

    def _ways(self, message: Mapping[str, Any], before: list[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
        """The conversations that go through this message and end with an answer."""
        if message.get("deleted"):
            return
        way = [*before, message]
        replies = [reply for reply in message.get("replies") or () if not reply.get("deleted")]
        if self.paths == "best":
            replies = sorted(replies, key=_rank)[:1]
        longer = [inner for reply in replies for inner in self._ways(reply, way)]
        if longer:
            yield from longer
        elif message.get("role") == "assistant":
            yield way

    def _messages(self, way: Sequence[Mapping[str, Any]]) -> Any:
        turns = [{"role": _ROLES.get(turn["role"], turn["role"]), "content": turn["text"]} for turn in way]
        return read_messages(turns, self.prompt, format_name="oasst")


def _rank(reply: Mapping[str, Any]) -> float:
    rank = reply.get("rank")
    return float("inf") if rank is None else float(rank)
