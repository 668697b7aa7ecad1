"""What a processor reads beside texts and images, such as videos: a plugin may bring a modality of its own.

A reference is what a prepared row keeps of one medium: `modality` is its name, `parts` the files or encoded bytes that
it is opened from ({"bytes": …, "path": …}; one of the two is None), and `facts` JSON of whatever else opening it needs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from attrs import field, frozen
from attrs.validators import instance_of

Reference: TypeAlias = Mapping[str, Any]


class Modality:
    """How one kind of medium gets from a row into a batch. Subclasses are sent to worker processes, so they pickle.

    name: of the parts that it is in ({"type": "video"}), and of its place in plain texts ("<video>").
    argument: of the processor's call that takes a list of what `open` and `blank` return.
    """

    name: str = ""
    argument: str = ""

    @property
    def marker(self) -> str:
        """What stands for one medium in the plain texts of an example."""
        return f"<{self.name}>"

    def read_by(self, processor: Any) -> bool:
        """Whether this processor reads such media."""
        return getattr(processor, f"{self.name}_token", None) is not None

    def refer(self, value: Any, folder: str, processor: Any) -> Reference:
        """A reference, made by `reference`, to what a row calls such a medium; `folder` is where its paths begin.

        Raises:
            RowError: it is none, or cannot be read.
        """
        raise NotImplementedError

    def about(self, reference: Reference) -> str:
        """What a reader of a preview wants to know of it beside its name and its tokens, such as how long it is."""
        return ""

    def open(self, reference: Reference) -> Any:
        """What the processor takes, decoded: asked for each batch, in the loader's workers if there are any.

        Raises:
            RowError: it cannot be decoded.
        """
        raise NotImplementedError

    def blank(self, reference: Reference) -> Any:
        """The same without content: of it the processor has to make as many tokens, while nothing is decoded."""
        raise NotImplementedError

    def noise(self, reference: Reference) -> Any:
        """The same with other content, by which a packed run proves that documents do not see each other's."""
        raise NotImplementedError

    def given(self, media: list[Any]) -> Any:
        """How the processor's call takes the media of one text: as a list."""
        return media

    def arguments(self, references: Sequence[Reference]) -> dict[str, Any]:
        """Further arguments of the processor's call for these media, beside the media themselves."""
        return {}


@frozen
class Medium:
    """One medium of an example: what the row holds, and how it is read."""

    modality: Modality = field(validator=instance_of(Modality))
    value: Any


def reference(modality: Modality, parts: Iterable[Mapping[str, Any]], **facts: Any) -> Reference:
    """What a prepared row keeps of one medium; `facts` are plain values."""
    kept = [{"bytes": part.get("bytes"), "path": part.get("path")} for part in parts]
    return {"modality": modality.name, "parts": kept, "facts": json.dumps(facts, sort_keys=True)}


def facts_of(reference: Reference) -> dict[str, Any]:
    """The facts that the reference was made with."""
    found: dict[str, Any] = json.loads(reference["facts"])
    return found


def name_of(reference: Reference) -> str:
    """The name of the medium in errors."""
    parts = reference["parts"]
    if len(parts) != 1:
        return f"the {reference['modality']} of {len(parts)} parts"
    if parts[0].get("path"):
        return f"the {reference['modality']} {parts[0]['path']}"
    return f"the {reference['modality']} of {len(parts[0]['bytes'] or b''):,} bytes"


@frozen
class SeenMedium:
    """A medium of a row, and the tokens that stand for it: `first` to `last` (exclusive)."""

    modality: Modality
    reference: Reference
    first: int
    last: int

    @property
    def kind(self) -> str:
        """Such as "video"."""
        return self.modality.name

    @property
    def num_tokens(self) -> int:
        """How many tokens stand for it."""
        return self.last - self.first

    def __str__(self) -> str:
        parts = self.reference["parts"]
        name = parts[0].get("path") if len(parts) == 1 else f"{len(parts)} parts"
        about = self.modality.about(self.reference)
        said = [name or f"{len(parts[0]['bytes']):,} bytes", *([about] if about else []), f"{self.num_tokens} tokens"]
        return ", ".join(said)
