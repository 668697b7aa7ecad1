"""Data that are not to be trained on as they stand: preference data, answers marked as bad, single messages, videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from sftcore.core.errors import DataError, RowError, nearest, quoted
from sftcore.core.types import Example, Formatter, Row

_TWO_ANSWERS = (
    ("chosen", "rejected"), ("chosen_response", "rejected_response"), ("chosen_answer", "rejected_answer"),
    ("accepted", "rejected"), ("preferred", "dispreferred"), ("preferred", "rejected"),
    ("preferred_output", "non_preferred_output"), ("response_chosen", "response_rejected"),
    ("response_j", "response_k"),
    ("conversation_a", "conversation_b"), ("response_a", "response_b"), ("answer_a", "answer_b"),
    ("response_0", "response_1"), ("answer_0", "answer_1"), ("output_1", "output_2"),
)  # fmt: skip
"""What preference data call the two answers, the better first where there is one."""
_SCORES = (
    "helpfulness", "correctness", "coherence", "complexity", "verbosity", "score", "scores", "rating", "ratings",
    "reward", "quality", "overall_score", "score_chosen",
)  # fmt: skip
MARKS = ("label", "kto_tag")
"""Columns that say of each answer whether it is a good one, as KTO reads them."""
MEDIA = ("video", "videos", "audio", "audios")
"""Columns of what only models of their own kind read."""
SETS = ("train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation")
"""What files with several data sets call them."""
WHERE = "rows: {{where: {{{column}: {value}}}}}"
"""The lines of a recipe that keep some of the rows."""


@frozen
class Kind:
    """What the rows are, and what to do with them beside a format that can read them."""

    what: str
    fix: str


def preference_in(columns: Sequence[str]) -> Kind | None:
    """Two answers to one question, by their columns; trained as they stand, one of them would be read as a context."""
    spelled = {name.lower(): name for name in columns}
    pair = next((pair for pair in _TWO_ANSWERS if set(pair) <= spelled.keys()), None)
    if pair is None:
        return None
    shown = " and ".join(f'"{spelled[name]}"' for name in pair)
    return Kind(
        f"these are preference data: the columns {shown} hold two answers to one question, as DPO reads them.",
        "Train on the better answers alone, or use a trainer for preferences.",
    )


def unreadable_in(columns: Sequence[str]) -> Kind | None:
    """Rows that no format can read one by one."""
    names = {name.lower() for name in columns}
    if {"message_id", "parent_id", "role", "text"} <= names:
        return Kind(
            "each row is one message of a tree of messages, as in OpenAssistant's flat files, and not a conversation.",
            "Give its trees instead (*.trees.jsonl), or join the messages along parent_id first.",
        )
    return None


def sets_in(columns: Sequence[str]) -> Kind | None:
    """Several data sets in one row, which an object of lists in a JSON file is read as."""
    names = {name.lower() for name in columns}
    if "train" not in names or not names <= {*SETS}:
        return None
    return Kind(
        f"the columns {quoted(columns)} have the names of data sets, and not of what a row holds.",
        "Write the rows of each to a file of its own, and name the files: data: {train: train.json, eval: test.json}.",
    )


def scores_in(columns: Sequence[str]) -> str:
    """What to say of columns that rate the answers; empty where there are none."""
    found = [name for name in columns if name.lower() in _SCORES]
    if not found:
        return ""
    line = WHERE.format(column=found[0], value="[3, 4]")
    shown = ", ".join(f'"{name}"' for name in found)
    return f"The answers have scores ({shown}), which are not read: to keep good ones alone, add {line}."


def with_refusals(formatter: Formatter, columns: Sequence[str], reads: Sequence[str] = ()) -> Formatter:
    """The formatter, which refuses answers that are marked as bad, and videos or sounds that it does not read.

    Rows without such columns are read by the formatter itself.
    """
    marks = [name for name in columns if name in MARKS]
    media = [name for name in columns if name in MEDIA and name not in reads]
    if not marks and not media:
        return formatter

    def read(row: Row) -> Any:
        for name in media:
            if _holds(row.get(name)):
                raise RowError(
                    f'the row has something in the column "{name}", and the format reads no {name.rstrip("s")}.',
                    fix="Use a format and a model that do, drop the row, or remove the column if it does not matter.",
                )
        found = formatter(row)
        for name in marks:
            _refuse_bad(row, name, found)
        return found

    return read


def _holds(value: Any) -> bool:
    try:
        return value is not None and (not hasattr(value, "__len__") or len(value) > 0)
    except TypeError:
        return True


def _refuse_bad(row: Row, name: str, found: Any) -> None:
    """Refuse an answer whose mark is false; texts and tokens have no answer that it could mean."""
    examples: Sequence[Example] = [found] if isinstance(found, Example) else list(found)
    if not any(one.messages is not None or one.prompt is not None for one in examples):
        return  # the column of a class beside a text, which stays unread and is said to
    value = row.get(name)
    if value is False or (isinstance(value, str) and value.strip().lower() == "false"):
        raise RowError(
            f'the answer is marked as a bad one ("{name}" is false), as KTO reads it.',
            fix=f"Train on the good ones alone: {WHERE.format(column=name, value='true')}. Or remove the column.",
        )


def with_filter(formatter: Formatter, where: Mapping[str, Any], columns: Sequence[str], name: str) -> Formatter:
    """The formatter, which makes no example of rows without the wanted values.

    Raises:
        DataError: a column is not there.
    """
    if not where:
        return formatter
    for column in where:
        if column not in columns:
            what = f'rows: {{where: …}} names the column "{column}", which is not there.{nearest(column, columns)}'
            raise DataError(what, where=name, fix=f"Columns: {', '.join(columns)}.")

    def read(row: Row) -> Any:
        return formatter(row) if keeps(where, row) else []

    return read


def keeps(where: Mapping[str, Any], row: Row) -> bool:
    """Whether the row has one of the wanted values in each of these columns; texts such as "True" are compared too.

    >>> keeps({"label": True}, {"label": "True"}), keeps({"score": [3, 4]}, {"score": 2})
    (True, False)
    """
    for column, wanted in where.items():
        value = row.get(column)
        values = wanted if isinstance(wanted, (list, tuple)) else [wanted]
        if value not in values and str(value).strip().lower() not in [str(one).lower() for one in values]:
            return False
    return True
