"""An example without its answer, as its model is asked it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve, frozen

from sftcore.chat.markers.answers import AnswerMarkers
from sftcore.chat.render import Rendered, Renderer
from sftcore.core.errors import RowError
from sftcore.core.types import IGNORED, Example, Message, Part, Row, TokenizedRow
from sftcore.data.pipeline import Pipeline
from sftcore.data.rules.long_rows import CUT

_NOTHING = "Give sample_prompts as texts or conversations of their own."
_SHOWN_ALONE = ("user", "system", "developer")


@frozen
class Question:
    """What the model is asked.

    `asked` is for readers. `row` has the tokens that the model reads as `input_ids`, of images also `documents`, as
    collators read prepared rows. `name` is the row that it is of, "" where it was given by itself.
    """

    asked: str
    row: Mapping[str, Any]
    name: str = ""


class _Asking(Renderer):
    """Renders examples without their answers."""

    def render(self, example: Example) -> Rendered:
        return self.render_question(example)


def question_of(pipeline: Pipeline, row: Row, number: int, *, answers: AnswerMarkers | None = None) -> list[Question]:
    """What is asked in a row of the data: each of its examples up to the answer, with its images; none is cut.

    Args:
        pipeline: of the set that the row belongs to.
        row: as the data have it.
        number: of the row, for errors.
        answers: what stands before the answers in rows that are texts.

    Raises:
        RowError: it cannot be read, or asks nothing; names the data set and the row.
    """
    asked: list[str] = []
    tokenizer = pipeline.renderer.tokenizer
    read = pipeline.reader.formatter

    def questions(row: Row) -> list[Example]:
        found = read(row)
        found = [without_answer(one, answers) for one in ([found] if isinstance(found, Example) else found)]
        asked.extend(words_of(one, tokenizer) for one in found)
        return found

    asking = evolve(
        pipeline,
        reader=evolve(pipeline.reader, formatter=questions),
        renderer=_Asking(tokenizer),
        max_length=None,
        truncation="keep_start",
        long_rows=CUT,
        numbering=None,
    )
    contents, encoded = asking.completed(asking.read([row], [number]))
    rows = asking.encode(contents, encoded).to_pylist()
    pairs = [(content, one) for (_, content), one in zip(contents, rows, strict=True) if content is not None]
    return [Question(text, _row(*pair, tokenizer)) for text, pair in zip(asked, pairs, strict=True)]


def _row(content: Any, row: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """The columns that collators read, without the EOS that some tokenizers, such as T5's, put behind every text."""
    ids, eos = row["input_ids"], tokenizer.eos_token
    if isinstance(content, Rendered) and content.add_special_tokens and len(ids) > 1:
        added = ids[-1] == tokenizer.eos_token_id and not content.text.endswith(eos)
        ids = ids[:-1] if added else ids
    pictures = {"documents": row["documents"]} if row.get("documents") is not None else {}
    return {"input_ids": ids, **pictures}


def without_answer(example: Example, answers: AnswerMarkers | None = None) -> Example:
    """The example up to where its last answer begins.

    Raises:
        RowError: it has no answer that can be told from the rest, or nothing before it.
    """
    if example.tokens is not None:
        return evolve(example, tokens=TokenizedRow(_before_labels(example.tokens)))
    if example.text is not None:
        return evolve(example, text=example.text[: _answer_in(example, answers)], spans=example.spans and ())
    if isinstance(example.prompt, str):
        return Example(text=example.prompt, images=example.images, media=example.media)
    turns = list(example.messages if example.messages is not None else example.prompt or ())
    while turns and turns[-1].role == "assistant":
        turns.pop()
    if not turns:
        raise RowError("nothing stands before its answer, so that nothing can be asked.", fix=_NOTHING)
    pictures = sum(part.type == "image" for turn in turns for part in _parts(turn))
    images = example.images if example.messages is None or not pictures else example.images[:pictures]
    tools, kwargs = example.tools, example.template_kwargs
    return Example(messages=turns, images=images, media=example.media, tools=tools, template_kwargs=kwargs)


def _before_labels(tokens: TokenizedRow) -> Sequence[int]:
    labels = tokens.labels if tokens.labels is not None else tokens.input_ids
    first = next((at for at, label in enumerate(labels) if label != IGNORED), 0)
    # behind a shorter question with an answer may come another: the last stretch that counts is the answer
    last = max((at for at in range(1, len(labels)) if labels[at] != IGNORED and labels[at - 1] == IGNORED), default=0)
    if not max(first, last):
        raise RowError("all of its tokens are trained, so that no question can be told from its answer.", fix=_NOTHING)
    return list(tokens.input_ids[: max(first, last)])


def _answer_in(example: Example, answers: AnswerMarkers | None) -> int:
    """Where the last answer of a text begins."""
    text = str(example.text)
    spans = example.spans if example.spans is not None else answers.spans(text) if answers is not None else ()
    starts = [span.start for span in spans if span.weight]
    if not starts or not max(starts):
        raise RowError("it is a text, of which no question can be told from its answer.", fix=_NOTHING)
    return max(starts)


def words_of(example: Example, tokenizer: Any) -> str:
    """What is asked, as somebody reads it: the words of the only turn, or all turns with who speaks."""
    if example.tokens is not None:
        text: str = tokenizer.decode(list(example.tokens.input_ids), skip_special_tokens=False)
        return text
    if example.messages is None:
        return str(example.text)
    turns = [turn for turn in example.messages if turn.role == "user"]
    if len(turns) == 1 and all(turn.role in _SHOWN_ALONE for turn in example.messages):
        return _said(turns[0])
    return "\n".join(f"{turn.role}: {_said(turn)}" for turn in example.messages)


def _said(turn: Message) -> str:
    if isinstance(turn.content, str):
        return turn.content
    calls = [str(dict(call)) for call in turn.tool_calls]
    return " ".join([*(part.text if part.text is not None else f"[{part.type}]" for part in _parts(turn)), *calls])


def _parts(turn: Message) -> Sequence[Part]:
    return turn.content if turn.content is not None and not isinstance(turn.content, str) else ()
