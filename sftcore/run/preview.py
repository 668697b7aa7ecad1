"""One row as the model will see it, with what is supervised told apart: the run's own pipeline, without weights."""

from __future__ import annotations

import html
import itertools
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen

from sftcore.errors import RecipeError
from sftcore.recipe import Recipe
from sftcore.types import TokenizedRow

if TYPE_CHECKING:
    from sftcore.data.prepare import Pipeline

IGNORED = -100


@frozen
class Segment:
    """Neighbouring tokens that are all supervised, with one weight, or all not (weight 0)."""

    text: str
    num_tokens: int
    weight: float


@frozen
class Preview:
    """A row's segments. `cut` counts the tokens that max_length takes away; `example` numbers the row's examples."""

    row: int
    example: int
    segments: tuple[Segment, ...]
    cut: int = 0

    @property
    def caption(self) -> str:
        """Row, tokens, supervised tokens, cut."""
        total = sum(segment.num_tokens for segment in self.segments)
        supervised = sum(segment.num_tokens for segment in self.segments if segment.weight)
        number = f"row {self.row}" + (f", example {self.example}" if self.example else "")
        cut = f", {self.cut} more cut away" if self.cut else ""
        return f"{number}: {total} tokens, {supervised} supervised{cut}"


def preview(recipe: Recipe, row: int) -> list[Preview]:
    """Row `row` of the training set, counted from 0, through the recipe's own pipeline.

    Raises:
        RecipeError: there is no such row.
        SFTCoreError: whatever would stop the run at this row.
    """
    from sftcore.arguments import max_length_of, prepare_tokenizer
    from sftcore.config import SFTConfig
    from sftcore.data.load import load
    from sftcore.data.sets import DataPreparation
    from sftcore.model import load_processor
    from sftcore.run.train import check_recipe, config_of

    checked = check_recipe(recipe)
    args = SFTConfig(**{**config_of(recipe), "output_dir": "unused"})
    tokenizer = prepare_tokenizer(load_processor(checked.setup.plan, checked.setup.plugins), args)
    dataset = load(checked.train, recipe.data, recipe.data.split)
    if not 0 <= row < len(dataset):
        raise RecipeError(f"there is no row {row}.", where=checked.train.label, fix=f"Rows: 0 to {len(dataset) - 1}.")
    data = DataPreparation(checked.setup, tokenizer, max_length_of(args, tokenizer))
    pipeline = data.pipeline(dataset.column_names, checked.train.label)
    return _through(pipeline, dataset[row], row, tokenizer)


def _through(pipeline: Pipeline, values: dict[str, Any], row: int, tokenizer: Any) -> list[Preview]:
    columns = pipeline({name: [value] for name, value in values.items()}, [row])
    parts = zip(columns["input_ids"], columns["labels"], columns["weights"], columns["_tokens_cut"], strict=True)
    return [
        Preview(row, i, tuple(_segments(TokenizedRow(ids, labels, weights), tokenizer)), cut)
        for i, (ids, labels, weights, cut) in enumerate(parts)
    ]


def _segments(row: TokenizedRow, tokenizer: Any) -> list[Segment]:
    labels = row.labels or row.input_ids
    weights: Sequence[float] = row.weights or [1.0] * len(row.input_ids)
    tokens = [
        (token, 0.0 if label == IGNORED else weight)
        for token, label, weight in zip(row.input_ids, labels, weights, strict=True)
    ]
    tokens[0] = (tokens[0][0], 0.0)  # nothing stands before the first token to predict it from
    segments = []
    for weight, group in itertools.groupby(tokens, key=lambda pair: pair[1]):
        ids = [token for token, _ in group]
        segments.append(Segment(visible(tokenizer.decode(ids, skip_special_tokens=False)), len(ids), weight))
    return segments


def visible(text: str) -> str:
    """Text that is safe to print: control characters, which could steer a terminal, are spelled out.

    >>> visible("red: \\x1b[31m")
    'red: \\\\x1b[31m'
    """
    return "".join(
        char
        if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cf")
        else char.encode("unicode_escape").decode()
        for char in text
    )


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.6 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
pre {{ font: 14px/1.6 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f4;
  border: 1px solid #ddd; border-radius: 6px; padding: 1rem; color: #666 }}
mark {{ background: #c8ecc8; color: #114411; border-radius: 3px }}
h2 {{ font-size: 1rem; font-weight: 600 }}
</style>
<h1>{title}</h1>
<p><mark>Marked</mark> text is supervised: the model is trained to produce it. The rest is context.</p>
{rows}
</html>
"""


def as_page(previews: Sequence[Preview], title: str) -> str:
    """A self-contained HTML page."""
    rows = []
    for one in previews:
        text = "".join(
            f'<mark title="weight {segment.weight:g}">{html.escape(segment.text)}</mark>'
            if segment.weight
            else html.escape(segment.text)
            for segment in one.segments
        )
        rows.append(f"<h2>{html.escape(one.caption)}</h2>\n<pre>{text}</pre>")
    return _PAGE.format(title=html.escape(title), rows="\n".join(rows))
