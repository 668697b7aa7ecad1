"""Reads what a user's formatting function returns for a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from sftcore.core.errors import RowError
from sftcore.core.types import Example, Formatter, Row
from sftcore.rows import read_messages, template_kwargs_of, tools_of
from sftcore.util.shown import kind_of

_ONE_ROW = (
    "It is called with one row, whose columns are single values, and not with a batch of rows, whose columns are "
    "lists: return the text of that row."
)
_RETURN = "Return a text, messages, or (prompt, completion); or a list of these, each of which becomes a row."


def by_function(function: Callable[[Row], Any]) -> Formatter:
    """The format of a formatting function.

    It returns a text, a conversation as a list of messages, (prompt, completion) as texts or as messages, or a mapping
    with these as `text`, `messages`, `prompt` and `completion`; or a list of such, one for each row to be made.
    """

    def read(row: Row) -> list[Example]:
        try:
            found = function(row)
        except Exception as error:
            if isinstance(error, IndexError) or _takes_a_batch(function, row):
                what = f"formatting_func failed: {type(error).__name__}: {error}."
                raise RowError(what, fix=_ONE_ROW) from error
            raise
        if _is_batch(found) or (_is_several(found) and (column := _by_letters(function, row, len(found))) is not None):
            what = "returned a mapping of lists" if _is_batch(found) else (
                f'returned {len(found)} texts, one for each character of the column "{column}"'
            )  # fmt: skip
            raise RowError(f"formatting_func {what}.", fix=_ONE_ROW)
        return [_example(one, found) for one in found] if _is_several(found) else [_example(found, found)]

    return read


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and not value.keys().isdisjoint(("role", "from"))


def _is_conversation(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(map(_is_message, value))


def _is_pair(value: Any) -> bool:
    """Whether this is (prompt, completion): two texts, or two conversations."""
    if not isinstance(value, tuple) or len(value) != 2:
        return False
    return all(isinstance(one, str) for one in value) or all(map(_is_conversation, value))


def _is_several(found: Any) -> bool:
    return isinstance(found, (list, tuple)) and not _is_conversation(found) and not _is_pair(found)


def _is_batch(found: Any) -> bool:
    """Whether these are the columns of a batch, as a function returns them for `Dataset.map(batched=True)`."""
    if not isinstance(found, Mapping) or not found:
        return False
    return all(isinstance(one, (list, tuple)) and not _is_conversation(one) for one in found.values())


def _example(one: Any, whole: Any) -> Example:
    if isinstance(one, Example):
        return one
    if isinstance(one, str):
        return Example(text=one)
    if _is_pair(one):
        return _pair(*one)
    if _is_conversation(one):
        return Example(messages=_messages(one))
    if isinstance(one, Mapping):
        more: dict[str, Any] = {"tools": tools_of(one, "tools"), "template_kwargs": template_kwargs_of(one)}
        if isinstance(one.get("text"), str):
            return Example(text=one["text"])
        if _is_conversation(one.get("messages")):
            return Example(messages=_messages(one["messages"]), **more)
        if _is_pair((one.get("prompt"), one.get("completion"))):
            return _pair(one["prompt"], one["completion"], **more)
    what = "None" if one is None else kind_of(one)
    inside = "" if one is whole else "a list with "
    raise RowError(f"formatting_func returned {inside}{what}, not a text or a list of texts.", fix=_RETURN)


def _pair(prompt: Any, completion: Any, **more: Any) -> Example:
    if isinstance(prompt, str):
        return Example(prompt=prompt, completion=completion)
    return Example(prompt=_messages(prompt), completion=_messages(completion), **more)


def _messages(turns: Any) -> Any:
    return read_messages(list(turns), "what formatting_func returned")


def _takes_a_batch(function: Callable[[Row], Any], row: Row) -> bool:
    """Whether a function that failed for a row makes one text of a batch of one row."""
    with suppress(Exception):
        found = function({key: [value] for key, value in row.items()})
        return _is_batch(found) or (isinstance(found, (list, tuple)) and len(found) == 1)
    return False


def _by_letters(function: Callable[[Row], Any], row: Row, count: int) -> str | None:
    """The column whose characters the function takes for rows of a batch, as functions written for older TRL do."""
    column = next((key for key, value in row.items() if isinstance(value, str) and len(value) == count > 0), None)
    if column is None:
        return None
    longer = {key: value * 2 if isinstance(value, str) else value for key, value in row.items()}
    with suppress(Exception):
        return column if len(function(longer)) == 2 * count else None
    return None
