"""A saved run loaded for chatting, with its own template and stop tokens, with or without its adapter."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import attrs
from attrs import define, field, frozen

from sftcore.chat.served.generation import Sampling, generate_arguments
from sftcore.chat.template import refuse_unbounded
from sftcore.core.errors import ModelError
from sftcore.tools.load_saved import load_request, load_tokenizer, put_adapter, set_stops
from sftcore.tools.saved import SavedRun

Turn = Mapping[str, str]
OnText = Callable[[str], object]


@frozen
class Reply:
    """An answer of the model.

    `stopped` is "end" after a stop token, "length" at max_new_tokens or in a full context, and "user" after Ctrl-C.
    `dropped` counts the oldest turns, which were left out so that the rest fits into the context.
    """

    text: str
    num_tokens: int
    seconds: float
    stopped: str
    dropped: int = 0

    @property
    def sentence(self) -> str:
        """The number of tokens, the time they took, and why the answer ended early if it did."""
        reasons = {"length": ", cut off at the length limit (--max-new-tokens)", "user": ", stopped by the user"}
        why = reasons.get(self.stopped, "")
        return f"{self.num_tokens} tokens in {self.seconds:.1f} s, {self.num_tokens / self.seconds:.1f} tokens/s{why}"


@define
class ChatModel:
    """A loaded run that answers conversations.

    `context` is the largest number of tokens that the prompt and the answer may have together.
    """

    model: Any
    tokenizer: Any
    context: int
    has_adapter: bool
    stops: frozenset[int] = field(factory=frozenset)

    def answer(
        self, turns: Sequence[Turn], sampling: Sampling, *, adapter: bool = True, on_text: OnText = lambda _: None
    ) -> Reply:
        """Answer the last turn; `on_text` is called with each piece of text as it is generated.

        Raises:
            ModelError: the template refuses the conversation, or its last turn alone is too long.
        """
        import torch

        ids, dropped = self._fitting(turns)
        room = min(sampling.max_new_tokens, self.context - len(ids))
        streamer = _Streamer(self.tokenizer, on_text)
        prompt = torch.tensor([ids], device=self.model.device)
        start = time.monotonic()
        switched = nullcontext() if adapter or not self.has_adapter else self.model.disable_adapter()
        with switched, torch.inference_mode():
            try:
                self.model.generate(
                    input_ids=prompt,
                    attention_mask=torch.ones_like(prompt),
                    streamer=streamer,
                    max_new_tokens=room,
                    use_cache=True,
                    **generate_arguments(sampling),
                )
                stopped = "end" if streamer.ids and streamer.ids[-1] in self.stops else "length"
            except KeyboardInterrupt:
                stopped = "user"
        streamer.end()
        return Reply(streamer.text, len(streamer.ids), max(time.monotonic() - start, 1e-9), stopped, dropped)

    def _fitting(self, turns: Sequence[Turn]) -> tuple[list[int], int]:
        """The prompt's tokens, and how many of the oldest turns were dropped; a system turn is always kept."""
        system = [turn for turn in turns[:1] if turn["role"] == "system"]
        rest = list(turns[len(system) :])
        dropped = 0
        while True:
            ids = self._prompt([*system, *rest])
            if len(ids) < self.context:
                return ids, dropped
            if len(rest) <= 1:
                raise ModelError(
                    f"the prompt has {len(ids):,} tokens, but the model's context holds {self.context:,}, "
                    "including the answer.",
                    where="chat",
                    fix="Shorten the prompt.",
                )
            # a question is dropped with its answer, so that no answer stands without its question
            gone = 2 if len(rest) > 2 else 1
            rest, dropped = rest[gone:], dropped + gone

    def _prompt(self, turns: Sequence[Turn]) -> list[int]:
        from jinja2 import TemplateError

        refuse_unbounded(self.tokenizer, turns, add_generation_prompt=True)
        try:
            encoded = self.tokenizer.apply_chat_template(
                [dict(turn) for turn in turns], add_generation_prompt=True, return_dict=True
            )
        except (TemplateError, ValueError, TypeError) as error:
            raise ModelError(f"the chat template refuses this conversation: {error}", where="chat") from error
        return list(encoded["input_ids"])


@define
class _Streamer:
    """Receives tokens from `generate`, and passes text on as soon as its characters are complete."""

    tokenizer: Any
    on_text: OnText
    ids: list[int] = field(factory=list)
    text: str = ""
    _saw_prompt: bool = False

    def put(self, value: Any) -> None:
        """Receive the prompt first, and then one token at a time."""
        if not self._saw_prompt:
            self._saw_prompt = True
            return
        self.ids.extend(value.flatten().tolist())
        self._pass_on()

    def end(self) -> None:
        """Pass on whatever is left, even an incomplete character."""
        self._pass_on(whole=False)

    def _pass_on(self, *, whole: bool = True) -> None:
        text: str = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        # an incomplete character is decoded as U+FFFD
        if (whole and text.endswith("\ufffd")) or not text.startswith(self.text):
            return
        new, self.text = text[len(self.text) :], text
        if new:
            self.on_text(new)


def load_chat_model(run: SavedRun, *, dtype: str = "auto") -> ChatModel:
    """Load the run's model and its adapter, on this machine's accelerator if there is one.

    Raises:
        ModelError: the model cannot be loaded, or its tokenizer has no chat template.
    """
    import torch

    tokenizer = load_tokenizer(run)
    if not tokenizer.chat_template:
        raise ModelError(
            "the tokenizer has no chat template, so conversations cannot be turned into prompts.",
            where=run.name,
            fix="Train with a template (chat_template_path), or put chat_template.jinja beside the tokenizer's files.",
        )
    place = {"device_map": "auto"} if torch.accelerator.is_available() else {}
    request = attrs.evolve(run.base, dtype=dtype, init_kwargs={**run.base.init_kwargs, **place})
    model = load_request(request, run.loader).eval()
    set_stops(model, tokenizer, run)
    stops = frozenset(model.generation_config.eos_token_id or ())
    if run.adapter is not None:
        model = put_adapter(model, run, len(tokenizer))
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    context = min(longest or tokenizer.model_max_length, tokenizer.model_max_length)
    return ChatModel(model, tokenizer, context, run.adapter is not None, stops)
