"""What a run asks its model, from its settings: texts, conversations and rows, or rows of its evaluation set."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from attrs import evolve

from sftcore.chat.render import Renderer
from sftcore.chat.stops import uses_template
from sftcore.config.settings.values import FORMS
from sftcore.core.errors import DataError, RecipeError, RowError, TemplateStoppedError, quoted
from sftcore.core.types import IGNORED, IMAGE, Example, Message, Row, TokenizedRow
from sftcore.data.format import RowReader
from sftcore.data.mixing.mixture import DataSource, Mixture, as_mixture
from sftcore.data.nulls import meant_nulls
from sftcore.data.pipeline import Pipeline, rows_of
from sftcore.data.rules.numbers import numbers_of
from sftcore.data.sets import answer_markers
from sftcore.data.store.stream import columns_of, first_rows
from sftcore.data.tokenize import Tokenizer
from sftcore.rows import images_of, media_of, place_images, read_messages, template_kwargs_of, tools_of, with_system
from sftcore.train.samples.questions import Question, question_of

if TYPE_CHECKING:
    from sftcore.data.sets import DataPreparation

NAME = "sample_prompts"
_TRIED = 20
"""Training rows that are looked at to see whether they are conversations."""
_PASSED_OVER = 1000
"""Rows of an evaluation set that may be passed over, because they are left out or too long to be asked."""


def questions_of(
    wanted: Any, data: DataPreparation, train: Any, evaluated: Any, *, prepared: bool = True
) -> tuple[Question, ...]:
    """The questions that a run asks its model as it trains.

    Args:
        wanted: `sample_prompts`.
        data: the run's preparation.
        train, evaluated: the data sets as they were given.
        prepared: whether their rows are prepared here, and not handed to a collator as they are.

    Raises:
        RecipeError: a prompt is longer than `max_length`.
        DataError, RowError: one of them cannot be read, or there are no evaluation rows that can be asked.
    """
    if wanted is None or (isinstance(wanted, list) and not wanted):
        return ()
    formats = dict(data.formats)
    try:
        if isinstance(wanted, int):
            sets = evaluated if isinstance(evaluated, Mapping) else {"": evaluated}
            several = (_of_rows(wanted, data, rows, str(name), prepared=prepared) for name, rows in sets.items())
        else:
            own = _pipeline(data, train, "train_dataset") if prepared else None
            talks = _trains_conversations(data, train, own)
            several = (_given(one, number, data, own, talks=talks) for number, one in enumerate(wanted))
        return tuple(itertools.chain.from_iterable(several))
    finally:
        data.formats = formats  # those of sets alone are told of the run


def _given(prompt: Any, number: int, data: DataPreparation, own: Pipeline | None, *, talks: bool) -> Iterator[Question]:
    """The questions of one prompt that was given by itself; rows in other forms are read by the format of the run."""
    row = prompt if isinstance(prompt, Mapping) else {NAME: prompt}
    reader = RowReader(NAME, functools.partial(_read, talks=talks), NAME)
    if own is not None and isinstance(prompt, Mapping) and not {"messages", "prompt", "text"} & {*prompt}:
        reader = evolve(own.reader, where=NAME)
    pipeline = _bare(data, reader) if own is None else evolve(own, reader=reader, meant=None)
    where = f"{NAME}[{number}]"
    try:
        found = question_of(pipeline, row, number, answers=answer_markers(data.setup.plan.settings))
    except (RowError, TemplateStoppedError) as error:
        error.where = where
        if own is not None and reader.formatter is own.reader.formatter:
            error.fix = f"{FORMS} Others are read as the training rows are."
        raise
    for one in found:
        length = len(one.row["input_ids"])
        if not length:
            raise RecipeError("the prompt has no tokens.", where=where, fix="Write what is asked.")
        if data.max_length is not None and length > data.max_length:
            raise RecipeError(
                f"the prompt has {length:,} tokens, and rows are cut to {data.max_length:,} (max_length).",
                where=where,
                fix="Shorten it, or raise max_length.",
            )
        yield one


def _read(row: Row, *, talks: bool) -> Example:
    """A prompt as an example, without an answer.

    Raises:
        RowError: it is in none of the forms.
    """
    prompt = row.get(NAME, row)
    if isinstance(prompt, str):
        return Example(messages=[Message("user", prompt)]) if talks else Example(prompt=prompt, completion="")
    if isinstance(prompt, (list, tuple)):
        return Example(messages=read_messages(list(prompt), NAME))
    asked = next((prompt[name] for name in ("messages", "prompt", "text") if prompt.get(name) is not None), None)
    if asked is None:
        raise RowError(f"the prompt is a row with {quoted(prompt)}.", fix=FORMS)
    images = images_of(prompt, "images", "image")
    if media_of(prompt, "video", "videos"):
        raise RowError("the prompt has a video, which samples cannot ask about.", fix="Ask about its pictures.")
    if isinstance(asked, str) and "messages" not in prompt:
        return Example(prompt=asked, completion="", images=images)
    turns = with_system(read_messages(asked, NAME), prompt, "system")
    if images:
        turns, images = place_images(turns, images, IMAGE)
    tools, kwargs = tools_of(prompt, "tools"), template_kwargs_of(prompt)
    return Example(messages=turns, images=images, tools=tools, template_kwargs=kwargs)


def _of_rows(count: int, data: DataPreparation, dataset: Any, name: str, *, prepared: bool) -> Iterator[Question]:
    """The questions in the first rows of an evaluation set; rows that are left out or too long are passed over.

    Of several sources those of the first come first.
    """
    where, set_name = (f"eval_dataset[{name!r}]", name) if name else ("eval_dataset", "eval")
    answers, limit, found = answer_markers(data.setup.plan.settings), data.max_length, 0
    sources = _sources(dataset)
    for place, source in enumerate(sources):
        of = f"{set_name} {source.name or place}" if len(sources) > 1 else set_name
        pipeline = _pipeline(data, dataset, where, place) if prepared else _as_they_are(data, dataset, where)
        for number, row in itertools.islice(_rows(source, pipeline), count + _PASSED_OVER):
            if found >= count:
                return
            for one in question_of(pipeline, row, number, answers=answers):
                if found < count and 0 < len(one.row["input_ids"]) <= (limit or len(one.row["input_ids"])):
                    found += 1
                    yield evolve(one, name=f"{of} row {number}")
    if not found:
        raise DataError(
            f"sample_prompts asks the first {count} rows, and none of them can be asked within max_length.",
            where=where,
            fix="Write prompts of your own: sample_prompts: [text, …].",
        )


def _sources(dataset: Any) -> tuple[DataSource, ...]:
    """The sources of a data set; one that is no mixture is its only source."""
    mixture = as_mixture(dataset)
    return (DataSource(dataset),) if mixture is None else mixture.sources


def _pipeline(data: DataPreparation, dataset: Any, name: str, place: int = 0) -> Pipeline:
    """The pipeline of a source of a set, the first one's if it is not said, as its rows are prepared."""
    mixture = Mixture(_sources(dataset))
    source, rows = mixture.sources[place], mixture.sources[place].taken()
    pipeline = data.pipeline(
        columns_of(rows), mixture.names_in(name)[place], source, functools.partial(first_rows, rows)
    )
    return evolve(pipeline, numbering=None, meant=meant_nulls(rows.features))


