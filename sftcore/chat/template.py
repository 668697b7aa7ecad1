"""Chat templates, compiled once, and what a probe shows of each: its generation prompt, its end tokens, its traits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from sftcore.chat.sandbox.environment import compiled
from sftcore.chat.sandbox.limits import LimitError, admit_conversation, conversation
from sftcore.core.errors import RowError, TemplateStoppedError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turn: TypeAlias = "dict[str, Any]"
"""A message as chat templates read it."""

_PROBES = tuple(f"q7zXprobe{i}Xz7q" for i in range(4))


class SpecialTexts:
    """The texts of a tokenizer's special tokens and of its other added ones, and its EOS ("" where it has none)."""

    def __init__(self, special: Sequence[str], added: Sequence[str], eos: str) -> None:
        self.eos = eos
        self.texts = tuple(sorted(filter(None, {*special, eos}), key=len, reverse=True))
        self.pattern = _any_of(self.texts)
        self.added = _any_of(sorted(filter(None, {*added, *self.texts}), key=len, reverse=True))

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> SpecialTexts:
        """Those of this tokenizer."""
        tokens = tokenizer.added_tokens_decoder.values()
        special = [*(token.content for token in tokens if token.special), *tokenizer.all_special_tokens]
        return cls(special, [token.content for token in tokens], tokenizer.eos_token or "")

    def first(self, text: str, start: int, end: int) -> re.Match[str] | None:
        """The first special token there."""
        return self.pattern.search(text, start, end)

    def last_end(self, text: str, start: int, end: int) -> int | None:
        """Behind the last special token there, or behind the last added one where none is special."""
        for pattern in (self.pattern, self.added):
            if found := list(pattern.finditer(text, start, end)):
                return found[-1].end()
        return None

    def with_eos(self, text: str, end: int) -> int:
        """`end`, or behind the EOS that follows there at once."""
        return end + len(self.eos) if self.eos and text.startswith(self.eos, end) else end


