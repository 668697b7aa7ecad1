"""The column that the collator of a vision-language run needs in addition to the tokens.

The column `documents` has one entry for each document of a row; packed rows have several, in the order of
`seq_lengths`. Each entry is a mapping: `row` is the number of the row that it was made from, `text` the text as the
processor reads it (null if the document has no images), `special` whether the processor adds special tokens to it, and
`images` holds references to the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen

from sftcore.chat.render import Rendered
from sftcore.data.images.reference import ImageSource
from sftcore.data.images.sizes import KEYS

if TYPE_CHECKING:
    import pyarrow as pa

DOCUMENTS = "documents"
"""The name of the column."""


@frozen
class Picture:
    """An image of a row, its size in pixels, and the tokens that stand for it: `first` to `last` (exclusive)."""

    source: ImageSource
    width: int
    height: int
    first: int
    last: int

    @property
    def num_tokens(self) -> int:
        """How many tokens stand for it."""
        return self.last - self.first

    def __str__(self) -> str:
        name = self.source.get("path") or f"{len(self.source['bytes']):,} bytes"
        return f"{name}, {self.width} x {self.height} pixels, {self.num_tokens} tokens"


def documents_column(contents: Sequence[tuple[int, Any]]) -> pa.Array:
    """The column for rows of one document each, given with their numbers."""
    import pyarrow as pa

    image = pa.struct({"bytes": pa.binary(), "path": pa.string(), **dict.fromkeys(KEYS, pa.int64())})
    fields = {"row": pa.int64(), "text": pa.string(), "special": pa.bool_(), "images": pa.list_(image)}
    return pa.array([[_document(number, content)] for number, content in contents], pa.list_(pa.struct(fields)))


def has_images(dataset: Any) -> bool:
    """Whether a prepared map-style set has rows with images, or whether a stream may have some."""
    names = dataset.column_names
    if names is None or DOCUMENTS not in names:
        return False
    if not hasattr(dataset, "data"):
        return True
    import pyarrow.compute as pc

    return bool(pc.any(pc.greater(_image_counts(dataset), 0)).as_py())


def has_rows_without_images(dataset: Any) -> bool:
    """Whether a prepared map-style set has documents without images."""
    import pyarrow.compute as pc

    return bool(pc.any(pc.equal(_image_counts(dataset), 0)).as_py())


def _image_counts(dataset: Any) -> Any:
    """How many images each document has, without touching the images."""
    import pyarrow.compute as pc

    documents = dataset.data.column(DOCUMENTS)
    counts = pc.list_value_length(pc.struct_field(pc.list_flatten(documents), "images"))
    # of a selection, whose rows would be copied with their images
    chosen = getattr(dataset, "_indices", None)
    if chosen is None or len(counts) != len(documents):
        return counts
    return counts.take(chosen.column(0))


def _document(number: int, content: Any) -> dict[str, Any]:
    if isinstance(content, Rendered) and content.images:
        images = [dict(image) for image in content.images]
        return {"row": number, "text": content.unexpanded, "special": content.add_special_tokens, "images": images}
    return {"row": number, "text": None, "special": False, "images": []}
