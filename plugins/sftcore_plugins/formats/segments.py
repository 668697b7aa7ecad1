"""Texts in segments, each trained or not, as in Axolotl's template-free format (input_output)."""

from __future__ import annotations

from sftcore import Example, Formatter, Row, RowError, Span, hookimpl, plugin
from sftcore.rows import value_of


@plugin
class Segments:
    """Rows with `segments`, each {"label": true or false, "text": …}: the texts are joined as they are, with nothing
    between or after them, and the loss is on those whose label is true.
    """

    segments: str = "segments"

    @hookimpl
    def detects(self, columns: tuple[str, ...]) -> bool:
        return self.segments in columns and not {"image", "images", "video", "videos", "input_ids", "text"} & set(
            columns
        )

    @hookimpl
    def make_formatter(self, columns: tuple[str, ...]) -> Formatter:
        return self._read

    def _read(self, row: Row) -> Example:
        segments = value_of(row, self.segments)
        if not isinstance(segments, (list, tuple)):
            raise RowError(f'the column "{self.segments}" is not a list of segments: {segments!r:.60}.')
        text, spans = "", []
        for index, segment in enumerate(segments):
            label, words = (segment.get("label"), segment.get("text")) if isinstance(segment, dict) else (None, None)
            if not isinstance(words, str) or label not in (True, False):
                raise RowError(
                    f"{self.segments}[{index}] has no text with a label of true or false: {segment!r:.60}.",
                    fix='A segment is {"label": true, "text": "…"}.',
                )
            if label and words:
                spans.append(Span(len(text), len(text) + len(words)))
            text += words
        return Example(text=text, spans=spans)