def _as_they_are(data: DataPreparation, dataset: Any, where: str) -> Pipeline:
    """A pipeline for rows that are not prepared here, which have to be tokens."""
    if "input_ids" not in columns_of(dataset):
        raise DataError(
            "sample_prompts asks rows that are prepared here, and these go to the collator as they are.",
            where=where,
            fix="Write prompts of your own: sample_prompts: [text, …].",
        )
    reader = RowReader("skip_prepare_dataset", _tokens, where)
    return _bare(data, reader)


def _bare(data: DataPreparation, reader: RowReader) -> Pipeline:
    """A pipeline of texts alone, where the run prepares no rows."""
    prompt = data.setup.plan.settings.get("system_prompt") or ""
    return Pipeline(reader, Renderer(data.tokenizer), Tokenizer(data.tokenizer), system_prompt=prompt)


def _tokens(row: Row) -> Example:
    labels = row.get("labels")
    return Example(tokens=TokenizedRow(list(row["input_ids"]), None if labels is None else list(labels)))


def _rows(source: DataSource, pipeline: Pipeline) -> Iterator[tuple[int, Row]]:
    """The rows of a source with their numbers; images in them stay references."""
    rows = source.taken()
    numbers = numbers_of(rows)
    if hasattr(rows, "select"):
        table = rows.with_format("arrow")
        each: Iterator[Row] = (rows_of(table[at : at + 1])[0] for at in range(len(rows)))
    else:
        each = iter(rows.decode(False) if pipeline.expander is not None and rows.features is not None else rows)
    for at, row in enumerate(each):
        yield (at if numbers is None else numbers[at]), row


def _trains_conversations(data: DataPreparation, train: Any, pipeline: Pipeline | None) -> bool:
    """Whether a text is a user's turn, as the training rows have it, and not the beginning of a text."""
    tokenizer = data.tokenizer
    if not tokenizer.chat_template:
        return False
    if pipeline is None:
        return uses_template(tokenizer, None)
    for number, row in itertools.islice(_rows(_sources(train)[0], pipeline), _TRIED):
        row = row if pipeline.meant is None else pipeline.meant(row)
        for example in pipeline.reader.read(row, number):
            if example.tokens is not None:
                labels = example.tokens.labels or example.tokens.input_ids
                return uses_template(tokenizer, {one for one in labels if one != IGNORED})
            return example.messages is not None or not isinstance(example.prompt or example.text, str)
    return True
