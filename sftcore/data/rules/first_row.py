"""What a stranger's format makes of the first row of a data set, looked at more closely than each row can be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sftcore.core.types import IGNORED, TokenizedRow


def doubts(contents: Sequence[Any], again: Sequence[Any]) -> Iterator[str]:
    """What is odd about a row, each as a verb phrase.

    Args:
        contents: its texts and tokens.
        again: the same, from a second reading.
    """
    first, second = ([getattr(one, "text", one) for one in read] for read in (contents, again))
    if first != second:
        yield (
            "reads a row in another way the second time: what a row becomes may depend on nothing else, or a run that "
            "is resumed trains on other rows"
        )
    for one in contents:
        if isinstance(one, TokenizedRow) and one.labels is not None:
            pairs = [
                (label, token) for label, token in zip(one.labels, one.input_ids, strict=False) if label != IGNORED
            ]
            if other := [label for label, token in pairs if label != token]:
                yield (
                    f"gives a row {len(other)} labels that are not the tokens at their places: the model shifts labels "
                    "by itself, so that a label is the token itself or -100"
                )
                return
