"""Turns rendered texts into token ids and labels: one tokenizer call for each batch, and masks from its offsets."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from sftcore.chat.render import Rendered
from sftcore.core.errors import ModelError
from sftcore.core.types import IGNORED, Span, TokenizedRow
from sftcore.data.columns import TokenColumns

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

Encoded: TypeAlias = "tuple[Sequence[int], Encoding | None]"
"""The ids of a text with its encoding, or with None if the tokenizer gives no offsets."""
OVERLAPS_EDGE = "a token overlaps the edge of the supervised text and is included in the loss"


class Tokenizer:
    """Tokenizes rendered texts, and labels the tokens that their spans cover."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids) | {
            index for index, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        self._has_standard_call = _has_standard_call(tokenizer)

    def encode(self, rendered: Sequence[Rendered]) -> list[Encoded]:
        """The tokens of each text. This is almost all of the work; fast tokenizers do it without the GIL."""
        found: dict[int, Encoded] = {}
        for flag in (True, False):
            chosen = [i for i, one in enumerate(rendered) if one.add_special_tokens is flag]
            if chosen:
                found.update(zip(chosen, self._encode([rendered[i] for i in chosen], flag), strict=True))
        return [found[i] for i in range(len(rendered))]

    def columns(
        self, contents: Sequence[Rendered | TokenizedRow | None], encoded: Sequence[Encoded] | None = None
    ) -> tuple[TokenColumns, list[bool]]:
        """One row for each content, empty for None, and whether a token in it overlaps the edge of a span.

        Args:
            contents: texts with their spans, and rows that are tokens already.
            encoded: the result of `encode` for the texts, if there is one already.

        Raises:
            ModelError: the texts have spans, but the tokenizer gives no offsets.
        """
        if encoded is None:
            encoded = self.encode([content for content in contents if isinstance(content, Rendered)])
        of_texts = iter(encoded)
        rows, overlaps_edge = [], []
        for content in contents:
            row, overlapping = content or TokenizedRow(()), False
            if isinstance(row, Rendered):
                row, overlapping = self._labelled(row, *next(of_texts))
            rows.append(row)
            overlaps_edge.append(overlapping)
        return TokenColumns.of(rows), overlaps_edge

    def _encode(self, rendered: Sequence[Rendered], add_special_tokens: bool) -> Iterable[Encoded]:
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
            whole = all(one.spans is None and not one.image_spans for one in rendered)
            encode = core.encode_batch_fast if whole else core.encode_batch
            encodings = encode(texts, add_special_tokens=add_special_tokens)
            return [(encoding.ids, encoding) for encoding in encodings]
        batch = self._tokenizer(
            texts,
            add_special_tokens=add_special_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return zip(batch["input_ids"], batch.encodings or itertools.repeat(None), strict=False)

    def _labelled(self, rendered: Rendered, given: Sequence[int], encoding: Encoding | None) -> tuple[Any, bool]:
        """The row, and whether a token in it overlaps the edge of a span."""
        ids = np.array(given, np.int32)
        if rendered.spans is None and not rendered.image_spans:
            return TokenizedRow(ids), False  # type: ignore[arg-type]
        if encoding is None:
            raise ModelError(
                "masks need a fast tokenizer, but this one gives no offsets.",
                fix="Convert it, or train on whole texts (completion_only_loss: false).",
            )
        labels = ids.copy() if rendered.spans is None else np.full_like(ids, IGNORED)
        weights = np.zeros(len(ids), np.float32)
        overlaps_edge = False
        for span in rendered.spans or ():
            first, last = token_range(encoding, span)
            if first == last:
                continue
            chars = encoding.token_to_chars(first)
            if chars is not None and chars[0] < span.start:
                if ids[first] in self._special:
                    first += 1
                else:
                    # a token that takes white space along, as most do, matters to nobody
                    overlaps_edge |= bool(rendered.text[chars[0] : span.start].strip())
            labels[first:last] = ids[first:last]
            weights[first:last] = span.weight
        for span in rendered.image_spans:
            first, last = token_range(encoding, span)
            labels[first:last] = IGNORED
        weighted = any(span.weight != 1.0 for span in rendered.spans or ())
        return TokenizedRow(ids, labels, weights if weighted else None), overlaps_edge  # type: ignore[arg-type]


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


def _has_standard_call(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer inherits its call from the fast base class, so that its backend may be called directly."""
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    return (
        isinstance(tokenizer, PreTrainedTokenizerFast)
        and type(tokenizer)._encode_plus is PreTrainedTokenizerFast._encode_plus
        and type(tokenizer).__call__ is PreTrainedTokenizerBase.__call__
    )
