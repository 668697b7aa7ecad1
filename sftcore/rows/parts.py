"""Parts of a message's content, as OpenAI, Anthropic, Gemini, Bedrock and Vercel's SDK write them.

Calls, their results and thoughts become parts of Anthropic's types `tool_use`, `tool_result` and `thinking`, which
sftcore.chat.content puts where the chat template looks for them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sftcore.core.errors import RowError
from sftcore.core.types import Part
from sftcore.rows.columns import without_nulls
from sftcore.util.shown import kind_of, shortened

_TEXTS = ("text", "input_text", "output_text")
_WORDS = ("text", "value", "content")
"""The keys under which a part of these types has its words."""

_CALLS = ("functionCall", "function_call", "toolUse")
_RESULTS = ("functionResponse", "function_response", "toolResult")
_MEDIA = ("image", "image_url", "video", "audio")
_SILENT = frozenset(("cachePoint", "cache_point"))
"""Parts that say nothing."""


def content_of(content: Any, where: str, role: str) -> str | list[Part] | None:
    """A message's content as a text or as parts; what a tool answered with otherwise is JSON.

    Raises:
        RowError: it is neither a text nor a list of parts.
    """
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, Mapping) and isinstance(content.get("parts"), (list, tuple)):
        content = content["parts"]  # exported conversations of ChatGPT
    elif isinstance(content, Mapping) and (_is_part(content) or role != "tool") and content.keys() & {"type", "text"}:
        content = [content]
    if role == "tool" and not (isinstance(content, (list, tuple)) and all(map(_is_part, content))):
        return json.dumps(without_nulls(content), ensure_ascii=False, default=str)
    if not isinstance(content, (list, tuple)):
        raise RowError(f"{where}: content is {kind_of(content)}, not a text: {shortened(content)}.")
    return [found for part in content if (found := _part(part, where)) is not None]


def text_of_parts(value: Any) -> str | None:
    """The words of a text, or of a part or list of parts that hold texts alone; None if it is anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return text_of_parts(next((value[key] for key in (*_WORDS, "parts", "thinking") if key in value), None))
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        texts = [text_of_parts(one) for one in value]
        return None if None in texts else "".join(text or "" for text in texts)
    return None


def _is_part(part: Any) -> bool:
    if not isinstance(part, Mapping):
        return isinstance(part, str)
    named = part.get("type")
    return isinstance(named, str) or not part.keys().isdisjoint((*_WORDS, *_CALLS, *_RESULTS, *_MEDIA))


def _part(part: Any, where: str) -> Part | None:
    """The part, or None for one that says nothing."""
    if isinstance(part, str):
        return Part("text", part)
    if not isinstance(part, Mapping):
        raise RowError(f"{where}: a part of the content has no type: {shortened(part)}.")
    clean = without_nulls(part)
    if not isinstance(clean.get("type"), str):
        return _untyped(clean, where)
    named, text = clean["type"], clean.get("text")
    if named in ("tool-call", "tool_call"):
        made = clean.get("input", clean.get("args"))
        return _call(clean.get("toolCallId", clean.get("id")), clean.get("toolName", clean.get("name")), made)
    if named == "tool-result":
        answered = clean.get("result", clean.get("output"))
        if isinstance(answered, Mapping) and "value" in answered:
            answered = answered["value"]
        return _result(clean.get("toolCallId"), clean.get("toolName"), answered)
    rest = {key: value for key, value in clean.items() if key not in ("type", "text")}
    if named in _TEXTS and not isinstance(text, str):
        text = text_of_parts(clean)
        rest = {key: value for key, value in rest.items() if key not in _WORDS}
    return Part(named, text, rest)


def _untyped(part: Mapping[str, Any], where: str) -> Part | None:
    """A part of Gemini or Bedrock, whose one key says what it is."""
    for key in (one for one in _CALLS if isinstance(part.get(one), Mapping)):
        call = part[key]
        return _call(call.get("toolUseId", call.get("id")), call.get("name"), call.get("input", call.get("args")))
    for key in (one for one in _RESULTS if isinstance(part.get(one), Mapping)):
        found = part[key]
        answered = found.get("content", found.get("response"))
        return _result(found.get("toolUseId", found.get("id")), found.get("name"), answered)
    if "reasoningContent" in part:
        thought = part["reasoningContent"]
        text = text_of_parts(thought.get("reasoningText")) if isinstance(thought, Mapping) else None
        return Part("redacted_thinking") if text is None else Part("thinking", text)
    words = next((key for key in _WORDS if isinstance(part.get(key), str)), None)
    if words is not None:
        rest = {key: value for key, value in part.items() if key not in (words, "thought")}
        return Part("thinking" if part.get("thought") is True else "text", part[words], rest)
    if (media := next((key for key in _MEDIA if key in part), None)) is not None:
        return Part(media, None, dict(part))
    if part and part.keys() <= _SILENT:
        return None
    raise RowError(f"{where}: a part of the content has no type: {shortened(dict(part))}.")


def _call(number: Any, name: Any, arguments: Any) -> Part:
    return Part("tool_use", None, {"id": number, "name": name, "input": arguments})


def _result(number: Any, name: Any, answered: Any) -> Part:
    if not isinstance(answered, str) and text_of_parts(answered) is None:
        if isinstance(answered, (list, tuple)) and len(answered) == 1 and isinstance(answered[0], Mapping):
            answered = answered[0].get("json", answered)  # Bedrock's
        answered = json.dumps(answered, ensure_ascii=False, default=str)
    elif isinstance(answered, Mapping):
        answered = json.dumps(answered, ensure_ascii=False, default=str)
    return Part("tool_result", None, {"tool_use_id": number, "name": name, "content": answered})
