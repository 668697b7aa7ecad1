"""Puts what a message says in other ways, such as Anthropic's blocks, where chat templates look for it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import attrs
from attrs import define, field

from sftcore.chat.template import ChatTemplate, Turn
from sftcore.core.errors import RowError
from sftcore.core.types import Example, Message, Part, Turns
from sftcore.rows.columns import from_json
from sftcore.rows.details import DETAIL
from sftcore.rows.marks import as_marked
from sftcore.rows.parts import text_of_parts
from sftcore.rows.tools import arguments_of, calls_of
from sftcore.rows.turns import with_calls_joined
from sftcore.util.shown import EXAMPLE, shortened

_TEXTS = ("input_text", "output_text")
_THOUGHTS = ("thinking", "reasoning")
_CLOSED = ("redacted_thinking", "audio", "input_audio", "video", "file", "document")
"""Parts that hold no text."""
_SEEN = {
    "image": "images", "image_url": "images", "input_image": "images", "video": "videos", "video_url": "videos",
    "audio": "sounds", "audio_url": "sounds", "input_audio": "sounds",
}  # fmt: skip
"""Parts that are seen or heard, and what they are."""
_SAID = ("audio", "function_calls", "tool_uses", "reasoning_details")
"""Keys in which the assistant says something that only some templates print."""
_THOUGHT = ("thought", "thoughts", "think", "cot", "chain_of_thought")
"""What its reasoning is called elsewhere."""
_HELD = {
    "text": (),
    "tool_use": ("id", "name", "input"),
    "tool_result": ("tool_use_id", "name", "content"),
    "thinking": ("thinking",),
    "reasoning": ("reasoning", "content", "summary"),
    **dict.fromkeys((*_TEXTS, "refusal"), ("refusal",)),
}
"""The keys of parts, beside the text, whose values reach the template; parts of other types are passed whole."""

DEVELOPER = "developer messages are rendered as system messages, because the chat template leaves them out"


_WORDS = tuple(f"q7zXcontent{i}Xz7q" for i in range(4))


class Reads:
    """What one chat template reads of messages."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._keys: dict[str, bool] = {}

    def part(self, kind: str) -> bool:
        """Whether it asks for parts of this type."""
        return self._template.reads_parts(kind)

    def key(self, key: str) -> bool:
        """Whether it may print this key of a message: its source names it, or it prints messages whole."""
        if key not in self._keys:
            # as message.key or "key": the bare word may be a loop's variable, or text such as <tool_call>
            asked = rf"\.\s*{re.escape(key)}(?!\w)|(['\"]){re.escape(key)}\1"
            named = re.search(asked, self._template.source) is not None
            self._keys[key] = named or self._prints_messages
        return self._keys[key]

    @cached_property
    def _prints_messages(self) -> bool:
        return self._printed(self._turns({_WORDS[2]: _WORDS[3]}), _WORDS[3], refused=True)

    @cached_property
    def drops_developer(self) -> bool:
        """Whether it leaves out, or refuses, a developer's words, and prints those of the system."""
        developer, system = (
            self._printed(
                [{"role": role, "content": self._word(_WORDS[2])}, *self._turns({})], _WORDS[2], refused=False
            )
            for role in ("developer", "system")
        )
        return system and not developer

    def _printed(self, turns: list[Turn], word: str, *, refused: bool) -> bool:
        try:
            return word in self._template.render(turns, None, {}, False)
        except RowError:
            return refused

    def _word(self, word: str) -> Any:
        return word if "text" in self._template.prints else [{"type": "text", "text": word}]

    def _turns(self, more: Mapping[str, Any]) -> list[Turn]:
        roles = zip(("user", "assistant"), _WORDS, strict=False)
        return [{"role": role, "content": self._word(word), **more} for role, word in roles]


def switches(template: ChatTemplate) -> list[tuple[str, bool]]:
    """Arguments that a template reads and that by their names decide on reasoning, with each of both values."""
    chosen = sorted(name for name in template.names if re.search("think|thought|reason", name, re.IGNORECASE))
    return [(name, value) for name in chosen for value in (True, False)]


def says_otherwise(turns: Turns, seen: Collection[str] = ()) -> bool:
    """Whether a message has parts other than texts and those of types that are `seen`, further keys, or a developer."""
    for turn in turns:
        if turn.extra or turn.role == "developer":
            return True
        if type(turn.content) is not str and _has_others(turn.content, seen):
            return True
    return False


