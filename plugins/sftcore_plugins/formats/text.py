"""Plain text, for language modelling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sftcore import Example, Formatter, Row, hookimpl, plugin
from sftcore.rows import text_of


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
        return self.field in columns and not {"image", "images", "input_ids"} & set(columns)

    @hookimpl
    def make_formatter(self, columns: tuple[str, ...]) -> Formatter:
        def read(row: Row) -> Example:
            return Example(text=text_of(row, self.field))

        return read
