"""Whether an example is what its type says: looked at for every row, so that no wrong value trains on in silence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from sftcore.core.door import fields
from sftcore.core.errors import OptionTypeError
from sftcore.core.options import structure
from sftcore.core.types import IGNORED, Example, Message, Part, Span, TokenizedRow

_LISTS = (list, tuple)


def fault_in(example: Example) -> str:
    """What of an example is of a wrong type or has a wrong value, and what was expected; empty where nothing is."""
    if _is_plain(example):
        return ""
    said = next(_faults(example), "")
    return (_of_type(example) or said) if said else ""


def _is_plain(example: Example) -> bool:
    """Whether all is of the very types that nearly all rows have: without a call, as each row is looked at."""
    if not (
        example.tokens is None
        and example.spans is None
        and example.tools is None
        and type(example.images) in _LISTS
        and not example.media
        and type(example.template_kwargs) is dict
        and not example.template_kwargs
        and (example.text is None or type(example.text) is str)
        and (example.messages is None or type(example.messages) in _LISTS)
    ):
        return False
    for turns in (example.messages, example.prompt, example.completion):
        if turns is None or type(turns) is str:
            continue
        if type(turns) not in _LISTS:
            return False
        for turn in turns:
            if not (
                type(turn) is Message
                and type(turn.role) is str
                and (type(turn.content) is str or _are_plain_parts(turn.content))
                and turn.weight is None
                and turn.reasoning is None
                and turn.tool_call_id is None
                and turn.name is None
                and type(turn.tool_calls) in _LISTS
                and type(turn.extra) is dict
            ):
                return False
            for call in turn.tool_calls:
                if type(call) is not dict:
                    return False
    return True


def _are_plain_parts(content: Any) -> bool:
    if type(content) not in _LISTS:
        return False
    for part in content:  # noqa: SIM110 (a generator takes longer than the few parts of a turn)
        if type(part) is not Part:
            return False
    return True


def _faults(example: Example) -> Iterator[str]:
    """The faults in a few comparisons for each row; `_of_type` has better words for some of them."""
    if example.tokens is not None:
        yield from _of_tokens(example.tokens)
        return
    for name in ("messages", "prompt", "completion", "text"):
        value = getattr(example, name)
        if isinstance(value, (list, tuple)) and name != "text":
            for place, turn in enumerate(value):
                yield from _of_turn(turn, f"Example.{name}[{place}]")
        elif value is not None and (not isinstance(value, str) or name == "messages"):
            yield _expected("messages" if name == "messages" else "a text", value, f"Example.{name}")
    if example.tools is not None and not _all_are(example.tools, Mapping):
        yield _expected("a list of mappings", example.tools, "Example.tools")
    if not (isinstance(example.template_kwargs, Mapping) and _all_are([*example.template_kwargs], str)):
        yield _expected("a mapping with texts as keys", example.template_kwargs, "Example.template_kwargs")
    if isinstance(example.images, (str, bytes, Mapping)) or not isinstance(example.images, Iterable):
        yield _expected("a list of images", example.images, "Example.images")
    if not all(hasattr(one, "modality") and hasattr(one, "value") for one in _listed(example.media)):
        yield _expected("a list of Medium", example.media, "Example.media")
    if example.spans is not None:
        yield from _of_spans(example)


def _listed(value: Any) -> Iterable[Any]:
    return value if isinstance(value, (list, tuple)) else (value,)


def _of_turn(turn: Any, place: str) -> Iterator[str]:
    if not isinstance(turn, Message):
        yield _expected("Message", turn, place)
        return
    if not _all_are([turn.role], str):
        yield _expected("a text", turn.role, f"{place}.role")
    if not isinstance(turn.content, (str, type(None))) and not _all_are(turn.content, Part):
        yield _expected("a text or a list of Part", turn.content, f"{place}.content")
    if turn.weight is not None and not _is_share(turn.weight):
        yield _expected("a number from 0.0 to 1.0", turn.weight, f"{place}.weight")
    if not _all_are(turn.tool_calls, Mapping):
        yield _expected("a list of mappings", turn.tool_calls, f"{place}.tool_calls")
    if not _all_are([turn.extra], Mapping):
        yield _expected("a mapping", turn.extra, f"{place}.extra")
    for name in ("reasoning", "tool_call_id", "name"):
        if not isinstance(value := getattr(turn, name), (str, type(None))):
            yield _expected("a text", value, f"{place}.{name}")


def _of_spans(example: Example) -> Iterator[str]:
    if not _all_are(example.spans, Span):
        yield _expected("a list of Span", example.spans, "Example.spans")
        return
    length = len(example.text or "")
    for place, span in enumerate(example.spans or ()):
        whole = _all_are([span.start, span.end], Integral)
        if not (whole and 0 <= span.start <= span.end <= length):
            yield _expected(
                f"start and end within the {length} characters of the text", span, f"Example.spans[{place}]"
            )
        elif not _is_share(span.weight):
            yield _expected("a number from 0.0 to 1.0", span.weight, f"Example.spans[{place}].weight")


def _of_tokens(tokens: Any) -> Iterator[str]:
    if not isinstance(tokens, TokenizedRow):
        yield _expected("TokenizedRow", tokens, "Example.tokens")
        return
    length = None
    for name, kinds, words in (
        ("input_ids", "iu", "whole numbers from 0"),
        ("labels", "iu", f"whole numbers from 0, or {IGNORED}"),
        ("weights", "iuf", "numbers from 0.0 to 1.0"),
    ):
        value, place = getattr(tokens, name), f"TokenizedRow.{name}"
        if value is None and name != "input_ids":
            continue
        if not hasattr(value, "__len__") or isinstance(value, (str, bytes)):
            yield _expected(words, value, place)
            return
        length = len(value) if length is None else length
        try:
            numbers = np.asarray(value)
        except (ValueError, TypeError, OverflowError):  # lists of different lengths, a tensor of another device
            numbers = np.empty((0, 0), object)
        if len(value) != length:
            yield f"labels and weights as long as input_ids expected, got {len(value)} for {length} as {place}"
        elif length and (numbers.ndim != 1 or numbers.dtype.kind not in kinds):
            yield _expected(words, value, place)
        elif length and not _in_range(numbers, name):
            yield _expected(words, float(numbers.min()) if name == "weights" else int(numbers.min()), place)


def _in_range(numbers: np.ndarray[Any, Any], name: str) -> bool:
    if name == "weights":
        return bool(numbers.min() >= 0 and numbers.max() <= 1)  # False for NaN
    return bool(numbers.min() >= 0 or (name == "labels" and ((numbers >= 0) | (numbers == IGNORED)).all()))


def _is_share(value: Any) -> bool:
    return isinstance(value, Real) and 0 <= float(value) <= 1


def _all_are(values: Any, kind: type | tuple[type, ...]) -> bool:
    return (
        isinstance(values, Sequence)
        and not isinstance(values, (str, bytes))
        and all(isinstance(one, kind) for one in values)
    )


def _expected(what: str, got: Any, place: str) -> str:
    said = "None" if got is None else f"{type(got).__name__} {got!r}"
    return f"expected {what}, got {said if len(said) < 200 else type(got).__name__} as {place}"


def _of_type(example: Example) -> str:
    """The field that is not of its declared type, in the words of options; empty where all are."""
    turns = [turn for some in (example.messages, example.prompt, example.completion) for turn in _turns(some)]
    tokens = [] if example.tokens is None else [example.tokens]
    try:
        for value, kind in [
            (example, Example),
            *((one, Message) for one in turns),
            *((one, TokenizedRow) for one in tokens),
        ]:
            structure(value, kind, path=kind.__name__)
            for name, hint in fields(kind).items():
                structure(getattr(value, name), hint, path=f"{kind.__name__}.{name}")
    except OptionTypeError as error:
        return f"{error.what.rstrip('.')} as {error.where}"
    return ""


def _turns(some: Any) -> Sequence[Any]:
    return some if isinstance(some, (list, tuple)) else ()
