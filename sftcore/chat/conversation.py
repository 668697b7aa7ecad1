"""Conversations as text: rendered by the tokenizer's chat template, with the skeleton that tells their turns apart."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from attrs import frozen

from sftcore.chat.shapes import Variant, as_turns, shape_of, variants
from sftcore.chat.skeleton import STOP_APPENDED, Place, Skeleton, is_answered, learn
from sftcore.chat.template import ChatTemplate, SpecialTexts, plain
from sftcore.core.errors import DataError, RowError
from sftcore.core.types import Example, Message, Turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOOLS_LEFT_OUT = "tools left out: the chat template does not render them"

Marks: TypeAlias = "Sequence[tuple[int, int]] | None"

_KEPT = 1024
"""Skeletons that are kept: a data set has few shapes of conversation, unless tools differ from row to row."""


@frozen
class Drawn:
    """A rendered conversation: its skeleton, and how long its words before each hole are, all together.

    `marks` are the characters that the template's own generation markers enclose, None where they were not asked for;
    `stop` is the token that was appended to the rendering.
    """

    text: str
    skeleton: Skeleton
    lengths: Sequence[int]
    marks: Marks
    stop: str
    notes: tuple[str, ...]

    def at(self, place: Place) -> int:
        """The place as a character of the text; the end of the rendering is behind what was appended."""
        at = place.literal + self.lengths[place.holes]
        stop = len(self.stop)
        return at + stop if stop and at == len(self.text) - stop else at


@frozen
class _Setting:
    """What a conversation is rendered with."""

    template: ChatTemplate
    tools: Any
    kwargs: Mapping[str, Any]
    marks: bool

    def render(self, turns: Sequence[Message], variant: Variant, generation_prompt: bool) -> str:
        return self.template.render(as_turns(turns, variant), self.tools, self.kwargs, generation_prompt)

    def render_row(self, turns: Sequence[Message], variant: Variant) -> tuple[str, Marks]:
        if self.marks:
            return self.template.render_marked(as_turns(turns, variant), self.tools, self.kwargs)
        return self.template.render(as_turns(turns, variant), self.tools, self.kwargs, False), None

    def drawn(self, text: str, marks: Marks, skeleton: Skeleton, lengths: Sequence[int]) -> Drawn:
        notes = skeleton.notes
        if self.tools and not self.template.knows_tools:
            notes = (*notes, TOOLS_LEFT_OUT)
        # the template's own marks say what is supervised, and an appended token would not be
        if skeleton.stop and marks is None:
            return Drawn(text + skeleton.stop, skeleton, lengths, marks, skeleton.stop, (*notes, STOP_APPENDED))
        return Drawn(text, skeleton, lengths, marks, "", notes)


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

    def draw(
        self,
        turns: Turns,
        example: Example,
        *,
        prompt_turns: int | None = None,
        marks: bool = False,
        proof: bool = True,
    ) -> Drawn:
        """The conversation as text, verified against the skeleton of its shape.

        Args:
            turns: its messages.
            example: where they come from, with tools and arguments for the template.
            prompt_turns: how many of the messages are the prompt of a completion.
            marks: read the template's generation markers, where it has any.
            proof: whether turns are to be told apart; else a shape that cannot be verified is rendered all the same.

        Raises:
            RowError: the template refuses the conversation, or leaves assistant words out.
            DataError: there is no template.
        """
        setting = self._setting(example, marks)
        shape, words = shape_of(turns)
        tools, kwargs = setting.tools, setting.kwargs
        key = (shape, prompt_turns, repr(tools) if tools else "", repr(kwargs) if kwargs else "")
        kept = self._kept.get(key)
        if kept is not None:
            text, found = setting.render_row(turns, kept.variant)
            if kept.unproven:
                if not proof or found is not None:
                    return setting.drawn(text, found, kept, ())
            else:
                filled, lengths = kept.fill(words)
                if filled == text:
                    return setting.drawn(text, found, kept, lengths)
        return self._learn(turns, words, setting, key, prompt_turns)

    def render_prompt(self, turns: Turns, prompt_turns: int, example: Example, variant: Variant) -> str:
        """The first of the messages on their own, with the generation prompt where they are answered."""
        answered = is_answered(turns, prompt_turns)
        return self._setting(example, False).render(turns[:prompt_turns], variant, answered)

    def _learn(
        self, turns: Turns, words: Sequence[str], setting: _Setting, key: Hashable, prompt_turns: int | None
    ) -> Drawn:
        """The same with a skeleton made for this very conversation, kept if it may serve for others."""
        _refuse_what_would_vanish(turns, setting.template)
        best: tuple[str, Marks, Skeleton] | None = None
        first_error: RowError | None = None
        for variant in variants(turns, setting.template.prints):
            try:
                tried = self._try(turns, setting, variant, prompt_turns)
            except RowError as error:
                first_error = first_error or error
                continue
            if best is None or not tried[2].left_out:
                best = tried
            if not best[2].left_out:
                break
        if best is None:
            assert first_error is not None
            raise first_error
        text, found, skeleton = best
        if skeleton.general:
            if len(self._kept) >= _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = skeleton
        return setting.drawn(text, found, skeleton, () if skeleton.unproven else skeleton.fill(words)[1])

    def _try(
        self, turns: Turns, setting: _Setting, variant: Variant, prompt_turns: int | None
    ) -> tuple[str, Marks, Skeleton]:
        def render(turns: Sequence[Message], generation_prompt: bool) -> str:
            return setting.render(turns, variant, generation_prompt)

        text, found = setting.render_row(turns, variant)
        habits = setting.template.habits(setting.kwargs)
        return text, found, learn(turns, text, render, habits, self._special, variant, prompt_turns)

    def _setting(self, example: Example, marks: bool) -> _Setting:
        tools = plain(example.tools) if example.tools else None
        template = self._template(tools)
        kwargs = plain(example.template_kwargs) if example.template_kwargs else {}
        return _Setting(template, tools, kwargs, marks and template.has_markers)

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


def _refuse_what_would_vanish(turns: Turns, template: ChatTemplate) -> None:
    for i, turn in enumerate(turns):
        if turn.tool_calls and not template.knows_calls:
            raise RowError(
                f"message {i} calls a tool, and the chat template would leave the call out.",
                fix="Use a template that renders tool_calls, or keep calls as text: "
                "format: {sharegpt: {function_call: content}}.",
            )
