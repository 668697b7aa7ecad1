"""What becomes of rows that are longer than a run allows: they are cut, dropped, split, or refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from attrs import frozen

from sftcore.chat.render import Rendered
from sftcore.core.errors import RowError
from sftcore.core.types import IGNORED, TokenizedRow
from sftcore.data.columns import TokenColumns

LongRows: TypeAlias = Literal["cut", "drop", "split", "refuse"]

TOO_LONG = "longer than max_length"
SPLIT = "longer than max_length, and split into several rows"
_ADVICE = "Raise max_length, shorten the rows, or say long_rows: drop or long_rows: cut."


@frozen
class LongRule:
    """The choice of a run: `limit` is how many tokens a row may have, None: any number."""

    choice: LongRows = "cut"
    limit: int | None = None

    def fault(self, content: Rendered | TokenizedRow | None, length: int) -> RowError | None:
        """The error for this row, which stops the run; None where it may be trained on, dropped or split."""
        if self.limit is None or length <= self.limit:
            return None
        if self.choice == "refuse":
            return RowError(f"the row has {length:,} tokens, and max_length is {self.limit:,}.", fix=_ADVICE)
        if self.choice == "split" and (kind := _kept_whole(content)):
            what = f"long_rows: split would train pieces of {kind} without what comes before them, and it has"
            return RowError(f"{what} {length:,} tokens of at most {self.limit:,}.", fix=_ADVICE)
        return None

    def faults(self, contents: Sequence[Rendered | TokenizedRow | None], lengths: np.ndarray) -> dict[int, RowError]:
        """The errors of these rows, by their places; where rows are cut or dropped none is looked at."""
        if self.limit is None or self.choice in ("cut", "drop"):
            return {}
        found = ((i, self.fault(content, int(lengths[i]))) for i, content in enumerate(contents))
        return {i: error for i, error in found if error is not None}

    def split(self, rows: TokenColumns) -> tuple[TokenColumns, Sequence[int]]:
        """The rows with long ones in pieces, and which row each piece is of."""
        if self.choice != "split" or self.limit is None:
            return rows, range(len(rows.lengths))
        return rows.split(self.limit)

    def drops(self, length: int) -> bool:
        """Whether a row of so many tokens is dropped."""
        return self.choice == "drop" and self.limit is not None and length > self.limit


CUT = LongRule()


def several_refused(numbers: Sequence[int], first: RowError) -> RowError:
    """The error for all rows that are too long, at the place of the first of them."""
    if len(numbers) > 1:
        shown = ", ".join(map(str, numbers[1:6])) + (", …" if len(numbers) > 6 else "")
        first.what += f" {len(numbers) - 1:,} more are too long: {shown}."
    return first


def _kept_whole(content: Rendered | TokenizedRow | None) -> str:
    """Why a row is not split; empty where each of its pieces means something by itself."""
    if isinstance(content, TokenizedRow):
        masked = content.labels is not None and bool((np.asarray(content.labels) == IGNORED).any())
        return "a row that is supervised in part" if masked or content.weights is not None else ""
    return "" if content is None else content.whole


def choice_of(settings: Any) -> LongRows:
    """What the settings of a run say."""
    found: LongRows = settings.get("long_rows") or "cut"
    return found
