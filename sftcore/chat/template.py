"""Chat templates, compiled once, and what a probe shows of each: its generation prompt, its end tokens, its traits."""

from __future__ import annotations

import itertools
import re
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from jinja2 import meta

from sftcore.chat.sandbox.environment import compiled
from sftcore.chat.sandbox.limits import LimitError, admit_conversation, conversation
from sftcore.core.errors import RowError, TemplateStoppedError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turn: TypeAlias = "dict[str, Any]"
"""A message as chat templates read it."""

_TAG = r"<[^<>\s]{1,40}>|\[/?[A-Z_]{2,30}\]"
_TAG_AT_END = re.compile(f"(?:{_TAG})$")

_PROBES = tuple(f"q7zXprobe{i}Xz7q" for i in range(4))


class SpecialTexts:
    """The texts of a tokenizer's special tokens and of its other added ones, and its EOS ("" where it has none)."""

    def __init__(self, special: Sequence[str], added: Sequence[str], eos: str, bos: str = "") -> None:
        self.eos = eos
        self.bos = bos
        self.texts = tuple(sorted(filter(None, {*special, eos}), key=len, reverse=True))
        self.pattern = _any_of(self.texts)
        self.all = tuple(sorted(filter(None, {*added, *self.texts}), key=len, reverse=True))
        self.added = _any_of(self.all)
        self.tags = re.compile(f"{self.added.pattern}|{_TAG}")

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> SpecialTexts:
        """Those of this tokenizer."""
        tokens = tokenizer.added_tokens_decoder.values()
        special = [*(token.content for token in tokens if token.special), *tokenizer.all_special_tokens]
        return cls(special, [token.content for token in tokens], tokenizer.eos_token or "", tokenizer.bos_token or "")

    def first_of_any(self, text: str) -> re.Match[str] | None:
        """The token with which a text begins, else the first special one, or the first added one if none is special."""
        found = self.added.search(text)
        return found if found and not text[: found.start()].strip() else self.pattern.search(text) or found

    def common(self, texts: Sequence[str]) -> str:
        """What all texts begin with, cut where it would end inside a token or a tag."""
        shared = texts[0]
        for other in texts[1:]:
            at = next((i for i, (a, b) in enumerate(zip(shared, other, strict=False)) if a != b), None)
            at = min(len(shared), len(other)) if at is None else at
            for text in (shared, other):
                at = min((one.start() for one in self.tags.finditer(text) if one.start() < at < one.end()), default=at)
            shared = shared[:at]
        return shared

    def at_end(self, text: str) -> str:
        """The token with which a text ends, or ""."""
        return next((token for token in self.all if text.endswith(token)), "")

    def only_tags(self, text: str) -> bool:
        """Whether a text is tokens, what looks like them, and white space."""
        return not self.tags.sub("", text).strip()

    def like_a_tag(self, text: str) -> bool:
        """Whether a text that is no token of the tokenizer ends as tokens of templates do."""
        return _TAG_AT_END.search(text) is not None


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
        self.knows_tools = "tools" in source
        self.knows_calls = "tool_calls" in source
        self._compiled = compiled(source)
        self._environment: Any = self._compiled.environment
        self.marker_lines = _lines_of_markers(source, self._environment)
        # a flat dict: jinja's own ChainMap of globals costs more than a short template
        self._globals = {**self._compiled.globals, **special_tokens, "documents": None}
        self._traits: dict[tuple[bool, str], TemplateTraits] = {}
        self._prints_python: dict[bool, bool] = {}

    def render(self, turns: Sequence[Turn], tools: Any, kwargs: Mapping[str, Any], generation_prompt: bool) -> str:
        """The rendered conversation.

        Raises:
            RowError: the template refuses it, in its own words.
        """
        try:
            return conversation(self._blocks(turns, tools, kwargs, generation_prompt))
        except Exception as error:  # templates raise TemplateError by themselves, and Python errors by accident
            raise self._named(error, turns) from error

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
            raise self._named(error, turns) from error
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

    def _named(self, error: Exception, turns: Sequence[Turn]) -> RowError | TemplateStoppedError:
        if isinstance(error, LimitError):
            return TemplateStoppedError(
                f"the chat template was stopped: {error}.",
                fix="Give another one (chat_template_path), unless a row is that large itself.",
            )
        line = self._line_of(error)
        return RowError(
            f"the chat template refuses this conversation: {type(error).__name__}: {error}.",
            fix=f"Its roles: {', '.join(str(turn['role']) for turn in turns)}."
            + (f" See line {line} of the template." if line else ""),
        )

    def with_lines(self, error: RowError) -> RowError:
        """An error about generation markers that names the lines in which they stand."""
        lines = f"line{'s' * (len(self.marker_lines) > 1)} {', '.join(map(str, self.marker_lines))}"
        return RowError(error.what, fix=f"{error.fix} They stand in {lines} of the template.")

    def _line_of(self, error: Exception) -> int | None:
        """The template's line that raised an error, or called what did."""
        found = None
        for frame, line in traceback.walk_tb(error.__traceback__):
            if frame.f_code.co_filename == self._compiled.root_render_func.__code__.co_filename:
                found = line
        return self._compiled.get_corresponding_lineno(found) if found else None

    def traits(self, tools: Any, kwargs: Mapping[str, Any]) -> TemplateTraits:
        """What a probe shows of the template with these arguments; kept.

        The tools are only given to a template that renders nothing without any.
        """
        for given in (None, tools) if tools else (None,):
            key = (given is not None, repr(sorted(kwargs.items())) if kwargs else "")
            if key not in self._traits:
                if len(self._traits) > 256:
                    self._traits.clear()
                self._traits[key] = TemplateTraits(self, given, dict(kwargs))
            if self._traits[key].renders:
                break
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

    @property
    def names(self) -> set[str]:
        """The names that its source reads and does not set."""
        return meta.find_undeclared_variables(self._environment.parse(self.source))

    def reads_parts(self, kind: str) -> bool:
        """Whether its source asks for parts of this type."""
        return re.search(rf"""type['"\])]*\s*(?:==|in)\s*[^%}}]*['"]{re.escape(kind)}['"]""", self.source) is not None

    def prints_python(self, tools: Any) -> bool:
        """Whether it prints the arguments of a call as Python does if it gets them as a mapping."""
        if bool(tools) not in self._prints_python:
            function: dict[str, Any] = {"name": _PROBES[2], "arguments": {_PROBES[3]: _PROBES[1]}}
            call = {"id": "call00001", "type": "function", "function": function}
            texts = []
            for content in (None, ""):
                asked: Turn = {"role": "user", "content": _PROBES[0]}
                turns = [asked, {"role": "assistant", "content": content, "tool_calls": [call]}]
                with suppress(RowError):
                    texts.append(self.render(turns, tools, {}, False))
            self._prints_python[bool(tools)] = any(str(function["arguments"]) in text for text in texts)
        return self._prints_python[bool(tools)]


