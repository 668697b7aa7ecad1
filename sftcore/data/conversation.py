"""Conversations as text: rendered by the tokenizer's chat template, with the skeleton that tells their turns apart."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen

from sftcore.data.shapes import Variant, as_turns, shape_of, variants
from sftcore.data.skeleton import STOP_APPENDED, Place, Skeleton, learn
from sftcore.data.templates import ChatTemplate, SpecialTexts, plain
from sftcore.errors import DataError, RowError
from sftcore.types import Example, Message, Turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOOLS_LEFT_OUT = "tools left out: the chat template does not render them"

_KEPT = 1024
"""Skeletons that are kept: a data set has few shapes of conversation, unless tools differ from row to row."""


@frozen
class Drawn:
    """A rendered conversation: its skeleton, and how long its words before each hole are, all together.

    `marks` are the characters that the template's own generation markers enclose, None where they were not asked for.
    """

    text: str
    skeleton: Skeleton
    lengths: Sequence[int]
    marks: Sequence[tuple[int, int]] | None
    notes: tuple[str, ...]

    def at(self, place: Place) -> int:
        """The place as a character of the text."""
        at = place.literal + self.lengths[place.holes]
        stop = len(self.skeleton.stop)
        return at + stop if stop and at == len(self.text) - stop else at


class Conversations:
    """Renders conversations for one tokenizer, and keeps what it learns of their shapes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special: SpecialTexts) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._templates: dict[bool, ChatTemplate] = {}
        self._kept: dict[Hashable, Skeleton] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without what was learned: it is learned anew in a worker, and no cache key depends on it."""
        return {**self.__dict__, "_templates": {}, "_kept": {}}

    def draw(self, turns: Turns, example: Example, *, prompt_turns: int | None = None, marks: bool = False) -> Drawn:
        """The conversation as text, verified against the skeleton of its shape.

        Args:
            turns: its messages.
            example: where they come from, with tools and arguments for the template.
            prompt_turns: how many of the messages are the prompt of a completion.
            marks: read the template's generation markers, where it has any.

        Raises:
            RowError: the template refuses the conversation, or leaves assistant words out.
            DataError: there is no template.
        """
        tools = plain(example.tools) if example.tools else None
        kwargs = plain(example.template_kwargs) if example.template_kwargs else {}
        template = self._template(tools)
        marks = marks and template.has_markers
        shape, words = shape_of(turns)
        key = (shape, prompt_turns, repr(tools) if tools else "", repr(kwargs) if kwargs else "")
        if (kept := self._kept.get(key)) is not None:
            text, found = _render(template, as_turns(turns, kept.variant), tools, kwargs, marks)
            if kept.unproven:
                return self._drawn(text, kept, (), found, template, tools)
            filled, lengths = kept.fill(words)
            if filled == text:
                return self._drawn(text, kept, lengths, found, template, tools)
        return self._learn(turns, words, template, tools, kwargs, key, prompt_turns, marks)

    def render_prompt(self, turns: Turns, example: Example, variant: Variant) -> str:
        """A prompt on its own, with the generation prompt where it is to be answered."""
        tools = plain(example.tools) if example.tools else None
        template = self._template(tools)
        # a prompt that ends with the assistant's words is continued, not answered
        answered = turns[-1].role != "assistant"
        return template.render(as_turns(turns, variant), tools, plain(example.template_kwargs), answered)

    def _learn(
        self,
        turns: Turns,
        words: Sequence[str],
        template: ChatTemplate,
        tools: Any,
        kwargs: Mapping[str, Any],
        key: Hashable,
        prompt_turns: int | None,
        marks: bool,
    ) -> Drawn:
        """The same with a skeleton made for this very conversation, kept if it may serve for others."""
        _refuse_what_would_vanish(turns, template)
        first_error: RowError | None = None
        for variant in variants(turns, template.prints):

            def render(turns: Sequence[Message], prompt: bool, variant: Variant = variant) -> str:
                return template.render(as_turns(turns, variant), tools, kwargs, prompt)

            try:
                text, found = _render(template, as_turns(turns, variant), tools, kwargs, marks)
                skeleton = learn(
                    turns, text, render, template.habits(kwargs), self._special,
                    variant=variant, prompt_turns=prompt_turns,
                )  # fmt: skip
            except RowError as error:
                first_error = first_error or error
                continue
            if skeleton.general:
                if len(self._kept) >= _KEPT:
                    del self._kept[next(iter(self._kept))]
                self._kept[key] = skeleton
            lengths = skeleton.fill(words)[1] if not skeleton.unproven else ()
            return self._drawn(text, skeleton, lengths, found, template, tools)
        assert first_error is not None
        raise first_error

    @staticmethod
    def _drawn(
        text: str,
        skeleton: Skeleton,
        lengths: Sequence[int],
        marks: Sequence[tuple[int, int]] | None,
        template: ChatTemplate,
        tools: Any,
    ) -> Drawn:
        notes = skeleton.notes
        if tools and not template.knows_tools:
            notes = (*notes, TOOLS_LEFT_OUT)
        if skeleton.stop and marks is None:
            return Drawn(text + skeleton.stop, skeleton, lengths, marks, (*notes, STOP_APPENDED))
        return Drawn(text, skeleton, lengths, marks, notes)

    def _template(self, tools: Any) -> ChatTemplate:
        template = self._templates.get(bool(tools))
        if template is None:
            if not self._tokenizer.chat_template:
                raise DataError(
                    "the data are conversations, and the tokenizer has no chat template.",
                    fix="Give one with chat_template_path (a .jinja file), or use a model that has one.",
                )
            source: str = self._tokenizer.get_chat_template(None, tools)
            template = ChatTemplate(source, dict(self._tokenizer.special_tokens_map), self._special)
            self._templates[bool(tools)] = template
        return template


def _render(
    template: ChatTemplate, turns: Sequence[Any], tools: Any, kwargs: Mapping[str, Any], marks: bool
) -> tuple[str, Sequence[tuple[int, int]] | None]:
    if marks:
        return template.render_marked(turns, tools, kwargs)
    return template.render(turns, tools, kwargs, False), None


def _refuse_what_would_vanish(turns: Turns, template: ChatTemplate) -> None:
    for i, turn in enumerate(turns):
        if turn.role != "assistant" and (turn.train or turn.weight):
            raise RowError(
                f"message {i} ({turn.role}) is to be trained on, and only assistant turns can be.",
                fix='Give "train" or "weight" to assistant messages alone.',
            )
        if turn.tool_calls and not template.knows_calls:
            raise RowError(
                f"message {i} calls a tool, and the chat template would leave the call out.",
                fix="Use a template that renders tool_calls, or keep calls as text: "
                "format: {sharegpt: {function_call: content}}.",
            )
