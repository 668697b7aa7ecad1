"""Conversations as text, rendered by the tokenizer's chat template, with a skeleton that says where each turn is."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
from attrs import frozen

from sftcore.chat.markers.located import MarkersError, RenderMarked
from sftcore.chat.markers.rewritten import prove_by_other_words
from sftcore.chat.proof import with_other_texts
from sftcore.chat.shapes import Variant, as_turns, shape_of, variants
from sftcore.chat.skeleton import READS_WORDS, REWRITTEN, STOP_APPENDED, Position, Skeleton, is_answered, learn
from sftcore.chat.template import ChatTemplate, SpecialTexts, json_data
from sftcore.core.errors import DataError, RowError
from sftcore.core.types import Example, Message, Turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOOLS_LEFT_OUT = "tools left out, because the chat template does not render them"

Marks: TypeAlias = "Sequence[tuple[int, int]] | None"

_TEXTS = ("text", "title", "contents", "content")
"""The keys of documents that hold texts."""
_KEPT = 1024
"""How many skeletons are kept; a data set has few shapes of conversation unless tools differ from row to row."""


@frozen
class RenderedConversation:
    """A rendered conversation with its skeleton.

    `lengths` holds, for each slot, the total length of the words in the slots before it. `marks` are the ranges of
    characters inside the template's own generation markers, or None where they were not asked for. `stop` is the token
    that was appended to the rendering, if any.
    """

    text: str
    skeleton: Skeleton
    lengths: Sequence[int]
    marks: Marks
    stop: str
    notes: tuple[str, ...]

    def at(self, position: Position) -> int:
        """The position as an index into the text."""
        return position.at(self.lengths)

    def places(self) -> list[tuple[int, int, int]]:
        """Where the conversation's texts are in the rendering: number, beginning and end, in the order of the slots."""
        skeleton, at, found = self.skeleton, 0, []
        for slot, literal in enumerate(skeleton.literals[:-1]):
            at += len(literal)
            length = self.lengths[slot + 1] - self.lengths[slot]
            found.append((slot if skeleton.order is None else skeleton.order[slot], at, at + length))
            at += length
        return found

    def end_at(self, position: Position) -> int:
        """The position where something ends; the end of the rendering comes after an appended stop token."""
        at, stop = self.at(position), len(self.stop)
        return at + stop if stop and at == len(self.text) - stop else at


@frozen
class _Setting:
    """The template and arguments that a conversation is rendered with."""

    template: ChatTemplate
    tools: Any
    kwargs: Mapping[str, Any]
    marks: bool

    def render(self, turns: Sequence[Message], variant: Variant, generation_prompt: bool) -> str:
        return self.template.render(as_turns(turns, variant), self.tools, self.kwargs, generation_prompt)

    def otherwise(self) -> _Setting:
        """The same with other tools and documents."""
        kwargs = with_other_texts(self.kwargs, _TEXTS)
        return attrs.evolve(self, tools=with_other_texts(self.tools), kwargs=kwargs)

    def rendering_marked(self, variant: Variant) -> RenderMarked:
        """Renders messages with what the template's generation markers enclose."""
        return lambda turns: self.template.render_marked(as_turns(turns, variant), self.tools, self.kwargs)

    def render_row(self, turns: Sequence[Message], variant: Variant) -> tuple[str, Marks]:
        if self.marks:
            return self.template.render_marked(as_turns(turns, variant), self.tools, self.kwargs)
        return self.template.render(as_turns(turns, variant), self.tools, self.kwargs, False), None

    def finished(self, text: str, marks: Marks, skeleton: Skeleton, lengths: Sequence[int]) -> RenderedConversation:
        notes = skeleton.notes
        if self.tools and not self.template.knows_tools:
            notes = (*notes, TOOLS_LEFT_OUT)
        # the template's own marks say what is supervised, and an appended token is only where they leave the end out
        stop = skeleton.stop if marks is None or skeleton.unmarked else ""
        if stop:
            notes = (*notes, STOP_APPENDED)
        return RenderedConversation(text + stop, skeleton, lengths, marks, stop, notes)


class CallLeftOutError(RowError):
    """The chat template does not know calls of tools."""


