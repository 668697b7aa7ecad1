"""Readers that formats share; their errors say which column is wrong and how to fix it.

The functions raise `RowError` without a location, to which the core adds the data set and the row number.
"""

from sftcore.rows.columns import is_null, template_kwargs_of, text_of, value_of, without_nulls
from sftcore.rows.dialogues import as_turns
from sftcore.rows.documents import documents_of
from sftcore.rows.images import images_of, place_images
from sftcore.rows.media import media_of, place_media
from sftcore.rows.roles import ALIASES, ROLES
from sftcore.rows.tools import tools_column, tools_of
from sftcore.rows.turns import (
    REASONING,
    is_trained_turns,
    messages_of,
    read_messages,
    single_out,
    split_turns,
    system_column,
    with_system,
)

__all__ = [
    "ALIASES",
    "REASONING",
    "ROLES",
    "as_turns",
    "documents_of",
    "images_of",
    "is_null",
    "is_trained_turns",
    "media_of",
    "messages_of",
    "place_images",
    "place_media",
    "read_messages",
    "single_out",
    "split_turns",
    "system_column",
    "template_kwargs_of",
    "text_of",
    "tools_column",
    "tools_of",
    "value_of",
    "with_system",
    "without_nulls",
]