class ChatTemplate:
    """One chat template for one tokenizer.

    Rendering goes to the compiled template directly: transformers' own way looks its environment up anew for every row,
    which takes longer than most templates do. It is bounded: see sftcore.chat.sandbox.environment.

    Raises:
        ModelError: it is no template.
        TemplateStoppedError: in `render` and `render_marked`, it takes too long or makes too much.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, Any], special: SpecialTexts) -> None:
        self.source = source
        self.special = special
        self.has_markers = re.search(r"\{%-?\s*generation\s*-?%\}", source) is not None
        self.knows_tools = "tools" in source
        self.knows_calls = "tool_calls" in source
        self._compiled = compiled(source)
        self._environment: Any = self._compiled.environment
        # a flat dict: jinja's own ChainMap of globals costs more than a short template
        self._globals = {**self._compiled.globals, **special_tokens, "documents": None}
        self._traits: dict[str, TemplateTraits] = {}

    def render(self, turns: Sequence[Turn], tools: Any, kwargs: Mapping[str, Any], generation_prompt: bool) -> str:
        """The rendered conversation.

        Raises:
            RowError: the template refuses it, in its own words.
        """
        try:
            return conversation(self._blocks(turns, tools, kwargs, generation_prompt))
        except Exception as error:  # templates raise TemplateError by themselves, and Python errors by accident
            raise _named(error, turns) from error

    def render_marked(
        self, turns: Sequence[Turn], tools: Any, kwargs: Mapping[str, Any]
    ) -> tuple[str, list[tuple[int, int]]]:
        """The rendered conversation, and the characters that its generation markers enclose."""
        blocks: list[str] = []
        marks: list[tuple[int, int]] = []
        length = 0
        try:
            with self._environment.activate_tracker(blocks, marks):
                for block in self._blocks(turns, tools, kwargs, False):
                    blocks.append(block)  # the tracker reads the list while it grows
                    length += len(block)
                    admit_conversation(length, len(marks))
        except Exception as error:
            raise _named(error, turns) from error
        return "".join(blocks), marks

    def _blocks(self, turns: Sequence[Turn], tools: Any, kwargs: Mapping[str, Any], generation_prompt: bool) -> Any:
        compiled = self._compiled
        names = {
            **self._globals,
            **kwargs,
            "messages": turns,
            "tools": tools,
            "add_generation_prompt": generation_prompt,
        }
        # None for its globals: only imports, which templates here do not have, would look at them
        context = self._environment.context_class(self._environment, names, compiled.name, compiled.blocks, None)
        return compiled.root_render_func(context)

    def traits(self, kwargs: Mapping[str, Any]) -> TemplateTraits:
        """What a probe shows of the template with these arguments; kept."""
        key = repr(sorted(kwargs.items())) if kwargs else ""
        if key not in self._traits:
            if len(self._traits) > 256:
                self._traits.clear()
            self._traits[key] = TemplateTraits(self, dict(kwargs))
        return self._traits[key]

    @cached_property
    def prints(self) -> frozenset[str]:
        """Which shapes of content it prints the words of: "text", "parts", or both."""
        found = frozenset(shape for shape in ("text", "parts") if self._prints(shape))
        return found or frozenset({"text"})

    def _prints(self, shape: str) -> bool:
        words = [word if shape == "text" else [{"type": "text", "text": word}] for word in _PROBES[:2]]
        turns = [{"role": role, "content": word} for role, word in zip(("user", "assistant"), words, strict=True)]
        for tried in (turns, turns[:1]):
            try:
                text = self.render(tried, None, {}, False)
            except RowError:  # a template that knows the other shape only raises whatever it stumbles upon
                continue
            # a list may also be printed as Python shows it
            return all(word in text for word in _PROBES[: len(tried)]) and "'type'" not in text and '"type"' not in text
        return False


class TemplateTraits:
    """What a probe shows of a template with certain arguments.

    `header` is its generation prompt; `enders` are the tokens that end a plain turn, inside a conversation and at its
    end; `stop` is what a last turn without an end token is closed with: the token that ends turns inside, else EOS.
    `adds_system` says whether it writes words of its own where no system message is given.
    """

    def __init__(self, template: ChatTemplate, kwargs: Mapping[str, Any]) -> None:
        special = template.special
        self.header = ""
        self.enders: tuple[str, ...] = ()
        self.stop = special.eos
        self.adds_system = False
        roles = ("user", "assistant") * 2
        words: list[Any] = list(_PROBES)
        if "text" not in template.prints:
            words = [[{"type": "text", "text": word}] for word in words]
        turns = [{"role": role, "content": word} for role, word in zip(roles, words, strict=True)]

        def render(count: int, generation_prompt: bool = False) -> str:
            try:
                return template.render(turns[:count], None, kwargs, generation_prompt)
            except RowError:
                return ""

        asked, prompted, told = render(1), render(1, True), render(4)
        if not prompted.startswith(asked):
            # some templates put EOS where no generation prompt follows (Phi-3)
            asked = asked.removesuffix(special.eos)
        self.header = prompted[len(asked) :] if asked and prompted.startswith(asked) else ""
        if not all(word in told for word in _PROBES):
            return
        inside = special.first(told, told.find(_PROBES[1]), told.find(_PROBES[2]))
        last = special.first(told, told.find(_PROBES[3]), len(told))
        self.enders = tuple({token.group() for token in (inside, last) if token})
        self.stop = inside.group() if inside else special.eos
        self.adds_system = _has_words(told, special)


def refuse_unbounded(tokenizer: PreTrainedTokenizerBase, turns: Any, tools: Any = None, **kwargs: Any) -> None:
    """Render once within the limits: asked before transformers' own `apply_chat_template`, which has none.

    Raises:
        ModelError: the template is none.
        TemplateStoppedError: it takes too long or makes too much. That it refuses the turns is not said here.
    """
    if not tokenizer.chat_template:
        return
    source: str = tokenizer.get_chat_template(kwargs.pop("chat_template", None), tools)
    special = {key: token for key, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    template = _template_of(source, tuple(special.items()))
    generation_prompt = bool(kwargs.pop("add_generation_prompt", False))
    with suppress(RowError):
        template.render(json_data(turns), json_data(tools), json_data(kwargs), generation_prompt)


@lru_cache(maxsize=16)
def _template_of(source: str, special: tuple[tuple[str, str], ...]) -> ChatTemplate:
    return ChatTemplate(source, dict(special), SpecialTexts((), (), dict(special).get("eos_token", "")))


def json_data(value: Any) -> Any:
    """The value made of JSON's types alone: a template is foreign code, and objects have methods that it could call."""
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, Mapping):
        return {key: json_data(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_data(part) for part in value]
    return f"<{type(value).__name__}>"


def _has_words(told: str, special: SpecialTexts) -> bool:
    """Whether more stands before the first user's words than before the second's, special tokens aside."""
    first = told[: told.find(_PROBES[0])]
    second = told[told.find(_PROBES[1]) + len(_PROBES[1]) : told.find(_PROBES[2])]
    shared = next((i for i in range(min(len(first), len(second))) if first[-1 - i] != second[-1 - i]), None)
    own = first[: len(first) - (min(len(first), len(second)) if shared is None else shared)]
    return re.search(r"\w{2,}\W+\w{2,}", special.added.sub("\n", own)) is not None


def _named(error: Exception, turns: Sequence[Turn]) -> RowError | TemplateStoppedError:
    if isinstance(error, LimitError):
        return TemplateStoppedError(
            f"the chat template was stopped: {error}.",
            fix="Give another one (chat_template_path), unless a row is that large itself.",
        )
    return RowError(
        f"the chat template refuses this conversation: {type(error).__name__}: {error}.",
        fix=f"Its roles: {', '.join(str(turn['role']) for turn in turns)}.",
    )


def _any_of(texts: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, texts)) or "(?!)")
