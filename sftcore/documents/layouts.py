"""How a run's collators lay rows out: side by side or end to end, and which of the two is taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from attrs import define, frozen

from sftcore.core.errors import BrokenPluginError, ModelError

Collate: TypeAlias = "Callable[[list[dict[str, Any]]], Mapping[str, Any]]"


@frozen
class Layout:
    """What a collator makes of rows: `shared` where documents stand in one row, `flattened` where all of them do.

    `seen` is False where it could not be tried, as a collator that wants rows of its own shape.
    """

    shared: bool
    flattened: bool
    seen: bool = True


@define
class RowLayouts:
    """The collators of a run, by how they lay rows out. As a collator it is the one that is taken.

    It may be handed to a loader before the layout is settled: a loader and its workers read it when they start.
    """

    side_by_side: Collate | None
    end_to_end: Collate | None
    flattened: bool = False

    @classmethod
    def fixed(cls, collator: Collate, *, packed: bool) -> RowLayouts:
        """The only collator of a run.

        Raises:
            ModelError: it puts documents into one row, and does not say where they begin.
        """
        if layout_of(collator, packed=packed).flattened:
            return cls(None, collator, flattened=True)
        return cls(collator, None)

    @property
    def are_open(self) -> bool:
        """Whether there is another layout than the one that is taken."""
        return self.side_by_side is not None and self.end_to_end is not None

    @property
    def taken(self) -> Collate:
        """The collator of the layout that is taken."""
        found = self.end_to_end if self.flattened else self.side_by_side
        assert found is not None
        return found

    def __call__(self, rows: list[dict[str, Any]]) -> Mapping[str, Any]:
        return self.taken(rows)


def layout_of(collator: Collate, *, packed: bool) -> Layout:
    """How this collator lays rows out, seen on two small ones.

    Raises:
        ModelError: rows are packed, and the collator gives no positions that restart at each document.
        BrokenPluginError: it would have ended the process.
    """
    row: dict[str, Any] = {"input_ids": [1, 1, 1, 1], "labels": [1, 1, 1, 1]}
    rows = [{**row, "seq_lengths": [2, 2]} if packed else row] * 2
    try:
        batch: Mapping[str, Any] = collator([dict(one) for one in rows])
        # a single row with the tokens of one is a batch that lost a row, and not a layout
        flattened = len(batch["input_ids"]) == 1 and len(batch["input_ids"][0]) >= 2 * len(row["input_ids"])
        # beyond the 4 tokens of each row is padding, where positions may restart too
        positions = batch["position_ids"][..., : 8 if flattened else 4] if "attention_mask" not in batch else None
        restarts = positions is not None and int((positions == 0).sum()) == (4 if packed else 2)
    except Exception as error:  # a user's collator may want rows of its own shape, and raise anything
        if type(error) is BrokenPluginError:
            raise
        if packed:
            raise ModelError(
                f"the collator cannot batch packed rows: {type(error).__name__}: {error}.",
                fix="Leave data_collator out, or set packing: false.",
            ) from error
        return Layout(False, False, seen=False)
    if (packed or flattened) and not restarts:
        raise ModelError(
            "the collator puts documents into one row without position_ids that restart at each of them "
            "(or with an attention_mask, which hides the restarts), so that they would read each other.",
            fix="Give restarting position_ids and no attention_mask, or leave data_collator out.",
        )
    return Layout(packed or flattened, flattened)


def pads_left(collator: Collate) -> bool:
    """Whether this collator puts padding before shorter rows, seen on two small ones."""
    rows: list[dict[str, Any]] = [{"input_ids": [1] * length, "labels": [1] * length} for length in (4, 2)]
    try:
        mask = collator(rows)["attention_mask"]
        return tuple(mask.shape) == (2, mask.shape[1]) and not bool(mask[1][0]) and bool(mask[1][-1])
    except Exception:  # it gives no mask, or wants rows of its own shape
        return False
