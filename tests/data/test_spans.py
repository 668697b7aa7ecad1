"""Assistant turns derived from chat templates without markers: found in full, or refused."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError
from transformers.utils.chat_template_utils import render_jinja_template

from sftcore import Message, RowError
from sftcore.data.spans import AssistantSpans

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
NO_END = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
UPPER = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | upper }}<|im_end|>{% endfor %}"
DROPS = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
SPECIAL = [
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "[INST]",
    "[/INST]",
    "<s>",
    "</s>",
]


def found(template: str, turns: list[Message], special=SPECIAL, eos="</s>") -> list[str]:
    def render(turns, generation_prompt):
        conversations = [[turn.as_template() for turn in turns]]
        tokens = {"bos_token": "<s>", "eos_token": eos}
        return render_jinja_template(
            conversations=conversations, chat_template=template, add_generation_prompt=generation_prompt, **tokens
        )[0][0]

    text = render(turns, False)
    return [text[span.start : span.end] for span in AssistantSpans(render, special, eos).find(turns, text, render)]


def talk(*contents: str) -> list[Message]:
    return [Message(("user", "assistant")[i % 2], content) for i, content in enumerate(contents)]


@pytest.mark.parametrize(
    ("template", "turns"),
    [
        (CHATML, ["b<|im_end|>", "d<|im_end|>"]),
        (LLAMA3, ["b<|eot_id|>", "d<|eot_id|>"]),
        (MISTRAL, [" b</s>", " d</s>"]),
    ],
)
def test_a_turn_reaches_from_the_generation_prompt_to_its_end_token(template, turns):
    assert found(template, talk("a", "b", "c", "d")) == turns


def test_special_tokens_inside_the_words_do_not_end_the_turn():
    assert found(CHATML, talk("a <|im_end|> b", "c <|im_end|> d")) == ["c <|im_end|> d<|im_end|>"]


def test_an_empty_turn_is_its_end_token():
    assert found(CHATML, talk("a", "", "c", "d")) == ["<|im_end|>", "d<|im_end|>"]


@pytest.mark.parametrize(
    ("template", "said"),
    [(NO_END, "no end token"), (UPPER, "rewrites the messages' text"), (DROPS, "leaves its words out")],
)
def test_what_cannot_be_verified_is_refused_with_its_reason(template, said):
    with pytest.raises(RowError, match=said):
        found(template, talk("a", "b"))


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=15)


@settings(max_examples=150, deadline=None)
@given(st.lists(TEXTS, min_size=2, max_size=6).filter(lambda texts: len(texts) % 2 == 0))
def test_chatml_turns_are_exactly_the_words_and_the_end_token(texts):
    assert found(CHATML, talk(*texts)) == [f"{text}<|im_end|>" for text in texts[1::2]]


# --- The templates that the installed trl package ships
def templates() -> list[Path]:
    spec = importlib.util.find_spec("trl")
    folder = Path(next(iter(spec.submodule_search_locations))) / "chat_templates" if spec else Path("nowhere")
    return sorted(path for path in folder.glob("*.jinja") if path.with_name(f"{path.stem}_training.jinja").exists())


REFUSED = {
    "glm4moe": "no end token",
    "idefics3": "leaves its words out",
    "smolvlm": "leaves its words out",
    "llava_next": "has no attribute 'text'",
}
"""GLM gives the last turn no end token; the others print lists of parts only, and nothing of a plain string."""


@pytest.mark.skipif(not templates(), reason="needs: pip install trl")
@pytest.mark.parametrize("path", templates(), ids=lambda path: path.stem)
def test_stock_templates_give_the_words_that_their_training_variants_mark(path):
    """Where both render the same text, the derived turns and the marked ones hold the same words and end tokens."""
    stock = path.read_text()
    marked_template = path.with_name(f"{path.stem}_training.jinja").read_text()
    special = sorted({*re.findall(r"<\|?[a-zA-Z_|]+\|?>|<｜[^｜]+｜>|\[/?[A-Z_]+\]", stock), "<bos>", "<eos>"})
    special = [text for text in special if text not in ("<think>", "</think>", "<tool_call>", "</tool_call>")]
    turns = talk("hi there", "hello friend", "how are you", "fine thanks")
    tokens = {"bos_token": "<bos>", "eos_token": "<eos>"}
    if path.stem in REFUSED:
        with pytest.raises((RowError, UndefinedError), match=REFUSED[path.stem]):
            found(stock, turns, special, "<eos>")
        return
    ours = found(stock, turns, special, "<eos>")
    text = render_jinja_template(conversations=[[turn.as_template() for turn in turns]], chat_template=stock, **tokens)[
        0
    ][0]
    (marked,), (places,) = render_jinja_template(
        conversations=[[turn.as_template() for turn in turns]], chat_template=marked_template,
        return_assistant_tokens_mask=True, **tokens,
    )  # fmt: skip
    assert len(ours) == 2
    for turn, word in zip(ours, ("hello friend", "fine thanks"), strict=True):
        assert word in turn
        assert any(turn.endswith(token) for token in special)
    if marked == text:
        theirs = "".join(marked[start:end] for start, end in places)
        assert all(turn.strip() in theirs for turn in ours)
