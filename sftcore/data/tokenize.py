"""Turns rendered texts into token ids and labels: one tokenizer call for each batch, and masks from its offsets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import frozen

from sftcore.chat.render import Rendered
from sftcore.core.errors import ModelError
from sftcore.core.types import IGNORED, Span
from sftcore.data.columns import TokenColumns, offsets_of

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

    Array = np.ndarray[Any, Any]

OVERLAPS_EDGE = "a token overlaps the edge of the supervised text and is included in the loss"


@frozen(eq=False)
class Encoded:
    """The encodings of a batch with their offsets, or only `ids` if the tokenizer gives no offsets."""

    ids: list[list[int]] | None
    encodings: Sequence[Encoding] | None

    def rows(self) -> list[list[int]]:
        """The ids of each text."""
        return [encoding.ids for encoding in self.encodings or ()] if self.ids is None else self.ids


class Tokenizer:
    """Tokenizes rendered texts, and labels the tokens that their spans cover."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids) | {
            index for index, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        self._has_standard_call = _has_standard_call(tokenizer)

    def encode(self, rendered: Sequence[Rendered]) -> Encoded:
        """The tokens of these texts. This is almost all of the work; fast tokenizers do it without the GIL."""
        flags = {one.add_special_tokens for one in rendered}
        if len(flags) < 2:
            return self._encode(rendered, flags == {True})
        ids: dict[int, list[int]] = {}
        encodings: dict[int, Encoding] = {}
        for flag in (True, False):
            chosen = [i for i, one in enumerate(rendered) if one.add_special_tokens is flag]
            part = self._encode([rendered[i] for i in chosen], flag)
            ids.update(zip(chosen, part.rows(), strict=True))
            encodings.update(zip(chosen, part.encodings or (), strict=bool(part.encodings)))
        order = range(len(rendered))
        return Encoded([ids[i] for i in order], [encodings[i] for i in order] if encodings else None)

    def columns(self, rendered: Sequence[Rendered], encoded: Encoded | None = None) -> tuple[TokenColumns, Array]:
        """One row for each text, in order, and whether a token in it overlaps the edge of a span: (rows,) bool.

        Args:
            rendered: the texts with their spans.
            encoded: the result of `encode` for them, if there is one already.

        Raises:
            ModelError: the texts have spans, but the tokenizer gives no offsets.
        """
        encoded = self.encode(rendered) if encoded is None else encoded
        ids = encoded.rows()
        offsets = offsets_of([len(row) for row in ids])
        flat = np.empty(offsets[-1], np.int32)
        for row, start, stop in zip(ids, offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
            flat[start:stop] = row
        return self._labelled(rendered, flat, offsets, encoded.encodings)

    def _encode(self, rendered: Sequence[Rendered], add_special_tokens: bool) -> Encoded:
        texts = [one.text for one in rendered]
        if self._has_standard_call:
            # The same as the tokenizer's own call for a batch of texts, without building a dict of lists for each row
            core: Any = self._tokenizer.backend_tokenizer
            if core.truncation is not None:
                core.no_truncation()
            if core.padding is not None:
                core.no_padding()
            core.encode_special_tokens = bool(getattr(self._tokenizer, "split_special_tokens", False))
            # If all tokens are supervised, offsets are not needed, and the tokenizer is faster without them
            encode = (
                core.encode_batch_fast
                if all(one.spans is None and not one.image_spans for one in rendered)
                else core.encode_batch
            )
            return Encoded(None, encode(texts, add_special_tokens=add_special_tokens))
        batch = self._tokenizer(
            texts,
            add_special_tokens=add_special_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return Encoded(batch["input_ids"], batch.encodings)

    def _labelled(
        self, rendered: Sequence[Rendered], ids: Array, offsets: Array, encodings: Sequence[Encoding] | None
    ) -> tuple[TokenColumns, Array]:
        overlaps_edge = np.zeros(len(rendered), bool)
        weighted = np.zeros(len(rendered), bool)
        labels = ids.copy()
        weights = None
        for i, one in enumerate(rendered):
            if one.spans is None and not one.image_spans:
                continue
            if not encodings:
                raise ModelError(
                    "masks need a fast tokenizer, but this one gives no offsets.",
                    fix="Convert it, or train on whole texts (completion_only_loss: false).",
                )
            start, stop = int(offsets[i]), int(offsets[i + 1])
            if one.spans is None:
                _mask_images(labels[start:stop], encodings[i], one)
                continue
            labels[start:stop] = IGNORED
            weighted[i] = any(span.weight != 1.0 for span in one.spans)
            if weighted[i]:
                weights = np.ones(len(ids), np.float32) if weights is None else weights
                weights[start:stop] = 0.0
            for span in one.spans:
                first, last = token_range(encodings[i], span)
                if first == last:
                    continue
                if _begins_before(encodings[i], first, span):
                    if ids[start + first] in self._special:
                        first += 1
                    else:
                        overlaps_edge[i] = True
                labels[start + first : start + last] = ids[start + first : start + last]
                if weighted[i]:
                    weights[start + first : start + last] = span.weight  # type: ignore[index]
            _mask_images(labels[start:stop], encodings[i], one)
        return TokenColumns(ids, labels, weights, offsets, weighted), overlaps_edge


def token_range(encoding: Any, span: Span) -> tuple[int, int]:
    """The tokens (first, last exclusive) whose characters overlap the span; (0, 0) if there are none.

    All tokens of one character are kept together, since byte-level tokenizers spell an emoji with several tokens.
    """
    first = next(
        (token for at in range(span.start, span.end) if (token := encoding.char_to_token(at)) is not None), None
    )
    if first is None:
        return 0, 0
    backwards = range(span.end - 1, span.start - 1, -1)
    last = next(token for at in backwards if (token := encoding.char_to_token(at)) is not None)
    while last + 1 < len(encoding):
        chars = encoding.token_to_chars(last + 1)
        # tokens that the tokenizer added have no characters of their own
        if chars is None or chars[0] >= span.end or chars[0] == chars[1]:
            break
        last += 1
    return first, last + 1


def end_of_last_image(encoding: Any, rendered: Rendered) -> int:
    """The number of tokens that a row must keep so that none of its images is cut."""
    return token_range(encoding, rendered.image_spans[-1])[1] if rendered.image_spans else 0


def _mask_images(labels: Array, encoding: Any, rendered: Rendered) -> None:
    """Mask every token that stands for an image, even in part."""
    for span in rendered.image_spans:
        first, last = token_range(encoding, span)
        labels[first:last] = IGNORED


def _begins_before(encoding: Any, token: int, span: Span) -> bool:
    chars = encoding.token_to_chars(token)
    return chars is not None and chars[0] < span.start


def _has_standard_call(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer inherits its call from the fast base class, so that its backend may be called directly."""
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    return (
        isinstance(tokenizer, PreTrainedTokenizerFast)
        and type(tokenizer)._encode_plus is PreTrainedTokenizerFast._encode_plus
        and type(tokenizer).__call__ is PreTrainedTokenizerBase.__call__
    )
