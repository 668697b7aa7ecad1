"""Renders examples as text with the spans of characters that are supervised; the text is tokenized later, once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import attrs
from attrs import frozen

from sftcore.chat.content import Content, refuse_unseen, says_otherwise, switches
from sftcore.chat.conversation import Conversations, RenderedConversation
from sftcore.chat.details import counted
from sftcore.chat.markers.answers import WITHOUT_MARKER, AnswerMarkers
from sftcore.chat.skeleton import REWRITTEN
from sftcore.chat.spans import TurnSpan
from sftcore.chat.template import SpecialTexts
from sftcore.core.errors import DataError, OptionTypeError, RowError
from sftcore.core.types import Example, Span, Turns
from sftcore.rows.details import DETAIL, without_details

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


WITHOUT_TEMPLATE = (
    "prompt and completion are joined as they are, while `sftcore chat` will ask with the model's chat template; write "
    "them as lists of messages to train with it"
)
EVERY_TURN = (
    "users' and system turns are trained on like answers; assistant_only_loss: true trains on the answers alone"
)
BEGUN = "the text begins with the tokens that the tokenizer puts before every text, which are not put there twice"
NO_END = "the text ends without an end token, because neither the tokenizer nor a chat template has one"
"""Notes on what is as it was asked for, and often not as it was meant."""

_SPACES = " \n\r\t"
_IN_PART = "a row that is supervised in part"


@frozen
class Rendered:
    """A text as the tokenizer will see it.

    If `spans` is None, every token is supervised, including those that the tokenizer adds. `notes` are short constant
    sentences on what the chat template did to this row. If the text holds `images`, `image_spans` are the characters
    that stand for them, which are never supervised, and `unexpanded` is the text as the processor reads it, with one
    placeholder for each image. So they are for `media`, whose characters are `media_spans` too, in their order. `turns`
    are the assistant's turns, where their places were proven. `thoughtless` are the messages that are supervised
    without reasoning of theirs, because the template cut it out. `whole` says what it is, if no part of it means
    anything by itself, and `nothing` why nothing of it is supervised, where that is so.
    """

    text: str
    spans: tuple[Span, ...] | None
    add_special_tokens: bool
    notes: tuple[str, ...] = ()
    image_spans: tuple[Span, ...] = ()
    unexpanded: str = ""
    images: tuple[Mapping[str, Any], ...] = ()
    media_spans: tuple[Span, ...] = ()
    media: tuple[Mapping[str, Any], ...] = ()
    turns: tuple[TurnSpan, ...] = ()
    thoughtless: tuple[int, ...] = ()
    whole: str = ""
    nothing: str = ""


class Renderer:
    """Renders examples for one tokenizer and one choice of what is supervised.

    Args:
        tokenizer: the tokenizer whose chat template renders messages.
        completion_only: whether only the completion is supervised; None: if the example has one.
        assistant_only: whether only the assistant's turns are supervised. They are found by the template's generation
            markers, or if it has none, by spans that are derived and verified (see sftcore.chat.skeleton).
        mask_style: where a completion of messages ends: "turn" ends it after its end token, "trl" at the end of the
            rendering, including whatever the template always adds there.
        text_end: the token that ends texts if the tokenizer has no EOS.
        answers: what stands before the answers in rows that are texts, if they alone are supervised.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        completion_only: bool | None = None,
        assistant_only: bool = False,
        mask_style: Literal["turn", "trl"] = "turn",
        text_end: str | None = None,
        answers: AnswerMarkers | None = None,
    ) -> None:
        if mask_style not in ("turn", "trl"):
            raise OptionTypeError(f'mask_style is "turn" or "trl", got "{mask_style}".')
        self.tokenizer = tokenizer
        self._completion_only = completion_only
        self._assistant_only = assistant_only
        self._mask_style = mask_style
        self._answers = answers
        self._end = tokenizer.eos_token or text_end or ""
        self._start, appends_eos = _added_by(tokenizer)
        self._eos = "" if appends_eos else self._end
        self._of_texts = (NO_END,) if not self._end else ()
        self._special = SpecialTexts.of(tokenizer)
        self._conversations = Conversations(tokenizer, self._special)
        self._content = Content()

    def render(self, example: Example) -> Rendered:
        """The example's text and spans.

        Raises:
            RowError: this example cannot be rendered, or the supervised part cannot be located in it.
            DataError: the tokenizer cannot render any example of this kind.
        """
        if example.text is not None:
            if example.spans is not None:
                return Rendered(example.text, tuple(example.spans), False, whole=_IN_PART)
            self._refuse_completion_only("a text")
            self._refuse_assistant_only()
            if self._start and example.text[: len(self._start)] == self._start:
                return self._text(_ended(example.text, self._end), False, (BEGUN, *self._of_texts))
            return self._text(self._with_eos(example.text), True, self._of_texts)
        if self._answers is not None:
            raise DataError(
                "response_marker finds answers in rows that are texts, but these rows hold "
                f"{'messages' if example.messages is not None else 'a prompt and a completion'}.",
                fix="Drop it: assistant_only_loss and completion_only_loss train the answers of such rows alone.",
            )
        if example.messages is not None:
            self._refuse_completion_only("messages")
            turns, notes = self._as_templates_read(example.messages, example)
            conversation = self._render_turns(turns, example)
            spans = self._assistant(turns, conversation)
            if spans is None and _several_sides(turns):
                notes = (*notes, EVERY_TURN)
            return self._finished(conversation, spans, notes, turns)
        if isinstance(example.prompt, str):
            self._refuse_assistant_only()
            text, notes = example.prompt + str(example.completion), self._of_texts
            begun = self._start != "" and text[: len(self._start)] == self._start
            text = _ended(text, self._end) if begun else self._with_eos(text)
            spans = None if self._completion_only is False else (Span(len(example.prompt), len(text)),)
            if begun:
                notes = (BEGUN, *notes)
            if self._misses_template(example.prompt):
                notes = (WITHOUT_TEMPLATE, *notes)
            return Rendered(text, spans, not begun, notes, whole="" if spans is None else "an answer")
        return self._prompt_and_completion(example)

    def render_question(self, example: Example) -> Rendered:
        """An example without its answer as the model is asked it: a conversation up to where it answers, or a text.

        Raises:
            RowError: the chat template refuses it.
            DataError: it is a conversation, and the tokenizer has no chat template.
        """
        if example.messages is None:
            text = str(example.text)
            begun = self._start != "" and text.startswith(self._start)
            return Rendered(text, None, example.spans is None and not begun)
        turns, notes = self._as_templates_read(example.messages, example)
        return Rendered(self._conversations.render_question(without_details(turns), example), None, False, notes)

    def _text(self, text: str, add_special_tokens: bool, notes: tuple[str, ...]) -> Rendered:
        """A row that is a text, of which the answers alone are supervised where they are marked."""
        if self._answers is None:
            return Rendered(text, None, add_special_tokens, notes)
        spans = self._answers.spans(text)
        nothing = "" if self._answers.response in text else WITHOUT_MARKER
        notes = (*notes, *self._answers.notes(text))
        return Rendered(text, spans, add_special_tokens, notes, whole=_IN_PART, nothing=nothing)

    def _misses_template(self, prompt: str) -> bool:
        """Whether the tokenizer has a chat template, and the prompt has none of the tokens that it would add."""
        return bool(self.tokenizer.chat_template) and self._special.added.search(prompt) is None

    def _as_templates_read(self, turns: Turns, example: Example) -> tuple[Turns, tuple[str, ...]]:
        seen = _seen(example)
        if not says_otherwise(turns, seen):
            return turns, ()
        template = self._conversations.template(example)
        if not seen:
            source = template.source
            refuse_unseen(turns, lambda kind: f"'{kind}'" in source or f'"{kind}"' in source)
        return self._content.as_templates_read(turns, template)

    def refusal_of_thoughts(self, example: Example, rendered: Rendered) -> RowError:
        """The error for a row that is trained without reasoning of its own, with the ways to keep it."""
        index = rendered.thoughtless[0]
        turns = example.messages or [*_turns(example.prompt), *_turns(example.completion)]
        kept = [
            f"give the rows chat_template_kwargs: {json.dumps({name: value})}"
            for name, value in switches(self._conversations.template(example))
            if not self.render(
                attrs.evolve(example, template_kwargs={**example.template_kwargs, name: value})
            ).thoughtless
        ]
        if any(turn.role == "assistant" for turn in turns[index + 1 :]):
            kept.append("make a row of each answer, format: {chat: {split_turns: true}}")
        kept.append("use a template that prints it, or take it out of the rows")
        return RowError(
            f"the chat template cuts the reasoning out of message {index}, which is trained.",
            fix=f"To train with it, {'; or '.join(kept)}.",
        )

    @staticmethod
    def _finished(
        conversation: RenderedConversation,
        spans: tuple[Span, ...] | None,
        notes: tuple[str, ...],
        turns: Turns,
        first: int = 0,
    ) -> Rendered:
        """The rendered conversation; messages before the `first` are not supervised."""
        proven = () if spans is None else conversation.skeleton.proven
        cut = conversation.skeleton.thoughtless
        if cut:
            cut = tuple(i for i in cut if i >= first and turns[i].train is not False and turns[i].weight != 0)
        notes = conversation.notes + notes
        return Rendered(conversation.text, spans, False, notes, turns=proven, thoughtless=cut, whole="a conversation")

    def _prompt_and_completion(self, example: Example) -> Rendered:
        prompt, notes = self._as_templates_read(_turns(example.prompt), example)
        completion, more = self._as_templates_read(_turns(example.completion), example)
        turns, notes = [*prompt, *completion], notes + more
        if self._completion_only is False:
            conversation = self._render_turns(turns, example)
            return self._finished(conversation, self._assistant(turns, conversation), notes, turns)
        first = len(prompt)
        conversation = self._render_turns(turns, example, prompt_turns=first)
        start = self._completion_start(conversation, turns, first, example)
        whole = Span(start, max(start, self._completion_end(conversation, start)))
        assistant = self._assistant(turns, conversation)
        spans = (whole,) if assistant is None else _clip(assistant, whole)
        return self._finished(conversation, spans, notes, turns, first)

    def _completion_start(
        self, conversation: RenderedConversation, turns: Turns, prompt_turns: int, example: Example
    ) -> int:
        skeleton = conversation.skeleton
        if skeleton.completion is not None:
            return conversation.at(skeleton.completion)
        if skeleton.unproven:
            text = self._conversations.render_prompt(without_details(turns), prompt_turns, example, skeleton.variant)
            if conversation.text.startswith(text):
                return len(text)
        raise RowError(
            "the chat template renders the prompt differently when the completion follows, "
            "so the start of the completion cannot be located.",
            fix="Set completion_only_loss: false, or use a template whose rendering only grows.",
        )

    def _completion_end(self, conversation: RenderedConversation, start: int) -> int:
        """After the completion's last end token; what the template always adds after it is not part of the answer."""
        text, end = conversation.text, conversation.skeleton.completion_end
        if self._mask_style == "trl":
            return len(text)
        if end is not None:
            return conversation.end_at(end)
        stripped = text[start:].rstrip()
        return start + len(stripped) if stripped.endswith(self._special.texts) else len(text)

    def _assistant(self, turns: Turns, conversation: RenderedConversation) -> tuple[Span, ...] | None:
        """The spans of the assistant's turns, or None if every token is supervised."""
        singled_out = _singled_out(turns)
        if not (self._assistant_only or singled_out):
            return None
        if conversation.marks is not None:
            ends = ((conversation.at(start), conversation.end_at(end)) for start, end in conversation.skeleton.unmarked)
            return tuple(Span(start, end) for start, end in sorted((*conversation.marks, *ends)) if start < end)
        if conversation.skeleton.unproven:
            rewritten = conversation.skeleton.unproven == REWRITTEN
            first = "Use a template that prints content unchanged" if rewritten else "Drop the row"
            raise RowError(
                f"{conversation.skeleton.unproven}.", fix=f"{first}, or use a template with {{% generation %}} markers."
            )
        spans: list[Span] = []
        for message, start, end in conversation.skeleton.turns:
            turn = turns[message]
            weight = 0.0 if turn.train is False else 1.0 if turn.weight is None else turn.weight
            whole = Span(conversation.at(start), conversation.end_at(end), weight)
            if weight:
                spans += counted(conversation, turns, message, whole) if DETAIL in turn.extra else [whole]
        return tuple(span for span in spans if span.start < span.end)

    def _render_turns(self, turns: Turns, example: Example, *, prompt_turns: int | None = None) -> RenderedConversation:
        singled_out = _singled_out(turns)
        return self._conversations.render(
            without_details(turns),
            example,
            prompt_turns=prompt_turns,
            # markers do not say which message they belong to, so selected turns are always derived
            marks=self._assistant_only and not singled_out,
            proof=self._assistant_only or singled_out or prompt_turns is not None,
        )

    def _with_eos(self, text: str) -> str:
        if text[-1:] in _SPACES:  # a rendered conversation may end with a line break behind its end token
            return _ended(text, self._eos)
        return text if self._eos and text.endswith(self._eos) else text + self._eos

    def _refuse_completion_only(self, shape: str) -> None:
        if self._completion_only:
            raise DataError(
                f"completion_only_loss=True needs rows with a prompt and a completion, but these rows hold {shape}.",
                fix="Set completion_only_loss to None, or map the columns: format: {prompt-completion: {…}}; a "
                "formatting_func may return (prompt, completion).",
            )

    def _refuse_assistant_only(self) -> None:
        if self._assistant_only:
            raise DataError(
                "assistant_only_loss=True needs conversations, but these rows are texts.",
                fix="Set assistant_only_loss: false.",
            )