class Conversations:
    """Renders conversations for one tokenizer, and keeps the skeletons of their shapes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special: SpecialTexts) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._templates: dict[bool, ChatTemplate] = {}
        self._kept: dict[Hashable, Skeleton] = {}
        self._edges: dict[Hashable, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the learned templates and skeletons: workers learn their own, and no cache key depends on them."""
        return {**self.__dict__, "_templates": {}, "_kept": {}, "_edges": {}}

    def render(
        self,
        turns: Turns,
        example: Example,
        *,
        prompt_turns: int | None = None,
        marks: bool = False,
        proof: bool = True,
    ) -> RenderedConversation:
        """The conversation as text, verified against the skeleton of its shape.

        Args:
            turns: its messages.
            example: the example that they belong to, with tools and arguments for the template.
            prompt_turns: how many of the messages are the prompt of a completion.
            marks: whether to read the template's generation markers, if it has any.
            proof: whether the turns must be located; if not, a shape that cannot be verified is rendered anyway.

        Raises:
            RowError: the template refuses the conversation, or leaves words of the assistant out.
            DataError: the tokenizer has no chat template.
        """
        setting = self._setting(example, marks)
        shape, words = shape_of(turns)
        tools, kwargs = setting.tools, setting.kwargs
        key = (shape, prompt_turns, setting.marks, repr(tools) if tools else "", repr(kwargs) if kwargs else "")
        kept = self._kept.get(key)
        if kept is not None:
            text, found = setting.render_row(turns, kept.variant)
            if kept.unproven:
                if not proof or found is not None:
                    self._prove_marks(turns, setting, text, found, kept)
                    return setting.finished(text, found, kept, ())
            else:
                filled, lengths = kept.fill(words)
                if filled == text and (found is None or kept.encloses(found, lengths)):
                    return setting.finished(text, found, kept, lengths)
        return self._learn(turns, words, setting, key, prompt_turns)

    def template(self, example: Example) -> ChatTemplate:
        """The template of this example.

        Raises:
            DataError: the tokenizer has no chat template.
        """
        return self._setting(example, False).template

    def render_prompt(self, turns: Turns, prompt_turns: int, example: Example, variant: Variant) -> str:
        """The prompt's messages on their own, with the generation prompt if the assistant answers them."""
        answered = is_answered(turns, prompt_turns)
        return self._setting(example, False).render(turns[:prompt_turns], variant, answered)

    def render_question(self, turns: Turns, example: Example) -> str:
        """The messages as the assistant is asked to answer them, passed to the template as with an answer behind them.

        Raises:
            RowError: the template refuses them.
            DataError: the tokenizer has no chat template.
        """
        answered = [*turns, Message("assistant", "x")]
        variant = self.render(answered, example, proof=False).skeleton.variant
        return self._setting(example, False).render(turns, variant, True)

    def _learn(
        self, turns: Turns, words: Sequence[str], setting: _Setting, key: Hashable, prompt_turns: int | None
    ) -> RenderedConversation:
        """Render with a new skeleton for this conversation, and keep the skeleton if other conversations can use it."""
        _refuse_what_would_vanish(turns, setting.template)
        best: tuple[str, Marks, Skeleton] | None = None
        first_error: RowError | None = None
        as_json = any(turn.tool_calls for turn in turns) and setting.template.prints_python(setting.tools)
        for variant in variants(turns, setting.template.prints, as_json=as_json):
            try:
                tried = self._try(turns, setting, variant, prompt_turns)
            except RowError as error:
                first_error = first_error or error
                continue
            if best is None or _flaws(tried[2]) < _flaws(best[2]):
                best = tried
            if not any(_flaws(best[2])):
                break
        if best is None:
            assert first_error is not None
            raise first_error
        text, found, skeleton = best
        self._refuse_dropped_parts(turns, setting, skeleton.variant)
        if skeleton.as_python:
            raise RowError(
                "the chat template prints tool calls as Python shows them, not as JSON.",
                fix="Print them with tojson in the template.",
            )
        lengths = () if skeleton.unproven else skeleton.fill(words)[1]
        if found is not None and not skeleton.unproven and not skeleton.encloses(found, lengths):
            skeleton, lengths = attrs.evolve(skeleton, unproven=READS_WORDS, stop="", unmarked=()), ()
        self._prove_marks(turns, setting, text, found, skeleton)
        if skeleton.general:
            if len(self._kept) >= _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = skeleton
        return setting.finished(text, found, skeleton, lengths)

    def _prove_marks(self, turns: Turns, setting: _Setting, text: str, marks: Marks, skeleton: Skeleton) -> None:
        """Prove by other words what markers enclose in a conversation whose turns are not known."""
        if marks is None or not skeleton.unproven:
            return

        def render(turns: Sequence[Message]) -> str:
            return setting.render(turns, skeleton.variant, False)

        render_marked = setting.rendering_marked(skeleton.variant)
        render_otherwise = setting.otherwise().rendering_marked(skeleton.variant)
        traits = setting.template.traits(setting.tools, setting.kwargs)
        try:
            prove_by_other_words(turns, text, marks, render_marked, render_otherwise, render, traits, self._special)
        except MarkersError as error:
            raise setting.template.with_lines(error) from None

    def _refuse_dropped_parts(self, turns: Turns, setting: _Setting, variant: Variant) -> None:
        """Parts that hold no text leave no sentinel, so that one that the template drops has to be looked for."""
        whole: str | None = None
        for i, turn in enumerate(turns):
            parts = turn.content if turn.content is not None and not isinstance(turn.content, str) else ()
            for number, part in enumerate(parts):
                if part.text is not None or part.type == "text":
                    continue
                whole = setting.render(turns, variant, False) if whole is None else whole
                others = attrs.evolve(turn, content=[*parts[:number], *parts[number + 1 :]])
                try:
                    without = setting.render([*turns[:i], others, *turns[i + 1 :]], variant, False)
                except RowError:
                    continue
                if without == whole:
                    raise RowError(
                        f'message {i} has a part of type "{part.type}", which the chat template does not render.',
                        fix="Use a model and template that do, or remove the part.",
                    )

    def _try(
        self, turns: Turns, setting: _Setting, variant: Variant, prompt_turns: int | None
    ) -> tuple[str, Marks, Skeleton]:
        def render(turns: Sequence[Message], generation_prompt: bool) -> str:
            return setting.render(turns, variant, generation_prompt)

        def render_otherwise(turns: Sequence[Message]) -> str:
            return setting.otherwise().render(turns, variant, False)

        text, found = setting.render_row(turns, variant)
        traits = setting.template.traits(setting.tools, setting.kwargs)
        context = (bool(setting.tools), repr(setting.kwargs), variant)
        edges, special = self._edges, self._special
        marked = None if found is None else setting.rendering_marked(variant)
        try:
            skeleton = learn(
                turns, text, render, traits, special, variant, edges, context, render_otherwise, prompt_turns, marked
            )
        except MarkersError as error:
            raise setting.template.with_lines(error) from None
        return text, found, skeleton

    def _setting(self, example: Example, marks: bool) -> _Setting:
        tools = json_data(example.tools) if example.tools else None
        template = self._template(tools)
        kwargs = json_data(example.template_kwargs) if example.template_kwargs else {}
        return _Setting(template, tools, kwargs, marks and bool(template.marker_lines))

    def _template(self, tools: Any) -> ChatTemplate:
        template = self._templates.get(bool(tools))
        if template is None:
            if not self._tokenizer.chat_template:
                raise DataError(
                    "the data are conversations, but the tokenizer has no chat template.",
                    fix="Give one with chat_template_path (a .jinja file), or use a model that has one.",
                )
            source: str = self._tokenizer.get_chat_template(None, tools)
            template = ChatTemplate(source, dict(self._tokenizer.special_tokens_map), self._special)
            self._templates[bool(tools)] = template
        return template


def _flaws(skeleton: Skeleton) -> tuple[bool, bool, bool]:
    """What is wrong with a way to pass the messages, the worst first."""
    unlocated = bool(skeleton.unproven) and skeleton.unproven != REWRITTEN
    return unlocated, skeleton.as_python, skeleton.left_out


def _refuse_what_would_vanish(turns: Turns, template: ChatTemplate) -> None:
    for i, turn in enumerate(turns):
        if turn.tool_calls and not template.knows_calls:
            raise CallLeftOutError(
                f"message {i} calls a tool, but the chat template would leave the call out.",
                fix="Use a template that renders tool_calls.",
            )
