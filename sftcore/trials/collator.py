"""Try a collator: a batch has exactly the tokens, labels and weights of its rows, and its labels are where they were.

Rows are compared as documents, in any order and layout: padded on either side with a mask, or end to end with positions
that restart. The label of a document's first token is never predicted, so it counts for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from attrs import define

from sftcore.core.types import IGNORED
from sftcore.trials.outcome import PASSED, Outcome
from sftcore.trials.square_masks import gaps_between, hold_apart, seen_through, spans_of

SHIFTED = "its labels are shifted by "
"""How the fault begins that no collator can mean."""
_FIRST_LABEL = "the first token of a document that shares its row has a label, predicted from what stands before it"
Array: TypeAlias = "np.ndarray[Any, Any]"


@define(eq=False)
class _Document:
    """Its tokens, labels and weights, (T,) each; `open_end` where padding may follow that nothing marks as such."""

    ids: Array
    labels: Array
    weights: Array
    open_end: bool = False

    @property
    def counted(self) -> Array:
        """Which tokens count for the loss: (T,) bool."""
        counted: Array = self.labels != IGNORED
        counted[:1] = False
        return counted

    def without_end(self, length: int) -> _Document:
        """The first tokens, where the others do not count and nothing marks them as padding."""
        if not self.open_end or self.counted[length:].any():
            return self
        return _Document(self.ids[:length], self.labels[:length], self.weights[:length])

    def same_labels(self, other: _Document) -> bool:
        """Whether the same tokens count, with the same labels and weights."""
        counted = self.counted
        return len(self.ids) == len(other.ids) and bool(
            (counted == other.counted).all()
            and (self.labels[counted] == other.labels[counted]).all()
            and np.allclose(self.weights[counted], other.weights[counted], rtol=1e-2, atol=1e-6)
        )


def try_collator(
    collate: Callable[[list[dict[str, Any]]], Any], rows: Sequence[Mapping[str, Any]], attention: str = ""
) -> Outcome:
    """Batch these rows, and compare.

    Args:
        collate: what `make_collator` returned.
        rows: prepared rows: `input_ids`, and where a run has them `labels`, `weights`, `seq_lengths` and `documents`.
        attention: transformers' name of the run's attention, which reads a mask of four dimensions in its own way.
    """
    batch = collate([dict(row) for row in rows])
    if fault := _shape_fault(batch) or _changed_later(collate, rows, batch):
        return Outcome(fault)
    wanted = [document for row in rows for document in _documents_of_row(row)]
    try:
        found = list(_documents_of_batch(batch, wanted, attention))
    except ValueError as error:
        return Outcome(str(error))
    if fault := _compare(wanted, found):
        return Outcome(fault)
    tokens, said = sum(len(one.ids) for one in wanted), batch.get("num_tokens")
    if said is not None and int(said.sum()) != tokens:
        return Outcome(f"its num_tokens is {int(said.sum())}, and the rows have {tokens} tokens")
    return PASSED


def _shape_fault(batch: Any) -> str:
    if not isinstance(batch, Mapping):
        return f"it gives a {type(batch).__name__} for a batch, not a mapping"
    for name in ("input_ids", "labels"):
        shape = getattr(batch.get(name), "shape", None)
        if shape is None or len(shape) != 2 or shape != batch["input_ids"].shape:
            what = "no tensor" if shape is None else f"shape {tuple(shape)}"
            return f"its {name} have {what}; wanted are (rows, tokens), the same for input_ids and labels"
    return ""


def _changed_later(collate: Callable[[list[dict[str, Any]]], Any], rows: Any, batch: Mapping[str, Any]) -> str:
    """Whether a collator writes into a batch when it makes the next ones: a run may have several at a time."""
    own = {name: one.clone() for name, one in batch.items() if hasattr(one, "clone")}
    later = [collate([dict(row) for row in rows]) for _ in range(2)]
    for name, one in own.items():
        if batch[name].shape != one.shape or not bool((batch[name] == one).all()):
            return f"it changes {name} of a batch that it has given before, while it makes batch {len(later) + 1}"
    return ""


# --- Documents --------------------------------------------------------------------------------------------------------
def _documents_of_row(row: Mapping[str, Any]) -> Iterator[_Document]:
    ids = np.asarray(row["input_ids"], np.int64)
    given, weights = row.get("labels"), row.get("weights")
    labels = ids if given is None else np.asarray(given, np.int64)
    weights = np.ones(len(ids)) if weights is None else np.asarray(weights, np.float64)
    start = 0
    for length in row.get("seq_lengths") or [len(ids)]:
        span = slice(start, start + length)
        if length:
            yield _effective(ids[span], labels[span], weights[span])
        start += length


def _effective(ids: Array, labels: Array, weights: Array, *, open_end: bool = False) -> _Document:
    """A token of weight 0 does not count, whatever its label says."""
    return _Document(ids, np.where(weights > 0, labels, IGNORED), weights, open_end)


def _documents_of_batch(batch: Mapping[str, Any], wanted: Sequence[_Document], attention: str) -> Iterator[_Document]:
    """The documents of a batch, with padding as documents without labels.

    Raises:
        ValueError: labels, mask and positions contradict each other.
    """
    ids, labels = (batch[name].detach().cpu().numpy().astype(np.int64) for name in ("input_ids", "labels"))
    weights, mask, positions = (
        _beside(batch, name, ids.shape) for name in ("weights", "attention_mask", "position_ids")
    )
    weights = np.ones(ids.shape) if weights is None else weights
    given = batch.get("attention_mask")
    seen = seen_through(given, ids.shape, attention) if mask is None and given is not None else None
    left = list(wanted)
    for row in range(len(ids)):
        parts = ids[row], labels[row], weights[row]
        if seen is not None:
            places = None if positions is None else positions[row]
            yield from _documents_seen(_effective(*parts), seen[row], places, left)
        elif mask is not None:
            kept = mask[row] != 0
            if (other := mask[row][kept & (mask[row] != 1)]).size:
                raise ValueError(f"its attention_mask holds {other[0]:g} (allowed: 0 and 1)")
            if (labels[row][~kept] != IGNORED).any():
                raise ValueError("tokens that its attention_mask hides have labels")
            first = int(kept.argmax())  # where a model counts from by itself, padding before it or not
            _hold_positions(None if positions is None else positions[row][kept], first)
            yield _effective(*(part[kept] for part in parts))
        elif positions is not None:
            starts = np.flatnonzero(positions[row] == 0)
            starts = starts if len(starts) and starts[0] == 0 else np.concatenate([[0], starts])
            for start, end in zip(starts, [*starts[1:], len(ids[row])], strict=True):
                _hold_positions(positions[row][start:end])
                if start and labels[row][start] != IGNORED and weights[row][start] > 0:
                    raise ValueError(_FIRST_LABEL)
                yield _effective(*(part[start:end] for part in parts))
        else:
            yield _effective(*parts, open_end=True)


def _documents_seen(
    row: _Document, seen_TT: Array, positions: Array | None, left: list[_Document]
) -> Iterator[_Document]:
    """The documents of a row whose mask says which token sees which; those of `left` that it has are taken from it.

    Raises:
        ValueError: it lets documents see padding or each other, or hides some of them.
    """
    spans = spans_of(row.ids, [one.ids for one in left])
    edges = [(start, end) for start, end, _ in spans]
    hold_apart(seen_TT, row.labels != IGNORED, edges)
    for start, end in edges:
        _hold_positions(None if positions is None else positions[start:end], start)
        if start and row.labels[start] != IGNORED:
            raise ValueError(_FIRST_LABEL)
    for which in sorted((which for _, _, which in spans), reverse=True):
        del left[which]
    for start, end in sorted([*edges, *gaps_between(edges, len(row.ids))]):
        yield _Document(row.ids[start:end], row.labels[start:end], row.weights[start:end])


def _beside(batch: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> Array | None:
    """A tensor of the batch that has one number for each token, as float64; None without one."""
    found = batch.get(name)
    if getattr(found, "shape", None) != shape:
        return None
    numbers: Array = found.detach().cpu().float().numpy().astype(np.float64)  # type: ignore[union-attr]
    return numbers


def _hold_positions(positions: Array | None, first: int = 0) -> None:
    if positions is None or not len(positions):
        return
    if (np.diff(positions) != 1).any():
        raise ValueError("its position_ids do not count up by one within a document")
    if positions[0] not in (0, first):
        raise ValueError(f"its position_ids begin at {positions[0]:g} in a document (allowed: 0)")


# --- Comparison -------------------------------------------------------------------------------------------------------
def _compare(wanted: Sequence[_Document], found: list[_Document]) -> str:
    """What of the rows is missing, changed or new in the batch; an empty text where nothing is."""
    left = list(found)
    changed: list[tuple[_Document, _Document]] = []
    for document in wanted:
        fitting = [one for one in left if _starts_with(one, document)]
        if not fitting:
            return _lost(document, wanted, left)
        same = next((one for one in fitting if one.without_end(len(document.ids)).same_labels(document)), None)
        taken = fitting[0] if same is None else same
        left = [one for one in left if one is not taken]
        if same is None:
            changed.append((document, taken))
    if changed:
        return _changed_labels(changed)
    invented = sum(int(one.counted.sum()) for one in left)
    if invented:
        return f"it adds {invented} supervised tokens that no row has (allowed: 0)"
    return ""


def _starts_with(one: _Document, document: _Document) -> bool:
    length = len(document.ids)
    enough = len(one.ids) >= length if one.open_end else len(one.ids) == length
    return enough and bool((one.ids[:length] == document.ids).all())


def _lost(document: _Document, wanted: Sequence[_Document], left: Sequence[_Document]) -> str:
    longest = max((len(one.ids) for one in left), default=0)
    counts = sum(len(one.ids) for one in wanted)
    if not left:
        return f"it loses rows: {len(wanted)} documents were given, and the batch has fewer (allowed: none lost)"
    near = max(left, key=lambda one: int((one.ids[: len(document.ids)] == document.ids[: len(one.ids)]).sum()))
    if len(near.ids) != len(document.ids):
        return (
            f"it changes tokens: a document of {len(document.ids)} tokens has {len(near.ids)} in the batch "
            f"(allowed: the same; {counts} tokens were given, the longest row in the batch has {longest})"
        )
    differing = int((near.ids != document.ids).sum())
    return f"it changes tokens: {differing} of a document's {len(document.ids)} differ in the batch (allowed: 0)"


def _changed_labels(changed: Sequence[tuple[_Document, _Document]]) -> str:
    document, taken = changed[0]
    end = len(document.ids)
    if beyond := int(taken.counted[end:].sum()):
        return f"{beyond} tokens of padding have labels (allowed: 0)"
    taken = _Document(taken.ids[:end], taken.labels[:end], taken.weights[:end])
    counted, wanted = int(taken.counted.sum()), int(document.counted.sum())
    if wanted and not counted:
        return f"its labels are all {IGNORED}: nothing of a row with {wanted} supervised tokens is trained on"
    for shift in (1, -1, 2, -2):
        ahead, behind = document.labels[max(shift, 0) :], taken.labels[max(-shift, 0) :]
        both = min(len(ahead), len(behind))
        if (ahead[:both] != IGNORED).any() and (ahead[:both] == behind[:both]).all():
            return f"{SHIFTED}{shift}: the model shifts them by itself (allowed: 0)"
    same = (taken.counted == document.counted) & (taken.labels == document.labels)
    if same.all():
        kept = document.counted
        gap = float(np.abs(taken.weights[kept] - document.weights[kept]).max())
        return f"weights differ from those of the rows by up to {gap:.2g} (allowed: 0)"
    differ = int((~same).sum())
    return f"labels differ from those of the row at {differ} of {len(document.ids)} tokens (allowed: 0)"
