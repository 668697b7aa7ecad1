"""Puts what a message says in other ways, such as Anthropic's blocks, where chat templates look for it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from sftcore.core.errors import RowError
from sftcore.core.types import Example, Message, Part, Turns

_TEXTS = ("input_text", "output_text")
_THOUGHTS = ("thinking", "reasoning")
_CLOSED = ("redacted_thinking", "audio", "input_audio", "video", "file", "document")
"""Parts that hold no text."""
_MARKS = {"loss": True, "loss_mask": True, "trainable": True, "masked": False}
"""What other libraries call `train` in a message, and the value with which they train it."""


def says_otherwise(turns: Turns) -> bool:
    """Whether a message has parts other than texts and images, or further keys, as few rows do."""
    for turn in turns:  # noqa: SIM110 - asked of every row, where a generator costs as much again
        if turn.extra or (type(turn.content) is not str and _has_others(turn.content)):
            return True
    return False


def _has_others(content: Any) -> bool:
    return any(part.type not in ("text", "image") or (part.extra and part.type == "text") for part in content or ())


def as_templates_read(turns: Turns, knows: Callable[[str], bool], mentions: Callable[[str], bool]) -> list[Message]:
    """The messages with calls, their results and reasoning in the places that chat templates read.

    Anthropic's `tool_use`, `tool_result` and `thinking` blocks, OpenAI's `function_call` and `refusal`, and the texts
    of its Responses are translated, and other libraries' marks of what is not to be trained become `train`. `knows`
    tells which types of parts the template reads by itself, `mentions` which keys.

    Raises:
        RowError: a part or key holds what no template would print, or marks cannot be read.
    """
    names: dict[str, str] = {}
    found: list[Message] = []
    for index, turn in enumerate(turns):
        if turn.extra:
            turn = _without_keys(_as_marked(turn, index), index, mentions)
        if turn.content is None or isinstance(turn.content, str):
            found.append(turn)
            continue
        turn, parts = _as_parts_are_marked(turn, turn.content, index)
        results = [part for part in parts if part.type == "tool_result" and not knows("tool_result")]
        found += [_result(part, names, index) for part in results]
        others = [part for part in parts if part not in results]
        turn = _translated(attrs.evolve(turn, content=others), knows, index)
        names.update({str(call.get("id")): call["function"]["name"] for call in turn.tool_calls if "function" in call})
        if others or not results:
            found.append(turn)
    return found


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


def _as_marked(turn: Message, index: int) -> Message:
    """The message with `train` where it has another library's mark: of ms-swift, verl and others."""
    train = turn.train
    for key in _MARKS.keys() & turn.extra.keys():
        value = turn.extra[key]
        if value not in (0, 1):
            said = json.dumps(value, ensure_ascii=False, default=str)
            raise RowError(f'message {index} has "{key}": {said}.', fix='Give "train" (true or false) or "weight".')
        train = (bool(value) is _MARKS[key]) and train is not False
    return attrs.evolve(turn, train=train, extra={key: value for key, value in turn.extra.items() if key not in _MARKS})


def _as_parts_are_marked(turn: Message, parts: Sequence[Part], index: int) -> tuple[Message, Sequence[Part]]:
    """The message with the `train` and `weight` that all of its parts have, and the parts without."""
    marks = {(part.extra.get("train"), part.extra.get("weight")) for part in parts}
    if marks <= {(None, None)}:
        return turn, parts
    train, weight = next(iter(marks))
    if len(marks) > 1 or train not in (None, 0, 1) or not 0 <= (weight or 0) <= 1:
        raise RowError(
            f"message {index} trains some of its parts and not others.",
            fix='Split it into messages, or give "train" (true or false) or "weight" to the whole message.',
        )
    bare = [
        attrs.evolve(part, extra={key: got for key, got in part.extra.items() if key not in ("train", "weight")})
        for part in parts
    ]
    train = turn.train if train is None else bool(train) and turn.train is not False
    return attrs.evolve(turn, train=train, weight=turn.weight if weight is None else float(weight)), bare


def _without_keys(turn: Message, index: int, mentions: Callable[[str], bool]) -> Message:
    """OpenAI's older keys: a call as `function_call`, and a refusal beside empty content."""
    extra = {key: value for key, value in turn.extra.items() if value not in (None, "", [], {})}
    call, refusal = extra.pop("function_call", None), extra.pop("refusal", None)
    if turn.role == "assistant" and "audio" in extra:
        raise _unread(index, "audio")
    if turn.role == "assistant" and "function_calls" in extra and not mentions("function_calls"):
        raise _unread(index, "function_calls")
    if isinstance(call, Mapping) and not turn.tool_calls:
        turn = attrs.evolve(turn, tool_calls=[{"type": "function", "function": _function(call)}])
    elif call is not None:
        raise _unread(index, "function_call")
    if isinstance(refusal, str) and not turn.content:
        turn = attrs.evolve(turn, content=refusal)
    elif refusal is not None:
        raise _unread(index, "refusal")
    return attrs.evolve(turn, extra=extra)


def _translated(turn: Message, knows: Callable[[str], bool], index: int) -> Message:
    calls, thoughts, rest = list(turn.tool_calls), [], []
    for part in turn.content or ():
        assert isinstance(part, Part)
        text = part.text if part.text is not None else part.extra.get(part.type)
        if knows(part.type):
            rest.append(part)
        elif part.type == "tool_use":
            function = _function({"name": part.extra.get("name"), "arguments": part.extra.get("input")})
            calls.append({"id": part.extra.get("id"), "type": "function", "function": function})
        elif part.type in _THOUGHTS and isinstance(text, str):
            thoughts.append(text)
        elif part.type in (*_TEXTS, "refusal") and isinstance(text, str):
            rest.append(Part("text", text))
        elif part.type in _CLOSED:
            raise _unread(index, part.type)
        else:
            rest.append(part)
    if thoughts and turn.reasoning is not None:
        raise RowError(f"message {index} has reasoning in its content and beside it.", fix="Keep one of them.")
    content: Any = rest if rest or not (calls or thoughts) else ""
    return attrs.evolve(turn, content=content, tool_calls=calls, reasoning="\n".join(thoughts) or turn.reasoning)


def _result(part: Part, names: Mapping[str, str], index: int) -> Message:
    """A tool's answer, which Anthropic puts into the user's next message."""
    content = part.extra.get("content", part.text)
    number = str(part.extra.get("tool_use_id"))
    if isinstance(content, Sequence) and not isinstance(content, str):
        texts: list[Any] = [one.get("text") if isinstance(one, Mapping) else one for one in content]
        if not all(isinstance(text, str) for text in texts):
            raise _unread(index, "tool_result")
        content = "".join(texts)
    return Message("tool", content or "", name=names.get(number), tool_call_id=number)


def _function(call: Mapping[str, Any]) -> dict[str, Any]:
    arguments = call.get("arguments")
    if isinstance(arguments, str) and not arguments.strip():
        arguments = None
    if isinstance(arguments, str):
        with contextlib.suppress(json.JSONDecodeError):
            arguments = json.loads(arguments)
    return {"name": call.get("name"), "arguments": {} if arguments is None else arguments}


def _unread(index: int, name: str) -> RowError:
    return RowError(
        f'message {index} has "{name}", which the chat template does not render.',
        fix="Use a model and template that render it, or remove it.",
    )
