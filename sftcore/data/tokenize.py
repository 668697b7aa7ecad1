"""Rendered texts into token ids and labels: one call of the tokenizer a batch, masks from its own offsets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sftcore.data.render import Rendered
from sftcore.errors import ModelError
from sftcore.types import Span, TokenizedRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100


class Tokenizer:
    """Tokenises rendered texts and labels what their spans cover."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids) | {
            index for index, token in tokenizer.added_tokens_decoder.items() if token.special
        }

    def rows(self, rendered: Sequence[Rendered]) -> list[TokenizedRow]:
        """One row for each text, in order.

        Raises:
            ModelError: spans are asked for and the tokenizer gives no offsets.
        """
        rows: dict[int, TokenizedRow] = {}
        for flag in (True, False):
            chosen = [i for i, one in enumerate(rendered) if one.add_special_tokens is flag]
            if chosen:
                rows.update(zip(chosen, self._encode([rendered[i] for i in chosen], flag), strict=True))
        return [rows[i] for i in range(len(rendered))]

    def _encode(self, rendered: Sequence[Rendered], add_special_tokens: bool) -> list[TokenizedRow]:
        batch = self._tokenizer(
            [one.text for one in rendered],
            add_special_tokens=add_special_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        ids: list[list[int]] = batch["input_ids"]
        return [
            TokenizedRow(row, row) if one.spans is None else self._labelled(batch, i, row, one.spans)
            for i, (row, one) in enumerate(zip(ids, rendered, strict=True))
        ]

    def _labelled(self, batch: Any, index: int, ids: list[int], spans: Sequence[Span]) -> TokenizedRow:
        if not batch.encodings:
            raise ModelError(
                "masks need a fast tokenizer, and this one gives no offsets.",
                fix="Convert it, or train on whole texts (completion_only_loss: false).",
            )
        labels = [IGNORED] * len(ids)
        weights = [0.0] * len(ids) if any(span.weight != 1.0 for span in spans) else None
        for span in spans:
            first, last = token_range(batch.encodings[index], span)
            if first < last and ids[first] in self._special and _begins_before(batch.encodings[index], first, span):
                first += 1
            labels[first:last] = ids[first:last]
            if weights is not None:
                weights[first:last] = [span.weight] * (last - first)
        return TokenizedRow(ids, labels, weights)


def token_range(encoding: Any, span: Span) -> tuple[int, int]:
    """The tokens (first, last exclusive) whose characters overlap the span; (0, 0) where there are none.

    All tokens of one character go together: byte-level tokenizers spell one emoji with several tokens.
    """
    first = next(
        (token for at in range(span.start, span.end) if (token := encoding.char_to_token(at)) is not None), None
    )
    if first is None:
        return 0, 0
    backwards = range(span.end - 1, span.start - 1, -1)
    last = next(token for at in backwards if (token := encoding.char_to_token(at)) is not None)
    while last + 1 < len(encoding.ids):
        chars = encoding.token_to_chars(last + 1)
        # tokens that the tokenizer added have no characters, or none of their own
        if chars is None or chars[0] >= span.end or chars[0] == chars[1]:
            break
        last += 1
    return first, last + 1


def _begins_before(encoding: Any, token: int, span: Span) -> bool:
    chars = encoding.token_to_chars(token)
    return chars is not None and chars[0] < span.start
