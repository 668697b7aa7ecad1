"""Plain text, for language modelling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sftcore import Example, Formatter, Row, hookimpl, plugin
from sftcore.rows import text_of
from sftcore_plugins.formats._names import pair_in


@plugin
class Text:
    """Rows with one text, trained on whole; the EOS token is appended once."""

    field: str = "text"

    @hookimpl
    def options_from(self, settings: Mapping[str, Any]) -> Mapping[str, Any] | None:
        field = settings.get("dataset_text_field")
        return None if field is None else {"field": field}

    @hookimpl
    def detects(self, columns: tuple[str, ...]) -> bool:
        return self.field in columns and not {"image", "images", "video", "videos", "input_ids"} & set(columns)

    @hookimpl
    def suggest(self, columns: tuple[str, ...]) -> Mapping[str, Any] | None:
        # beside other columns, a text with such a name is often one part of several
        found = [name for name in columns if name.lower() in ("text", "content", "document", "body")]
        alone = len(found) == 1 and not pair_in(columns) and not {"role", "summary", "label"} & set(columns)
        return {"field": found[0]} if alone else None

    @hookimpl
    def make_formatter(self, columns: tuple[str, ...]) -> Formatter:
        def read(row: Row) -> Example:
            return Example(text=text_of(row, self.field))

        return read
