"""Examples into text with the spans of it that are supervised. Spans are of characters; tokens come later, once."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
from attrs import frozen

from sftcore.data.spans import AssistantSpans, Render
from sftcore.errors import DataError, RowError
from sftcore.types import Example, Message, Part, Span, Turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "q7zXprobeXz7q"


@frozen
class Rendered:
    """A text as the tokenizer will see it. `spans` None: every token counts, those that the tokenizer adds included."""

    text: str
    spans: tuple[Span, ...] | None
    add_special_tokens: bool


class Renderer:
    """Renders examples for one tokenizer and one choice of what is supervised.

    Args:
        tokenizer: its chat template is used for messages.
        completion_only: True, False, or None for "where the example has a completion".
        assistant_only: supervise the assistant's turns alone, by the template's generation markers, or where it has
            none by spans that are derived and verified (see sftcore.data.spans).
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, completion_only: bool | None = None, assistant_only: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._completion_only = completion_only
        self._assistant_only = assistant_only
        self._eos = "" if _appends_eos(tokenizer) else (tokenizer.eos_token or "")
        self._special_tokens: Mapping[str, Any] = dict(tokenizer.special_tokens_map)
        self._end_tokens = tuple(_special_texts(tokenizer))
        self._learned: dict[tuple[str, str], AssistantSpans] = {}
        self._printed: dict[tuple[str, bool], bool] = {}

    def render(self, example: Example) -> Rendered:
        """The example's text and spans.

        Raises:
            RowError: this example cannot be rendered, or what is to be supervised cannot be told apart in it.
            DataError: the tokenizer cannot render any example of this kind.
        """
        if example.text is not None:
            self._refuse_completion_only("a text")
            self._refuse_assistant_only()
            return Rendered(self._with_eos(example.text), None, True)
        if example.messages is not None:
            self._refuse_completion_only("messages")
            text, marked = self._chat(example.messages, example)
            return Rendered(text, marked, False)
        if isinstance(example.prompt, str):
            self._refuse_assistant_only()
            text = self._with_eos(example.prompt + str(example.completion))
            spans = None if self._completion_only is False else (Span(len(example.prompt), len(text)),)
            return Rendered(text, spans, True)
        return self._prompt_and_completion(example)

    def _prompt_and_completion(self, example: Example) -> Rendered:
        prompt, completion = list(_turns(example.prompt)), list(_turns(example.completion))
        text, marked = self._chat([*prompt, *completion], example)
        if self._completion_only is False:
            return Rendered(text, marked, False)
        # A prompt that ends with the assistant's words is continued, not answered
        answered = prompt[-1].role != "assistant"
        start, _ = self._chat(prompt, example, generation_prompt=answered, marks=False)
        if not text.startswith(start):
            raise RowError(
                "the chat template renders the prompt differently when the completion follows, "
                "so the completion cannot be told apart.",
                fix="Set completion_only_loss: false, or use a template whose rendering only grows.",
            )
        span = Span(len(start), self._end_of_turn(text, len(start)))
        return Rendered(text, (span,) if marked is None else _clip(marked, span), False)

    def _chat(
        self, turns: Sequence[Message], example: Example, *, generation_prompt: bool = False, marks: bool = True
    ) -> tuple[str, tuple[Span, ...] | None]:
        """The rendered conversation, and the template's own marks of the assistant's turns where they are wanted."""
        from transformers.utils.chat_template_utils import render_jinja_template

        tools = [dict(tool) for tool in example.tools] if example.tools else None
        template = self._template(tools)
        self._refuse_what_would_vanish(turns, template)
        turns = self._shaped(turns, template)
        if tools and "tools" not in template:
            warnings.warn("tools are left out: the chat template does not render them.", stacklevel=2)
        singled_out = any(turn.train is not None or turn.weight is not None for turn in turns)
        wanted = marks and (self._assistant_only or singled_out)
        # Markers do not say whose turn they mark, so turns that are singled out are always derived
        has_markers = not singled_out and _has_generation_markers(template)

        def rendered(turns: Sequence[Message], generation_prompt: bool) -> tuple[str, list[tuple[int, int]]]:
            try:
                texts, marked = render_jinja_template(
                    conversations=[[turn.as_template() for turn in turns]],
                    tools=tools,
                    chat_template=template,
                    return_assistant_tokens_mask=wanted and has_markers,
                    add_generation_prompt=generation_prompt,
                    **{**self._special_tokens, **example.template_kwargs},
                )
            except Exception as error:  # templates raise TemplateError by themselves, and Python errors by accident
                raise RowError(
                    f"the chat template refuses this conversation: {type(error).__name__}: {error}.",
                    fix=f"Its roles: {', '.join(turn.role for turn in turns)}.",
                ) from error
            return texts[0], marked[0] if wanted and has_markers else []

        text, marked = rendered(turns, generation_prompt)
        if not wanted:
            return text, None
        if has_markers:
            return text, tuple(Span(*mark) for mark in marked)
        return text, self._derived(turns, text, template, example, lambda turns, prompt: rendered(turns, prompt)[0])

    def _shaped(self, turns: Sequence[Message], template: str) -> list[Message]:
        """The turns with their content in a shape that the template prints: plain strings, or lists of parts."""
        if not self._prints(template, [Part("text", _PROBE)]):
            return [_joined(turn, i) for i, turn in enumerate(turns)]
        if not self._prints(template, _PROBE):
            return [_in_parts(turn) for turn in turns]
        return list(turns)

    def _prints(self, template: str, content: str | list[Part]) -> bool:
        """Whether the template prints the words of such content: not nothing, nor a list as Python shows it."""
        key = (template, isinstance(content, str))
        if key not in self._printed:
            from transformers.utils.chat_template_utils import render_jinja_template

            conversation = [Message("user", content).as_template()]
            try:
                (text,), _ = render_jinja_template([conversation], chat_template=template, **self._special_tokens)
            except Exception:  # a template that knows the other shape only raises whatever it stumbles upon
                text = ""
            self._printed[key] = _PROBE in text and "'type'" not in text and '"type"' not in text
        return self._printed[key]

    def _derived(
        self, turns: Sequence[Message], text: str, template: str, example: Example, render: Render
    ) -> tuple[Span, ...]:
        """The assistant's turns in a template without markers; what is learned of a template is kept."""
        key = (template, repr(sorted(example.template_kwargs.items())))
        if key not in self._learned:
            self._learned[key] = AssistantSpans(render, self._end_tokens, self._tokenizer.eos_token or "")
        return self._learned[key].find(turns, text, render)

    def _template(self, tools: list[dict[str, Any]] | None) -> str:
        if not self._tokenizer.chat_template:
            raise DataError(
                "the data are conversations, and the tokenizer has no chat template.",
                fix="Give one with chat_template_path (a .jinja file), or use a model that has one.",
            )
        template: str = self._tokenizer.get_chat_template(None, tools)
        return template

    def _refuse_what_would_vanish(self, turns: Sequence[Message], template: str) -> None:
        for i, turn in enumerate(turns):
            if turn.role != "assistant" and (turn.train or turn.weight):
                raise RowError(
                    f"message {i} ({turn.role}) is to be trained on, and only assistant turns can be.",
                    fix='Give "train" or "weight" to assistant messages alone.',
                )
            if turn.tool_calls and "tool_calls" not in template:
                raise RowError(
                    f"message {i} calls a tool, and the chat template would leave the call out.",
                    fix="Use a template that renders tool_calls, or keep calls as text: "
                    "format: {sharegpt: {function_call: content}}.",
                )

    def _with_eos(self, text: str) -> str:
        return text if self._eos and text.endswith(self._eos) else text + self._eos

    def _end_of_turn(self, text: str, start: int) -> int:
        """Where the completion ends: behind its last end token; what the template always adds after it is no answer."""
        stripped = text[start:].rstrip()
        return start + len(stripped) if stripped.endswith(self._end_tokens) else len(text)

    def _refuse_completion_only(self, shape: str) -> None:
        if self._completion_only:
            raise DataError(
                f"completion_only_loss=True needs rows with a prompt and a completion, these are {shape}.",
                fix="Set completion_only_loss to None, or map the columns: format: {prompt-completion: {…}}.",
            )

    def _refuse_assistant_only(self) -> None:
        if self._assistant_only:
            raise DataError(
                "assistant_only_loss=True needs conversations, these rows are texts.",
                fix="Set assistant_only_loss: false.",
            )