def _lines_of_markers(source: str, environment: Any) -> tuple[int, ...]:
    """The lines on which blocks of generation markers begin; what comments and texts show of them is none."""
    if re.search(r"\bgeneration\b", source) is None:
        return ()
    tokens = [token for token in environment.lex(source) if token[1] != "whitespace"]
    begun = itertools.pairwise(tokens)
    found = (line for (line, kind, _), (*_, named) in begun if kind == "block_begin" and named == "generation")
    return tuple(dict.fromkeys(found))


class TemplateTraits:
    """What a probe shows of a template with certain arguments.

    `header` is its generation prompt behind a user's turn, "" if it has none. `ender` is the token that it writes
    behind an answer, last or not, or ""; `next_end` is the one that it writes with the next header, `last_end` one
    behind the last answer alone, `plain_end` an end that looks like a token but is none of the tokenizer's.
    `ends_answers` says whether it writes a token behind the last one. `stop` is the token that follows an answer inside
    a conversation. `openers` are the tokens that begin a conversation, or a header. `adds_system` says whether it
    writes words of its own where no system message is given. `renders` says whether it took the probe.
    """

    def __init__(self, template: ChatTemplate, tools: Any, kwargs: Mapping[str, Any]) -> None:
        special = template.special
        words: list[Any] = list(_PROBES)
        if "text" not in template.prints:
            words = [[{"type": "text", "text": word}] for word in words]
        turns = [{"role": role, "content": word} for role, word in zip(("user", "assistant") * 2, words, strict=True)]

        def told_of(turns: Sequence[Turn], generation_prompt: bool = False) -> str:
            try:
                return template.render(turns, tools, kwargs, generation_prompt)
            except RowError:
                return ""

        def render(count: int, generation_prompt: bool = False) -> str:
            return told_of(turns[:count], generation_prompt)

        asked, prompted, answered, told = render(1), render(1, True), render(2), render(4)
        self.renders = bool(asked)
        if not prompted.startswith(asked):
            # some templates put EOS where no generation prompt follows (Phi-3)
            asked = asked.removesuffix(special.eos)
        self.header = prompted[len(asked) :] if asked and prompted.startswith(asked) else ""
        complete = all(word in told for word in _PROBES)
        self.adds_system = complete and _has_words(told, special)
        inside = told[told.find(_PROBES[1]) : told.find(_PROBES[2])] if complete else ""
        found = special.first_of_any(inside)
        written = special.common([_behind(answered), inside.removeprefix(_PROBES[1])]).strip() if complete else ""
        # behind an end that is no token, the token of the next header is none either
        self.plain_end = written if written and not special.at_end(written) and special.like_a_tag(written) else ""
        self.stop = found.group() if found and not self.plain_end else special.eos
        again = [*turns[:2], {**turns[1], "content": words[2]}]
        behind = [render(2, True), told_of(again)]
        self.next_end = next(filter(None, (_end_in_header(answered, told, one, special) for one in behind)), "")
        self.next_end = self.next_end if complete else ""
        own = complete and not self.next_end
        self.ender = _token_behind(_PROBES[1], answered, told, special) if own else ""
        self.last_end = _token_beyond(answered, told, special)
        self.ends_answers = bool(self.ender or self.last_end)
        self.openers = _openers((told.removeprefix(special.bos), self.header.removeprefix(self.next_end)), special)
        self.openers -= {special.eos, self.next_end, self.ender, self.last_end}


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
    if type(value) is dict or isinstance(value, Mapping):  # abstract classes are slow to ask
        return {key: part if type(part) is str else json_data(part) for key, part in value.items()}
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


