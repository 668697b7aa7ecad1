"""Finds the answers in rows that are texts already, by the words that stand before answers and before questions."""

from __future__ import annotations

from attrs import frozen

from sftcore.core.types import Span

WITHOUT_MARKER = "without response_marker, before which nothing is an answer"
LAST_ALONE = "response_marker stands there several times, and the last answer alone is trained, as in TRL"


@frozen
class AnswerMarkers:
    """What stands right before each answer, and right before each question; "" where questions are not marked."""

    response: str
    instruction: str = ""

    def spans(self, text: str) -> tuple[Span, ...]:
        """The answers: from behind each response marker to the next marker of either kind, or to the end.

        Without an instruction marker it cannot be seen where an answer ends, so the last one is taken alone.

        >>> AnswerMarkers("A:", "Q:").spans("Q:hi A:yes Q:ok A:no")
        (Span(start=7, end=11, weight=1.0), Span(start=18, end=20, weight=1.0))
        """
        starts = [at + len(self.response) for at in _places(text, self.response)]
        if not self.instruction:
            return tuple(Span(start, len(text)) for start in starts[-1:] if start < len(text))
        ends = sorted([*_places(text, self.instruction), *_places(text, self.response), len(text)])
        found = ((start, next(end for end in ends if end >= start)) for start in starts)
        return tuple(Span(start, end) for start, end in found if start < end)

    def notes(self, text: str) -> tuple[str, ...]:
        """What is to be said of the row."""
        several = not self.instruction and len(_places(text, self.response)) > 1
        return (LAST_ALONE,) if several else ()


def _places(text: str, marker: str) -> list[int]:
    found, at = [], text.find(marker)
    while at >= 0:
        found.append(at)
        at = text.find(marker, at + len(marker))
    return found