def _singled_out(turns: Turns) -> bool:
    chosen = [i for i, turn in enumerate(turns) if turn.train is not None or turn.weight is not None]
    for i in chosen:
        if turns[i].role != "assistant" and (turns[i].train or turns[i].weight):
            raise RowError(
                f"message {i} ({turns[i].role}) is marked for training, but only assistant turns can be trained on.",
                fix='Give "train" or "weight" only to assistant messages.',
            )
    return bool(chosen)


def _several_sides(turns: Turns) -> bool:
    """Whether both the assistant and others speak; a loop, because this is asked of each row."""
    first = turns[0].role == "assistant" if turns else False
    for turn in turns:  # noqa: SIM110
        if (turn.role == "assistant") is not first:
            return True
    return False


def _seen(example: Example) -> tuple[str, ...]:
    """The types of parts that stand for what the example holds beside its words."""
    if not example.images and not example.media:
        return ()
    return (*(("image",) if example.images else ()), *(one.modality.name for one in example.media))


def _turns(turns: str | Turns | None) -> Turns:
    assert turns is not None
    assert not isinstance(turns, str)
    return turns


def _clip(spans: Sequence[Span], bounds: Span) -> tuple[Span, ...]:
    clipped = (Span(max(one.start, bounds.start), min(one.end, bounds.end), one.weight) for one in spans)
    return tuple(one for one in clipped if one.start < one.end)


def _ended(text: str, end: str) -> str:
    return text if end and text.rstrip(_SPACES).endswith(end) else text + end


def _added_by(tokenizer: PreTrainedTokenizerBase) -> tuple[str, bool]:
    """What the tokenizer itself puts before every text (a BOS, mostly), and whether it appends EOS, as T5's does."""
    ids, bare = (list(tokenizer("x", add_special_tokens=added)["input_ids"]) for added in (True, False))
    count = next((at for at in range(len(ids)) if ids[at : at + len(bare)] == bare), 0)
    start = "".join(tokenizer.convert_ids_to_tokens(ids[:count]))
    return start, tokenizer.eos_token_id is not None and ids[-1] == tokenizer.eos_token_id
