"""The column that the collator of a vision-language run needs in addition to the tokens.

The column `documents` has one entry for each document of a row; packed rows have several, in the order of
`seq_lengths`. Each entry is a mapping: `row` is the number of the row that it was made from, `text` the text as the
processor reads it (null if the document has no images or media), `special` whether the processor adds special tokens to
it, `images` holds references to the images, and `media` those to other media (see sftcore.data.media.modality).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen

from sftcore.chat.render import Rendered
from sftcore.core.errors import RowError
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

    kept = {"bytes": pa.binary(), "path": pa.string()}
    image = pa.struct({**kept, **dict.fromkeys(KEYS, pa.int64())})
    medium = pa.struct({"modality": pa.string(), "facts": pa.string(), "parts": pa.list_(pa.struct(kept))})
    fields = {
        "row": pa.int64(), "text": pa.string(), "special": pa.bool_(), "images": pa.list_(image),
        "media": pa.list_(medium),
    }  # fmt: skip
    return pa.array([[_document(number, content)] for number, content in contents], pa.list_(pa.struct(fields)))


def has_images(dataset: Any) -> bool:
    """Whether a prepared map-style set has rows with images or other media, or whether a stream may have some."""
    names = dataset.column_names
    if names is None or DOCUMENTS not in names:
        return False
    if not hasattr(dataset, "data"):
        return True
    import pyarrow.compute as pc

    return any(bool(pc.any(pc.greater(_counts(dataset, name), 0)).as_py()) for name in ("images", "media"))


def numbers_of_images(dataset: Any) -> list[int]:
    """How many images documents of a prepared map-style set have: each number once, in order."""
    import pyarrow.compute as pc

    return sorted(pc.unique(_counts(dataset, "images")).to_pylist())


def images_in(dataset: Any) -> Iterator[ImageSource]:
    """References to the images of a prepared map-style set, in the order of its rows."""
    for row in dataset.select_columns([DOCUMENTS]):
        for document in row[DOCUMENTS]:
            yield from document["images"]


def modalities_in(dataset: Any) -> list[str]:
    """The names of the media in a prepared map-style set, beside images; of a stream none is known."""
    if DOCUMENTS not in (dataset.column_names or ()) or not hasattr(dataset, "data"):
        return []
    import pyarrow.compute as pc

    documents = pc.list_flatten(dataset.data.column(DOCUMENTS))
    media = pc.list_flatten(pc.struct_field(documents, "media"))
    return sorted(pc.unique(pc.struct_field(media, "modality")).to_pylist())


def _counts(dataset: Any, held: str) -> Any:
    """How many images or media each document has, without touching them."""
    import pyarrow.compute as pc

    documents = dataset.data.column(DOCUMENTS)
    counts = pc.list_value_length(pc.struct_field(pc.list_flatten(documents), held))
    # of a selection, whose rows would be copied with their images
    chosen = getattr(dataset, "_indices", None)
    if chosen is None or len(counts) != len(documents):
        return counts
    return counts.take(chosen.column(0))


def refuse_missing(dataset: Any, where: str) -> None:
    """Hold that the files of images and media are still where they were when the rows were prepared.

    Raises:
        RowError: one is not; names the row.
    """
    if DOCUMENTS not in dataset.column_names:
        return
    import pyarrow.compute as pc

    there: set[str] = set()
    for chunk in dataset.data.column(DOCUMENTS).chunks:
        documents = pc.list_flatten(chunk)
        rows = pc.struct_field(documents, "row")
        images, media = (pc.struct_field(documents, name) for name in ("images", "media"))
        parts = pc.struct_field(pc.list_flatten(media), "parts")
        of_parts = pc.take(pc.list_parent_indices(media), pc.list_parent_indices(parts))
        held = {"image": (images, pc.list_parent_indices(images)), "file": (parts, of_parts)}
        for kind, (files, of_files) in held.items():
            paths = pc.struct_field(pc.list_flatten(files), "path")
            found = {path for path in paths.unique().to_pylist() if path} - there
            gone = min((pc.index(paths, path).as_py() for path in found if not os.path.isfile(path)), default=None)
            if gone is not None:
                raise RowError(
                    f"the {kind} {paths[gone]} is not there any more, and the prepared rows that the cache holds need "
                    "it.",
                    fix="Put it back, or prepare the rows anew: dataset_cache: false.",
                ).at(where, rows[of_files[gone].as_py()].as_py())
            there |= found


def _document(number: int, content: Any) -> dict[str, Any]:
    if isinstance(content, Rendered) and (content.images or content.media):
        media = [dict(one) for one in content.media] if content.media else ()
        return {
            "row": number, "text": content.unexpanded, "special": content.add_special_tokens, "images": content.images,
            "media": media,
        }  # fmt: skip
    return {"row": number, "text": None, "special": False, "images": (), "media": ()}
