"""What a run has to know of a vision-language processor, found out by calling it before the first row.

Rows of one to three images of two sizes are processed, and the tokens are compared with those that the two ways of
knowing them without an image give: by the size of each image, which is found once for each size, or by the row as a
whole (see sftcore.data.images.whole_row). A processor that neither way foretells is refused, by name.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from attrs import field, frozen

from sftcore.data.images.whole_row import Size, WholeRows

BY_SIZE, BY_ROW = "by the size of each image", "by the row as a whole"
"""How the tokens of images are known before images are decoded."""

FAULTS = (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, AttributeError, AssertionError, OSError)
"""What processors raise for what they cannot process."""

_SMALL, _LARGE = (64, 48), (640, 480)
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


def expansion_of(processor: Any, placeholder: str, size: Size) -> str:
    """The text that stands for an image of this width and height, wherever it is.

    Raises:
        ValueError: or another of FAULTS: it does not say, or cannot process an image of this size.
    """
    from PIL import Image

    batch = processor(
        images=[[Image.new("RGB", size)]], text=[placeholder], add_special_tokens=False,
        return_text_replacement_offsets=True,
    )  # fmt: skip
    return str(batch["text_replacement_offsets"][0][0]["replacement"])


def _found_out(processor: Any) -> ProcessorFacts:
    name = type(processor).__name__
    token = placeholder_of(processor)
    if not token:
        return ProcessorFacts(name, refusal="does not say which token stands for an image")
    wanted, most, fault = _processed(processor, token)
    if not wanted:
        return ProcessorFacts(name, token, refusal=f"cannot process a row with an image ({fault})")
    known = next((way for way, made in _ways(processor, token) if _same(processor, made, wanted, token)), None)
    if known is None:
        what = "makes other tokens of a row with images than can be known before its images are decoded"
        return ProcessorFacts(name, token, refusal=what)
    try:
        per_token, by_document = _per_token(processor, token)
    except FAULTS as error:
        return ProcessorFacts(name, token, refusal=f"cannot process two texts at once ({first_line(error)})")
    marks = "token_type_ids" in per_token and _marks_prompt(processor, token)
    return ProcessorFacts(
        name, token, known, most=most, per_token=per_token, marks_prompt=marks, by_document=by_document
    )


def _processed(processor: Any, token: str) -> tuple[list[list[int]], int | None, str]:
    """The tokens of the rows that are tried, of as many as it can process; the most images; why it stopped."""
    found: list[list[int]] = []
    for words, sizes in _TRIED:
        try:
            batch = _called(processor, [token.join(words)], [_pictures(sizes)])
            found.append([int(one) for one in batch["input_ids"][0]])
        except FAULTS as error:
            most = None if len(sizes) == 1 else len(sizes) - 1
            return (found if most else []), most, first_line(error)
    return found, None, ""


def _ways(processor: Any, token: str) -> Iterator[tuple[str, Callable[[Sequence[str], Sequence[Size]], str]]]:
    def by_size(words: Sequence[str], sizes: Sequence[Size]) -> str:
        text = words[0]
        for size, word in zip(sizes, words[1:], strict=True):
            text += expansion_of(processor, token, size) + word
        return text

    rows = WholeRows(processor, token)
    yield BY_SIZE, by_size
    yield BY_ROW, lambda words, sizes: rows(token.join(words), sizes).text


def _same(
    processor: Any, made: Callable[[Sequence[str], Sequence[Size]], str], wanted: list[list[int]], token: str
) -> bool:
    """Whether these texts become the tokens that the processor made."""
    try:
        texts = [made(*tried) for tried in _TRIED[: len(wanted)]]
    except FAULTS:
        return False
    encoded = processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [list(ids) for ids in encoded] == wanted


def _per_token(processor: Any, token: str) -> tuple[dict[str, int], bool]:
    """What has an entry for each token, with its value on padding, and whether images stand in rows of documents."""
    found: dict[str, int] | None = None
    by_document = False
    for words in (" A B C D E F G", " A B C D E F G H I J K L M N O P"):
        batch = _called(
            processor, [f"{token} A", f"{token}{words}"], [_pictures([_SMALL])] * 2, padding=True,
            padding_side="right", return_tensors="pt",
        )  # fmt: skip
        shape = tuple(batch["input_ids"].shape)
        own = {"input_ids", "attention_mask", "labels"}
        values = {name: batch[name] for name in batch if name not in own and hasattr(batch[name], "ndim")}
        values = {name: value for name, value in values.items() if tuple(value.shape[:2]) == shape}
        fillers = {name: int(value[0, -1]) if value.ndim == 2 else 0 for name, value in values.items()}
        found = fillers if found is None else {name: found[name] for name in fillers if name in found}
        by_document = any(values[name].ndim > 2 for name in found)
    return found or {}, by_document


def _marks_prompt(processor: Any, token: str) -> bool:
    """Whether token types are 0 for what is given, images included, and 1 for a suffix that is learned."""
    text, images = [f"{token} A"], [_pictures([_SMALL])]
    try:
        plain, learned = (_called(processor, text, images, **more) for more in ({}, {"suffix": ["B"]}))
        before, after = ([int(one) for one in batch["token_type_ids"][0]] for batch in (plain, learned))
    except FAULTS:
        return False
    return not any(before) and after[-1] == 1 and not after[0]


def _called(processor: Any, text: list[str], images: list[list[Any]], **options: Any) -> Any:
    return processor(images=images, text=text, add_special_tokens=False, **options)


def _pictures(sizes: Sequence[Size]) -> list[Any]:
    from PIL import Image

    return [Image.new("RGB", size) for size in sizes]


def first_line(error: BaseException) -> str:
    """An error of another library on one line."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]