def _token_behind(words: str, one: str, other: str, special: SpecialTexts) -> str:
    """The token with which both texts go on behind the words, or ""."""
    tails = [text[text.find(words) + len(words) :] for text in (one, other)]
    return special.at_end(special.common(tails).rstrip()) if words in one else ""


def _behind(text: str) -> str:
    """What a text has behind the first answer."""
    return text[text.find(_PROBES[1]) + len(_PROBES[1]) :] if _PROBES[1] in text else ""


def _openers(texts: Sequence[str], special: SpecialTexts) -> set[str]:
    """The tokens with which these texts begin."""
    found = (special.added.match(text.lstrip()) for text in texts)
    return {one.group() for one in found if one}


def _token_beyond(answered: str, told: str, special: SpecialTexts) -> str:
    """The token behind a last answer that one inside a conversation is not followed by, or ""."""
    last = _behind(answered)
    found = special.first_of_any(last[len(special.common([last, _behind(told)])) :])
    return found.group() if found else ""


def _end_in_header(answered: str, told: str, other: str, special: SpecialTexts) -> str:
    """The token behind an answer with which every next turn begins, and a conversation does not, or ""."""
    last, inside, before_another = _behind(answered), _behind(told), _behind(other)
    written = len(special.common([last, inside]))
    found = [special.first_of_any(text[written:]) for text in (inside, before_another)]
    if found[0] is None or found[1] is None or found[0].group() != found[1].group():
        return ""
    token = found[0].group()
    is_opener = told.removeprefix(special.bos).lstrip().startswith(token)
    return "" if is_opener or not inside[written:].lstrip().startswith(token) else token


def _any_of(texts: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, texts)) or "(?!)")