def _has_others(content: Any, seen: Collection[str]) -> bool:
    return any(part.extra if part.type == "text" else part.type not in seen for part in content or ())


def refuse_unseen(turns: Turns, knows: Callable[[str], bool]) -> None:
    """Refuse parts for images, videos and sounds that the template would write a placeholder for, and nobody reads.

    Raises:
        RowError: a message has such a part, and the example has no images.
    """
    for index, turn in enumerate(turns):
        for part in () if turn.content is None or isinstance(turn.content, str) else turn.content:
            if part.type in _SEEN and knows(part.type):
                raise RowError(
                    f'message {index} has a part of type "{part.type}", but the format reads no {_SEEN[part.type]}.',
                    fix="Use a format and a model that read it (format: vlm for images), or remove the part.",
                )


@define
class Content:
    """Puts what messages say where chat templates look for it. `_examples` holds a value of each unread key."""

    _examples: dict[str, str] = field(factory=dict)
    _reads: dict[str, Reads] = field(factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        """Without what was learned: workers learn their own, and no cache key depends on it."""
        return {"_examples": {}, "_reads": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._examples, self._reads = state["_examples"], state["_reads"]

    def as_templates_read(self, turns: Turns, chosen: ChatTemplate) -> tuple[list[Message], tuple[str, ...]]:
        """The messages with calls, their results and reasoning in the places that chat templates read, and notes.

        Anthropic's `tool_use`, `tool_result` and `thinking` blocks, OpenAI's `function_call` and `refusal`, and the
        texts of its Responses are translated, other libraries' marks of what is not to be trained become `train`, and
        a developer's words become the system's where the template would leave them out. Keys that nothing reads are
        removed, and each has its note.

        Raises:
            RowError: a part or key holds what no template would print, or marks cannot be read.
        """
        template = self._reads.get(chosen.source) or self._reads.setdefault(chosen.source, Reads(chosen))
        names: dict[str, str] = {}
        found: list[Message] = []
        notes: dict[str, None] = {}
        for index, turn in enumerate(turns):
            if turn.role == "developer" and template.drops_developer:
                turn = attrs.evolve(turn, role="system")
                notes[DEVELOPER] = None
            turn = as_marked(turn, f"message {index}")
            if turn.extra:
                turn = self._without_keys(turn, index, template, notes)
            if turn.content is None or isinstance(turn.content, str):
                found.append(turn)
                continue
            parts = [self._without_part_keys(part, template, notes) for part in turn.content]
            results = [part for part in parts if part.type == "tool_result" and not template.part("tool_result")]
            found += [_result(part, names, index) for part in results]
            others = [part for part in parts if part not in results]
            turn = _translated(attrs.evolve(turn, content=others), template, index)
            called = (call for call in turn.tool_calls if "function" in call)
            names.update({str(call.get("id")): call["function"]["name"] for call in called})
            if others or not results:
                found.append(turn)
        return with_calls_joined(found), tuple(notes)

    def _without_keys(self, turn: Message, index: int, template: Reads, notes: dict[str, None]) -> Message:
        turn = _without_older_keys(turn, index, template)
        unread = [key for key in turn.extra if key != DETAIL and not template.key(key)]
        if not unread:
            return turn
        for key in unread:
            notes[self._unread(f'the key "{key}" of messages', turn.extra[key])] = None
        return attrs.evolve(turn, extra={key: value for key, value in turn.extra.items() if key not in unread})

    def _without_part_keys(self, part: Part, template: Reads, notes: dict[str, None]) -> Part:
        """The part without keys that no template knows, if its type says which it does."""
        if not part.extra or (held := _HELD.get(part.type)) is None:
            return part
        kept = {key: value for key, value in part.extra.items() if key in held or template.key(key)}
        for key, value in part.extra.items():
            if key not in kept and value not in (None, "", [], {}):
                notes[self._unread(f'the key "{key}" of "{part.type}" parts', value)] = None
        return attrs.evolve(part, extra=kept)

    def _unread(self, what: str, value: Any) -> str:
        return self._examples.setdefault(what, f"{what} is not read{EXAMPLE}{shortened(value)}")


def with_calls_as_text(example: Example) -> Example:
    """The example with its calls as JSON in the words of the assistant."""
    said: dict[str, Any] = {}
    for name in ("messages", "prompt", "completion"):
        turns = getattr(example, name)
        if turns is not None and not isinstance(turns, str):
            said[name] = [
                attrs.evolve(turn, content=json.dumps([dict(call) for call in turn.tool_calls]), tool_calls=())
                if turn.tool_calls
                else turn
                for turn in turns
            ]
    return attrs.evolve(example, **said)


def _without_older_keys(turn: Message, index: int, template: Reads) -> Message:
    """OpenAI's older keys: a call as `function_call`, and a refusal beside empty content."""
    extra = {key: value for key, value in turn.extra.items() if value not in (None, "", [], {})}
    call, refusal = extra.pop("function_call", None), extra.pop("refusal", None)
    if turn.role == "assistant":
        for key in (key for key in _THOUGHT if isinstance(extra.get(key), str) and not template.key(key)):
            if turn.reasoning is not None and turn.reasoning != extra[key]:
                raise _unread(index, key)
            turn = attrs.evolve(turn, reasoning=extra.pop(key))
        if "tool_call" in extra and not turn.tool_calls and not template.key("tool_call"):
            turn = attrs.evolve(turn, tool_calls=calls_of(extra.pop("tool_call"), f"message {index}"))
        for key in (key for key in _SAID if key in extra):
            again = key == "reasoning_details" and turn.reasoning is not None
            if key == "audio" or not (again or template.key(key)):
                raise _unread(index, key)
    if isinstance(call, str) and call.lstrip().startswith("{"):
        call = from_json(call, f'message {index}: "function_call"', fix='Give {"name": …, "arguments": …}.')
    if isinstance(call, Mapping) and not turn.tool_calls:
        turn = attrs.evolve(turn, tool_calls=[{"type": "function", "function": _function(call, index)}])
    elif call is not None:
        raise _unread(index, "function_call")
    if isinstance(refusal, str) and not turn.content:
        turn = attrs.evolve(turn, content=refusal)
    elif refusal is not None:
        raise _unread(index, "refusal")
    return attrs.evolve(turn, extra=extra)


def _translated(turn: Message, template: Reads, index: int) -> Message:
    calls, thoughts, rest = list(turn.tool_calls), [], []
    for part in turn.content or ():
        assert isinstance(part, Part)
        text = part.text if part.text is not None else text_of_parts(part.extra.get(part.type))
        if template.part(part.type):
            rest.append(part)
        elif part.type == "tool_use":
            number, made = part.extra.get("id"), {**part.extra, "arguments": part.extra.get("input")}
            call = {"type": "function", "function": _function(made, index)}
            calls.append(call if number is None else {"id": number, **call})
        elif part.type in _THOUGHTS:
            if text is None:
                text = text_of_parts(part.extra.get("content") or part.extra.get("summary"))
            if text is None:
                raise _unread(index, part.type)
            thoughts.append(text)
        elif part.type in (*_TEXTS, "refusal") and isinstance(text, str):
            rest.append(Part("text", text))
        elif part.type in _CLOSED:
            raise _unread(index, part.type)
        else:
            rest.append(part)
    thoughts = [thought for thought in thoughts if thought]
    if thoughts and turn.reasoning is not None:
        raise RowError(f"message {index} has reasoning in its content and beside it.", fix="Keep one of them.")
    content: Any = rest if rest or not (calls or thoughts) else ""
    return attrs.evolve(turn, content=content, tool_calls=calls, reasoning="\n".join(thoughts) or turn.reasoning)


def _result(part: Part, names: Mapping[str, str], index: int) -> Message:
    """A tool's answer, which Anthropic puts into the user's next message."""
    content = part.extra.get("content", part.text)
    number = part.extra.get("tool_use_id")
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = text_of_parts(content)
        if content is None:
            raise _unread(index, "tool_result")
    name = part.extra.get("name") or names.get(str(number))
    return Message("tool", content or "", name=name, tool_call_id=None if number is None else str(number))


def _function(call: Mapping[str, Any], index: int) -> dict[str, Any]:
    if not isinstance(call.get("name"), str):
        raise RowError(f"message {index} has a call that does not name a function: {shortened(dict(call))}.")
    return {"name": call["name"], "arguments": arguments_of(call.get("arguments"), f"message {index}")}


def _unread(index: int, name: str) -> RowError:
    return RowError(
        f'message {index} has "{name}", which the chat template does not render.',
        fix="Use a model and template that render it, or remove it.",
    )
