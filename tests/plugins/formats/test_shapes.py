"""Every shape of docs/how-to/formats.md: read as it is, by the line that is offered, or refused in the words shown."""

from __future__ import annotations

import re

import pytest

from sftcore.chat.render import Renderer
from sftcore.config import yaml12
from sftcore.config.selections import parse_choice
from sftcore.config.setup import set_up
from sftcore.core.errors import SFTCoreError
from sftcore.core.types import KINDS, ModelRequest
from sftcore.data.format import UnreadColumnsError, choose_format, reader_for
from sftcore.data.pipeline import Pipeline
from sftcore.data.tokenize import Tokenizer
from tests.conftest import make_tokenizer
from tests.plugins.formats.shapes import AUTO, SHAPES, Shape

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>"
    "{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(template=TEMPLATE)


def read(shape: Shape, format_line: str | None, tokenizer):
    """The contents that the run would train on, and the line that had to be added."""
    chosen = parse_choice("format", yaml12.load(format_line, where="x")["format"], where="x") if format_line else []
    setup = set_up(chosen, {}, ModelRequest(None), where="recipe", without=[kind for kind in KINDS if kind != "format"])
    columns = tuple(shape.row)
    bound = choose_format(
        setup, columns, "data",
        rows=lambda: [shape.row], has_template=True,
    )  # fmt: skip
    reader = reader_for(bound, columns, "data", setup.plugins)
    conversation = any(one.messages is not None for one in reader.read(shape.row, 0))
    pipeline = Pipeline(reader, Renderer(tokenizer, assistant_only=conversation), Tokenizer(tokenizer))
    return [content for _, content in pipeline.read([shape.row], [0])]


def marked(content) -> str:
    """A text, or ids, with what is trained between « and »."""
    if hasattr(content, "input_ids"):
        labels = content.labels or content.input_ids
        pairs = enumerate(zip(content.input_ids, labels, strict=True))
        return " ".join(f"«{token}»" if label != -100 and i else str(token) for i, (token, label) in pairs)
    text, at, found = content.text, 0, ""
    spans = content.spans if content.spans is not None else [type("S", (), {"start": 0, "end": len(text)})]
    for span in spans:
        found += text[at : span.start] + "«" + text[span.start : span.end] + "»"
        at = span.end
    return found + text[at:]


def expected(shape: Shape) -> list[str]:
    """The turns as ChatML has them."""
    if not re.match(r"(system|user|assistant|tool)\*?: ", shape.expected[0]):
        return list(shape.expected)
    whole = ""
    for turn in shape.expected:
        role, words = turn.split(": ", 1)
        body = f"{words}<|im_end|>"
        whole += f"<|im_start|>{role.rstrip('*')}\n" + (f"«{body}»" if role.endswith("*") else body) + "\n"
    return [whole]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda one: one.name)
def test_a_shape_is_read_with_its_meaning_or_refused_by_name(shape, tokenizer):
    if shape.by == AUTO:
        assert [marked(one) for one in read(shape, None, tokenizer)] == expected(shape)
        return
    with pytest.raises(SFTCoreError) as caught:
        read(shape, None, tokenizer)
    if not shape.by.startswith("format:"):
        assert shape.by in str(caught.value)
        return
    assert isinstance(caught.value, UnreadColumnsError)
    assert shape.by == caught.value.suggestions[0].line, str(caught.value)
    assert shape.by in str(caught.value)
    assert [marked(one) for one in read(shape, shape.by, tokenizer)] == expected(shape)