def _joined(turn: Message, index: int) -> Message:
    """The message with its text parts joined, for templates that know plain strings only."""
    if turn.content is None or isinstance(turn.content, str):
        return turn
    if other := [part.type for part in turn.content if part.type != "text" or part.text is None]:
        raise RowError(
            f'message {index} has a part of type "{other[0]}", which the chat template does not render.',
            fix="Use a model and template that do, or remove the part.",
        )
    return attrs.evolve(turn, content="".join(part.text or "" for part in turn.content))


def _in_parts(turn: Message) -> Message:
    """The message with its text as a part, for templates that know lists of parts only."""
    return attrs.evolve(turn, content=[Part("text", turn.content)]) if isinstance(turn.content, str) else turn


def _turns(turns: str | Turns | None) -> Turns:
    assert turns is not None
    assert not isinstance(turns, str)
    return turns


def _clip(spans: Sequence[Span], bounds: Span) -> tuple[Span, ...]:
    clipped = (Span(max(one.start, bounds.start), min(one.end, bounds.end), one.weight) for one in spans)
    return tuple(one for one in clipped if one.start < one.end)


def _has_generation_markers(template: str) -> bool:
    return re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None


def _appends_eos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts EOS behind every text by itself, as T5's and some Llama tokenizers do."""
    ids = tokenizer("x")["input_ids"]
    return tokenizer.eos_token_id is not None and ids[-1] == tokenizer.eos_token_id


def _special_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return sorted({*added, *tokenizer.all_special_tokens})
