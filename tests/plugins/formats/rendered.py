"""Rows as a run renders them: what is supervised stands between « and »."""

from __future__ import annotations

from sftcore import Span
from sftcore.chat.render import Renderer
from sftcore.config.plugins.blocked import Blocklist
from sftcore.config.plugins.bound import bind
from sftcore.core.discovery import discover
from sftcore.core.registry import ActivePlugins
from sftcore.core.types import Selection
from sftcore.data.format import reader_for
from tests.conftest import make_tokenizer

TEMPLATE = (
    "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML that prints tools, calls and reasoning, and no other keys."""


def examples(format_name: str, row: dict, **options) -> list:
    bound = bind(Selection("format", format_name, options), discover(), Blocklist())
    return reader_for(bound, tuple(row), "data", ActivePlugins([])).read(row, 7)


def shown(
    row: dict, format_name: str = "chat", *, template: str = TEMPLATE, tokenizer=None, asked=None, **options
) -> str:
    """The row's examples one below the other; `asked` are the arguments of the renderer."""
    renderer = Renderer(
        tokenizer or make_tokenizer(template=template), **({"assistant_only": True} if asked is None else asked)
    )
    found = [renderer.render(example) for example in examples(format_name, row, **options)]
    return "\n---\n".join(marked(one.text, one.spans) for one in found)


def notes(row: dict, format_name: str = "chat", *, template: str = TEMPLATE, **options) -> list[str]:
    renderer = Renderer(make_tokenizer(template=template), assistant_only=True)
    return [note for example in examples(format_name, row, **options) for note in renderer.render(example).notes]


def marked(text: str, spans: tuple[Span, ...] | None) -> str:
    if spans is None:
        return f"«{text}»"
    for span in reversed(spans):
        text = f"{text[: span.start]}«{text[span.start : span.end]}»{text[span.end :]}"
    return text


def told(*turns: tuple[str, str]) -> str:
    """ChatML written by hand, with the assistant's turns supervised."""

    def turn(role: str, words: str) -> str:
        return f"«{words}<|im_end|>»" if role == "assistant" else f"{words}<|im_end|>"

    return "".join(f"<|im_start|>{role}\n{turn(role, words)}\n" for role, words in turns)
