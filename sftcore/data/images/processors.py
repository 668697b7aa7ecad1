"""What a run has to know of a vision-language processor, found out by calling it before the first row.

Rows of one to three images of two sizes are processed, and the tokens are compared with those that the two ways of
knowing them without an image give: by the size of each image, which is found once for each size, or by the row as a
whole (see sftcore.data.images.whole_row). A processor that neither way foretells is refused, by name.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from attrs import field, frozen

from sftcore.data.images.whole_row import Size, WholeRows

BY_SIZE, BY_ROW = "by the size of each image", "by the row as a whole"
"""How the tokens of images are known before images are decoded."""

FAULTS = (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, AttributeError, AssertionError, OSError)
"""What processors raise for what they cannot process."""

_SMALL, _LARGE, _UPRIGHT = (64, 48), (640, 480), (48, 96)
_TRIED: tuple[tuple[tuple[str, ...], tuple[Size, ...]], ...] = (
    (("", " say it"), (_SMALL,)),
    (("Look: ", ""), (_LARGE,)),
    (("one and ", " two\n", " which?"), (_SMALL, _LARGE)),
    (("", "", "both"), (_LARGE, _LARGE)),
    (("A ", "", "\n", "end"), (_SMALL, _LARGE, _SMALL)),
)
"""The texts around the images of rows that are tried, and the sizes of these images."""

_KNOWN: weakref.WeakKeyDictionary[Any, ProcessorFacts] = weakref.WeakKeyDictionary()


@frozen
class ProcessorFacts:
    """What was found out about a processor.

    Attributes:
        name: of its class.
        placeholder: the token that stands for one image in a text that it reads.
        known: how the tokens of a row are known before its images are decoded: BY_SIZE or BY_ROW.
        refusal: why it cannot be used for rows with images; empty if it can.
        most: the most images that it takes in one row; None if three are taken, which is as many as are tried.
        per_token: what it returns with one entry for each token beside `input_ids` and `attention_mask`, of shape
            (documents, width, ...), with the value that stands on padding.
        nested: whether it takes the images of several texts as a list for each; or else one after the other.
        changes_texts: whether it changes the words of rows without images as well, as one does that begins each text.
        marks_prompt: whether its token_type_ids tell the prompt (0) from what is learned (1), so that they are made
            from the labels; elsewhere they tell images from text.
        by_document: whether what it makes of images stands in the rows of its documents, as cross-attention needs it,
            and not end to end.
    """

    name: str
    placeholder: str = ""
    known: str = BY_SIZE
    refusal: str = ""
    most: int | None = None
    nested: bool = True
    changes_texts: bool = False
    per_token: Mapping[str, int] = field(factory=dict)
    marks_prompt: bool = False
    by_document: bool = False

    @property
    def note(self) -> str:
        """What a run says of it."""
        if self.refusal:
            return f"rows with images are refused: {self.name} {self.refusal}"
        return f"the tokens of images are known {self.known} ({self.name})"


def facts_of_processor(processor: Any) -> ProcessorFacts:
    """The facts of this processor, found out on the first call; it raises nothing, see `refusal`."""
    found = _KNOWN.get(processor)
    if found is None:
        found = _KNOWN[processor] = _found_out(processor)
    return found


def placeholder_of(processor: Any) -> str:
    """The token that stands for one image in a text that the processor reads; empty if it has none."""
    for owner in (processor, processor.tokenizer):
        if token := getattr(owner, "image_token", None):
            return str(token)
    return ""


def arranged(images: Sequence[Sequence[Any]], *, nested: bool) -> list[Any]:
    """The images of several texts as a processor takes them: a list for each text, or one after the other."""
    return [list(one) for one in images] if nested else [image for one in images for image in one]


def expansion_of(processor: Any, placeholder: str, size: Size, *, nested: bool = True) -> str:
    """The text that stands for an image of this width and height, wherever it is.

    Raises:
        ValueError: or another of FAULTS: it does not say, or cannot process an image of this size.
    """
    batch = processor(
        images=arranged([_pictures([size])], nested=nested), text=[placeholder], add_special_tokens=False,
        return_text_replacement_offsets=True, return_tensors="pt",
    )  # fmt: skip
    return str(batch["text_replacement_offsets"][0][0]["replacement"])


def fills_up(processor: Any) -> bool:
    """Whether images of several sizes come in one array of pictures, the smaller ones filled up to the largest."""
    try:
        alone, both = (
            processor.image_processor(_pictures(sizes), return_tensors="pt").get("pixel_values")
            for sizes in ([_SMALL], [_SMALL, _UPRIGHT])
        )
    except FAULTS:
        return False
    shapes = [tuple(getattr(one, "shape", ())) for one in (alone, both)]
    return len(shapes[0]) == len(shapes[1]) == 4 and shapes[0][2:] != shapes[1][2:]


def _found_out(processor: Any) -> ProcessorFacts:
    name = type(processor).__name__
    token = placeholder_of(processor)
    if not token:
        return ProcessorFacts(name, refusal="does not say which token stands for an image")
    asked = _Asked(processor, token)
    wanted, most, fault = asked.processed()
    if not wanted:
        flat = _Asked(processor, token, nested=False)
        if (found := flat.processed())[0]:
            asked, (wanted, most, fault) = flat, found
    if not wanted:
        return ProcessorFacts(name, token, refusal=f"cannot process a row with an image ({fault})")
    known = next((way for way, made in asked.ways() if asked.same(made, wanted)), None)
    if known is None:
        what = "makes other tokens of a row with images than can be known before its images are decoded"
        return ProcessorFacts(name, token, refusal=what)
    try:
        per_token, by_document = asked.per_token()
    except FAULTS as error:
        return ProcessorFacts(name, token, refusal=f"cannot process two texts at once ({first_line(error)})")
    marks = "token_type_ids" in per_token and asked.marks_prompt()
    changes = known == BY_ROW and asked.changes_texts()
    return ProcessorFacts(name, token, known, "", most, asked.nested, changes, per_token, marks, by_document)


Made: TypeAlias = "Callable[[Sequence[str], Sequence[Size]], str]"


@frozen
class _Asked:
    """A processor with the placeholder of an image, and how it takes images."""

    processor: Any
    token: str
    nested: bool = True

    def __call__(self, text: list[str], images: list[list[Any]], **options: Any) -> Any:
        given = arranged(images, nested=self.nested)
        return self.processor(images=given, text=text, add_special_tokens=False, return_tensors="pt", **options)

    def processed(self) -> tuple[list[list[int]], int | None, str]:
        """The tokens of the rows that are tried, of as many as it can process; the most images; why it stopped."""
        found: list[list[int]] = []
        for words, sizes in _TRIED:
            try:
                found.append(self([self.token.join(words)], [_pictures(sizes)])["input_ids"][0].tolist())
            except FAULTS as error:
                most = None if len(sizes) == 1 else len(sizes) - 1
                return (found if most else []), most, first_line(error)
        return found, None, ""

    def ways(self) -> Iterator[tuple[str, Made]]:
        """What may tell the text of a row, by name."""

        def by_size(words: Sequence[str], sizes: Sequence[Size]) -> str:
            text = words[0]
            for size, word in zip(sizes, words[1:], strict=True):
                text += expansion_of(self.processor, self.token, size, nested=self.nested) + word
            return text

        rows = WholeRows(self.processor, self.token, nested=self.nested)
        yield BY_SIZE, by_size
        yield BY_ROW, lambda words, sizes: rows(self.token.join(words), sizes).text

    def same(self, made: Made, wanted: list[list[int]]) -> bool:
        """Whether these texts become the tokens that the processor made."""
        try:
            texts = [made(*tried) for tried in _TRIED[: len(wanted)]]
        except FAULTS:
            return False
        encoded = self.processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [list(ids) for ids in encoded] == wanted

    def changes_texts(self) -> bool:
        """Whether a text without images becomes other tokens than the tokenizer's, which a whole row foretells."""
        text = "say it"
        try:
            batch = self.processor(text=[text], add_special_tokens=False, return_tensors="pt")
            wanted = batch["input_ids"][0].tolist()
            found = WholeRows(self.processor, self.token)(text, []).text
        except FAULTS:
            return False  # it takes no row without images
        plain, made = self.processor.tokenizer([text, found], add_special_tokens=False)["input_ids"]
        return bool(plain != wanted and made == wanted)

    def per_token(self) -> tuple[dict[str, int], bool]:
        """What has an entry for each token, with its value on padding, and whether images stand in documents' rows."""
        found: dict[str, int] | None = None
        by_document = False
        for words in (" A B C D E F G", " A B C D E F G H I J K L M N O P"):
            texts = [f"{self.token} A", f"{self.token}{words}"]
            batch = self(texts, [_pictures([_SMALL])] * 2, padding=True, padding_side="right")
            shape = tuple(batch["input_ids"].shape)
            own = {"input_ids", "attention_mask", "labels"}
            values = {name: batch[name] for name in batch if name not in own and hasattr(batch[name], "ndim")}
            values = {name: value for name, value in values.items() if tuple(value.shape[:2]) == shape}
            fillers = {name: int(value[0, -1]) if value.ndim == 2 else 0 for name, value in values.items()}
            found = fillers if found is None else {name: found[name] for name in fillers if name in found}
            by_document = any(values[name].ndim > 2 for name in found)
        return found or {}, by_document

    def marks_prompt(self) -> bool:
        """Whether token types are 0 for what is given, images included, and 1 for a suffix that is learned."""
        text, images = [f"{self.token} A"], [_pictures([_SMALL])]
        try:
            plain, learned = (self(text, images, **more) for more in ({}, {"suffix": ["B"]}))
            before, after = (batch["token_type_ids"][0].tolist() for batch in (plain, learned))
        except FAULTS:
            return False
        return not any(before) and after[-1] == 1 and not after[0]


def _pictures(sizes: Sequence[Size]) -> list[Any]:
    from PIL import Image

    return [Image.new("RGB", size) for size in sizes]


def first_line(error: BaseException) -> str:
    """An error of another library on one line."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]
