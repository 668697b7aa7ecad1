"""Random chat templates x random conversations: what is supervised is what an oracle says, or the row is refused."""

from __future__ import annotations

import random

import pytest

from sftcore import Example, RowError
from sftcore.chat.render import Renderer
from tests.chat import grammar
from tests.fuzz.fuzz_profile import TIMES

pytestmark = pytest.mark.slow

TEMPLATES, CONVERSATIONS = 150, 3


def test_the_supervised_text_is_the_oracles_or_the_row_is_refused():
    accepted = refused = 0
    for seed in range(TEMPLATES * TIMES):
        rng = random.Random(seed)
        style, kind = grammar.draw(rng)
        tokenizer = grammar.tokenizer_of(kind)
        tokenizer.chat_template = grammar.jinja(style)
        # rows of one data set share what was learned
        renderer = Renderer(tokenizer, assistant_only=True)
        for _ in range(CONVERSATIONS):
            turns, tools = grammar.draw_talk(rng), grammar.TOOLS if rng.random() < 0.5 else None
            text, said = grammar.expected(style, turns, tools, lacking=kind == "lacking")
            try:
                one = renderer.render(Example(messages=turns, tools=tools))
            except RowError:
                refused += 1
                continue
            accepted += 1
            assert one.text == text, f"seed {seed}: {style}"
            found = [one.text[span.start : span.end] for span in one.spans]
            assert found == [turn for turn in said if turn], f"seed {seed}: {style}"
    assert refused < 0.03 * accepted
