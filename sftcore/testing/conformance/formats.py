"""What a format has to pass: it reads its rows the same way each time, and what should count counts."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import pytest

from sftcore.core.types import IGNORED, Example, Message, Row, Selection
from sftcore.data.images.expand import is_vision
from sftcore.testing.conformance.base import PluginTests
from sftcore.testing.conformance.under_test import UnderTest

UNKNOWN = ("a_column_that_nobody_has",)
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML that shows tools, calls and reasoning, so that a format which gives them can be rendered."""


class FormatTests(PluginTests):
    """The tests of a format.

    rows: a few raw rows, as they stand in a data set; different ones are better. supervised: for each example that the
    format makes of them, the text that should count for the loss, without special tokens; if it is not given, that of
    completions, or of the assistant's turns, must count and what stands in prompts must not.
    """

    kind = "format"
    needs = ("make_formatter",)
    rows: ClassVar[Sequence[Row] | None] = None
    supervised: ClassVar[Sequence[str] | None] = None

    def test_its_own_rows_are_detected_and_unknown_ones_are_not(self) -> None:
        one = self.tested
        plugins = one.alone()
        if not plugins.answers("detects"):
            return
        with one.asked("detects"):
            unknown = plugins.all("detects", columns=UNKNOWN)
            own = [answer for _, answer in plugins.all("detects", columns=tuple(self._rows()[0]))]
        one.require(
            not any(answer for _, answer in unknown),
            "detects says yes to columns that it cannot know. format: auto would take it for every data set.",
        )
        one.require(all(isinstance(answer, bool) for answer in own), f"detects has to answer True or False, not {own}.")
        one.require(own == [True], f"detects says no to the columns of its own rows: {', '.join(self._rows()[0])}.")

    def test_each_row_becomes_examples(self) -> None:
        one = self.tested
        for number, examples in enumerate(self._examples(one)):
            one.require(examples, f"row {number} gives no example.")
            for example in examples:
                one.require(
                    isinstance(example, Example),
                    f"row {number} gives {type(example).__name__}, where an Example or several are meant.",
                )

    def test_a_row_is_read_the_same_way_each_time(self) -> None:
        one, rows = self.tested, self._rows()
        first = self._examples(one)
        read = self._formatter(one)
        with one.asked("reading its rows"):
            backwards = [_several(read(copy.deepcopy(dict(row)))) for row in reversed(rows)][::-1]
            again = [_several(read(copy.deepcopy(dict(row)))) for row in rows]
        for number, found in enumerate(zip(first, backwards, again, strict=True)):
            one.require(
                found[0] == found[1] == found[2],
                f"row {number} is read differently the second time, or after other rows. What a row becomes may depend "
                "on nothing else: a run that is resumed or replayed would get other data.",
            )

    def test_rows_are_left_as_they_are(self) -> None:
        one = self.tested
        read = self._formatter(one)
        for number, row in enumerate(self._rows()):
            given = copy.deepcopy(dict(row))
            with one.asked(f"reading row {number}"):
                _several(read(given))
            one.require(
                given == dict(row),
                f"reading row {number} changes the row itself. Copy what is changed: row = dict(row).",
            )

    def test_what_should_count_counts_and_nothing_else(self) -> None:
        one = self.tested
        examples = [example for each in self._examples(one) for example in each]
        prepared = self._prepared(one)
        one.require(
            len(prepared) == len(examples),
            f"{len(examples)} examples are {len(prepared)} rows once they are prepared: some have nothing that counts.",
        )
        for number, (example, row) in enumerate(zip(examples, prepared, strict=True)):
            said = _text_that_counts(self._processor(one), row)
            if self.supervised is not None:
                wanted = self.supervised[number]
                one.require(said.strip() == wanted.strip(), f"example {number}: {said!r} counts, not {wanted!r}.")
            elif example.tokens is not None:
                self._require_labels(one, number, example, row)
            else:
                self._require_texts(one, number, example, said)

    def test_packing_keeps_every_token_and_label(self) -> None:
        one = self.tested
        alone = [_document(row) for row in self._prepared(one)]
        packed = [document for block in self._prepared(one, packing=True) for document in _documents(block)]
        one.require(sorted(alone) == sorted(packed), "packing its rows loses or changes tokens or labels.")

    def test_worker_processes_prepare_the_same(self) -> None:
        one = self.tested
        alone, together = self._prepared(one), self._prepared(one, dataset_num_proc=2)
        one.require(alone == together, "two worker processes prepare its rows differently from one.")

    # --- How it is asked ----------------------------------------------------------------------------------------------
    def _rows(self) -> Sequence[Row]:
        if self.rows is None:
            pytest.fail(f"{type(self).__name__} needs `rows`, a few rows as they stand in a data set.", pytrace=False)
        if not self.rows:
            pytest.skip("there are no rows to read: give some with --data, or in a FormatTests of the package")
        return self.rows

    def _formatter(self, one: UnderTest) -> Any:
        with one.asked("make_formatter"):
            read = one.alone().one("make_formatter", columns=tuple(self._rows()[0]))
        one.require(callable(read), f"make_formatter gives {type(read).__name__}, where a function of a row is meant.")
        return read

    def _examples(self, one: UnderTest) -> list[list[Any]]:
        read, found = self._formatter(one), []
        for number, row in enumerate(self._rows()):
            with one.asked(f"reading row {number}"):
                answer = read(copy.deepcopy(dict(row)))
            one.require(
                isinstance(answer, (Example, list, tuple)),
                f"row {number} gives {type(answer).__name__}, where an Example or a list of them is meant.",
            )
            found.append(_several(answer))
        return found

    def _processor(self, one: UnderTest) -> Any:
        from sftcore.testing.tiny import make_tokenizer

        if any(example.images for each in self._examples(one) for example in each):
            from sftcore.testing.tiny_vlm import make_processor

            return make_processor("llava")
        return make_tokenizer(template=TEMPLATE)

    def _prepared(self, one: UnderTest, **settings: Any) -> list[dict[str, Any]]:
        """The rows as a run prepares them: formatted, rendered, tokenized and masked."""
        from datasets import Dataset

        from sftcore.data.sets import DataPreparation

        processor = self._processor(one)
        vision = is_vision(processor)
        tokenizer = processor.tokenizer if vision else processor
        if any(example.messages is not None for each in self._examples(one) for example in each):
            settings["assistant_only_loss"] = True
        chosen = [Selection("collator", "vlm", path="the test")] if vision else []
        with one.in_a_run(chosen, dataset_cache=False, **settings) as setup, one.asked("preparing its rows"):
            data = DataPreparation(setup, tokenizer, 2048, processor=processor if vision else None)
            found = data.prepare(Dataset.from_list([dict(row) for row in self._rows()]), "rows")
            return [dict(row) for row in found]

    # --- What has to count --------------------------------------------------------------------------------------------
    def _require_labels(self, one: UnderTest, number: int, example: Example, row: Mapping[str, Any]) -> None:
        tokens = example.tokens
        assert tokens is not None
        wanted = list(tokens.input_ids if tokens.labels is None else tokens.labels)
        one.require(list(row["labels"])[1:] == wanted[1:], f"example {number} has other labels once it is prepared.")

    def _require_texts(self, one: UnderTest, number: int, example: Example, said: str) -> None:
        counting, others = _texts_of(example)
        for text in counting:
            one.require(
                text in said,
                f"example {number}: {text!r} should count for the loss and does not; what counts is {said!r}.",
            )
        for text in others:
            if len(text) > 2 and not any(text in other for other in counting):
                one.require(
                    text not in said, f"example {number}: {text!r} stands in the prompt, and counts for the loss."
                )


def _several(answer: Any) -> list[Any]:
    return [answer] if isinstance(answer, Example) else list(answer)


def _texts_of(example: Example) -> tuple[list[str], list[str]]:
    """The texts of an example that count for the loss, and those that do not."""
    if example.text is not None:
        return [example.text], []
    if isinstance(example.prompt, str):
        return [str(example.completion).strip()], [example.prompt.strip()]
    counting: list[str] = []
    others: list[str] = []
    turns = [*_with_default(example.prompt or (), False), *_with_default(example.completion or (), True)]
    turns += [(one, one.role == "assistant") for one in example.messages or ()]
    for message, default in turns:
        counts = default if message.train is None else message.train
        counts = counts and message.role == "assistant" and message.weight != 0
        (counting if counts else others).extend(_words_of(message))
    return counting, others


def _with_default(turns: Any, counts: bool) -> list[tuple[Message, bool]]:
    return [(one, counts) for one in turns]


def _words_of(message: Message) -> Iterator[str]:
    content = message.content or ""
    parts = [content] if isinstance(content, str) else [part.text or "" for part in content]
    yield from (text.strip() for text in parts if text.strip())
    yield from (call["function"]["name"] for call in message.tool_calls if "function" in call)


def _text_that_counts(processor: Any, row: Mapping[str, Any]) -> str:
    tokenizer = getattr(processor, "tokenizer", processor)
    runs: list[list[int]] = [[]]
    for label in row["labels"]:
        if label == IGNORED:
            runs.append([])
        else:
            runs[-1].append(label)
    return "\n".join(tokenizer.decode(run, skip_special_tokens=True) for run in runs if run)


def _document(row: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(row["input_ids"]), (IGNORED, *row["labels"][1:])


def _documents(block: Mapping[str, Any]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    start = 0
    for length in block["seq_lengths"]:
        yield _document({key: block[key][start : start + length] for key in ("input_ids", "labels")})
        start += length
