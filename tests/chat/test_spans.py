"""Assistant turns derived from chat templates without markers: found in full and verified, or refused."""

from __future__ import annotations

import pickle
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftcore import Example, Message, Part, RowError
from sftcore.chat.render import Renderer
from tests.chat.test_masks import supervised
from tests.conftest import CHATML, CHATML_MARKED, make_tokenizer

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}{% elif m.role == 'assistant' %}"
    "<｜Assistant｜>{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if m.role == 'user' %}"
    "{{ bos_token }}[INST] {{ ((system if loop.first else '') + m.content).strip() }} [/INST]"
    "{% else %} {{ m.content.strip() }} {{ eos_token }}{% endif %}{% endfor %}"
)
VICUNA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}\n\n{% elif m.role == 'user' %}"
    "USER: {{ m.content | trim }}\n{% else %}ASSISTANT: {{ m.content | trim }}{{ eos_token }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
STYLES = {
    "chatml": (CHATML, "<|im_end|>", ["<|im_start|>"]),
    "llama3": (LLAMA3, "<|eot_id|>", ["<|start_header_id|>", "<|end_header_id|>"]),
    "mistral": (MISTRAL, "</s>", ["[INST]", "[/INST]"]),
    "llama2": (LLAMA2, "</s>", ["[INST]", "[/INST]"]),
    "vicuna": (VICUNA, "</s>", []),
    "gemma": (GEMMA, "<eos>", ["<start_of_turn>", "<end_of_turn>"]),
    "deepseek": (DEEPSEEK, "<｜end▁of▁sentence｜>", []),
}
"""Template, EOS and other special tokens."""
ENDS = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "mistral": "</s>",
    "llama2": " </s>",
    "vicuna": "</s>",
    "gemma": "<end_of_turn>",
    "deepseek": "<｜end▁of▁sentence｜>",
}


@lru_cache
def tokenizer_of(template: str, eos: str = "</s>", special: tuple[str, ...] = ()):
    tokenizer = make_tokenizer(template=template)
    tokens = {"bos_token": "<s>", "eos_token": eos, "additional_special_tokens": list(special)}
    tokenizer.add_special_tokens(tokens)
    return tokenizer


def styled(style: str):
    template, eos, special = STYLES[style]
    return tokenizer_of(template, eos, tuple(special))


def rendered(tokenizer, turns: list[Message], **fields):
    return Renderer(tokenizer, assistant_only=True).render(Example(messages=turns, **fields))


def found(tokenizer, turns: list[Message], **fields) -> list[str]:
    """The text of each supervised stretch."""
    one = rendered(tokenizer, turns, **fields)
    return [one.text[span.start : span.end] for span in one.spans]


def talk(*contents: str | None) -> list[Message]:
    return [Message(("user", "assistant")[i % 2], content) for i, content in enumerate(contents)]


# --- Styles
def expected(style: str, content: str) -> str:
    """What a turn is, told from the template's source by hand."""
    if style in ("llama3", "gemma"):
        content = content.strip()
    if style in ("mistral", "llama2", "vicuna"):
        content = " " + content.strip()
    if style == "deepseek":
        content = content.split("</think>")[-1]
    return content + ENDS[style]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "turns",
    [
        talk("a", "b"),
        talk("a", "b", "c", "d", "e", "f"),
        [Message("system", "be kind"), *talk("a", "b")],
        talk("grüß dich 🎉", "你好，世界 👩‍👩‍👧 é", "ok", "ＡＢＣ"),
        talk("a", "", "c", "d"),
        talk("  a\n", "\n\n b \n", "c", "  d"),
        talk("a</s> b", "x <|im_end|> y</s>", "<end_of_turn>", "<|eot_id|> z [INST]"),
        talk("a", "<think>\nhm\n</think>\n\nb", "c", "<think>ho</think>d"),
    ],
    ids=["one", "many", "system", "unicode", "empty", "edges", "special", "thinking"],
)
def test_a_turn_reaches_from_the_generation_prompt_to_its_end_token(style, turns):
    if style == "mistral" and turns[0].role == "system":
        turns = turns[1:]
    assert found(styled(style), turns) == [expected(style, m.content) for m in turns if m.role == "assistant"]


TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=15),
    st.sampled_from(
        ["", " ", "\n", "<|im_end|>", "</s>x", "<think>", "</think>", "<think>a</think>b", "<end_of_turn>"]
    ),
)


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(["chatml", "llama3", "mistral", "llama2", "vicuna", "gemma"]),
    st.lists(TEXTS, min_size=2, max_size=6).filter(lambda texts: len(texts) % 2 == 0),
)
def test_every_turn_is_exactly_its_words_and_its_end_token(style, texts):
    assert found(styled(style), talk(*texts)) == [expected(style, text) for text in texts[1::2]]


WORDS = st.text(st.characters(exclude_categories=["Cs", "Zs", "Zl", "Zp", "Cc"]), min_size=1, max_size=12)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["chatml", "llama3", "gemma"]), st.lists(WORDS, min_size=2, max_size=6))
def test_the_decoded_labels_are_the_words_and_the_end_tokens(style, texts):
    texts = texts[: len(texts) // 2 * 2]
    decoded = supervised(styled(style), Example(messages=talk(*texts)), assistant_only=True)
    assert decoded == "".join(expected(style, text) for text in texts[1::2])


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["chatml", "llama3", "mistral", "llama2", "vicuna", "gemma"]),
    st.lists(TEXTS, min_size=2, max_size=6).filter(lambda texts: len(texts) % 2 == 0),
)
def test_a_completion_is_its_last_turn(style, texts):
    turns = talk(*texts)
    one = Renderer(styled(style)).render(Example(prompt=turns[:-1], completion=turns[-1:]))
    assert [one.text[span.start : span.end] for span in one.spans] == [expected(style, texts[-1])]


# --- Templates that do things of their own
def test_turns_that_a_template_merges_are_one_stretch():
    merged = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}{{ m.content }}"
        "{% if loop.last or messages[loop.index].role == 'user' %}</s>{% else %}{{ '\n\n' }}{% endif %}"
        "{% endif %}{% endfor %}"
    )
    turns = [*talk("a", "b"), Message("assistant", "c"), *talk("d", "e")]
    spans = rendered(tokenizer_of(merged, special=("[INST]", "[/INST]")), turns).spans
    assert spans[0].end == spans[1].start
    assert found(tokenizer_of(merged, special=("[INST]", "[/INST]")), turns) == ["b", "\n\nc</s>", "e</s>"]


def test_reasoning_of_earlier_turns_may_be_left_out_and_is_noted():
    strips = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% if loop.last and m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
        "{{ m.content.split('</think>')[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = tokenizer_of(strips, "<|im_end|>")
    last = Message("assistant", "d", reasoning="why")
    turns = [*talk("a", "<think>hm</think>\n\nb", "c"), last]
    one = rendered(tokenizer, turns)
    assert found(tokenizer, turns) == ["b<|im_end|>", "<think>\nwhy\n</think>\n\nd<|im_end|>"]
    assert one.notes == ("reasoning of earlier turns left out by the chat template",)
    assert rendered(styled("chatml"), [*talk("a"), last]).notes == (
        "reasoning of the last turn left out by the chat template",
    )


def test_a_system_prompt_of_the_templates_own_is_noted_where_the_row_has_none():
    own = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are kind<|im_end|>\n{% endif %}" + CHATML
    tokenizer = tokenizer_of(own, "<|im_end|>")
    assert rendered(tokenizer, talk("a", "b")).notes == ("the chat template adds a system prompt of its own",)
    assert rendered(tokenizer, [Message("system", "s"), *talk("a", "b")]).notes == ()
    assert rendered(styled("chatml"), talk("a", "b")).notes == ()


def test_messages_and_tools_that_a_template_leaves_out_are_noted():
    turns = [Message("system", "be kind"), *talk("a", "b")]
    assert rendered(styled("mistral"), turns[1:]).notes == ()
    no_system = CHATML.replace("{{ m.content }}", "{{ m.content if m.role != 'system' }}")
    assert rendered(tokenizer_of(no_system, "<|im_end|>"), turns).notes == (
        "system messages left out by the chat template",
    )
    tools = [{"type": "function", "function": {"name": "now", "parameters": {}}}]
    assert rendered(styled("chatml"), talk("a", "b"), tools=tools).notes == (
        "tools left out, because the chat template does not render them",
    )


GLM = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""Turns end with the next one's header, and the last one with nothing."""


def test_a_last_turn_without_an_end_token_gets_the_one_that_ends_turns_inside():
    tokenizer = tokenizer_of(GLM, "<|endoftext|>", ("<|user|>", "<|assistant|>"))
    one = rendered(tokenizer, talk("a", "b", "c", "d"))
    assert found(tokenizer, talk("a", "b", "c", "d")) == ["b<|user|>", "d<|user|>"]
    assert one.text.endswith("d<|user|>")
    assert one.notes == ("stop token appended, because the chat template ends the last turn without one",)
    example = Example(prompt=talk("a"), completion=[Message("assistant", "b")])
    assert supervised(tokenizer, example) == "b<|user|>"


def test_a_template_without_any_end_token_gives_the_last_turn_eos():
    tokenizer = tokenizer_of("{% for m in messages %}{{ m.role | upper }}: {{ m.content }}\n{% endfor %}")
    assert found(tokenizer, talk("a", "b", "c", "d")) == ["b\n", "d\n</s>"]
    assert rendered(tokenizer, talk("a", "b", "c", "d")).notes == (
        "the chat template writes no end token after some turns",
        "stop token appended, because the chat template ends the last turn without one",
    )


# --- Tools
CALL = {"id": "1", "type": "function", "function": {"name": "now", "arguments": {"zone": "CET"}}}
TOOLED = (
    "{% for m in messages %}{% if m.role == 'tool' %}<|tool|>{{ m.content | tojson }}{% else %}<|{{ m.role }}|>"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}<|call|>{{ c.function.name }} {{ c.function.arguments }}"
    "{% endfor %}<|ran|>{% else %}{{ m.content }}<|end|>{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TOOLED_TOKENS = ("<|tool|>", "<|user|>", "<|assistant|>", "<|call|>", "<|ran|>", "<|end|>")


def test_a_call_ends_with_the_token_that_the_template_writes_behind_calls():
    tokenizer = tokenizer_of(TOOLED, "</s>", TOOLED_TOKENS)
    turns = [*talk("a"), Message("assistant", None, tool_calls=[CALL]), Message("tool", '{"time": "9"}'),
             Message("assistant", "nine"), *talk("b", "c")]  # fmt: skip
    call = '<|call|>now {"zone": "CET"}<|ran|>'
    assert found(tokenizer, turns) == [call, "nine<|end|>", "c<|end|>"]
    assert found(tokenizer, turns[:2]) == [call]


def test_an_answer_that_follows_the_tool_without_a_header_starts_behind_it():
    bare = TOOLED.replace(
        "<|{{ m.role }}|>", "{% if loop.first or loop.previtem.role != 'tool' %}<|{{ m.role }}|>{% endif %}"
    )
    bare = bare.replace("{{ m.content | tojson }}", "{{ m.content }}<|/tool|>")
    tokenizer = tokenizer_of(bare, "</s>", (*TOOLED_TOKENS, "<|/tool|>"))
    turns = [*talk("a"), Message("assistant", None, tool_calls=[CALL]), Message("tool", "9"), Message("assistant", "b")]
    assert found(tokenizer, turns) == ['<|call|>now {"zone": "CET"}<|ran|>', "b<|end|>"]


def test_arguments_become_json_text_where_the_template_cannot_take_a_mapping():
    text = TOOLED.replace("{{ c.function.arguments }}", "{{ c.function.arguments + '!' }}")
    tokenizer = tokenizer_of(text, "</s>", TOOLED_TOKENS)
    turns = [*talk("a"), Message("assistant", None, tool_calls=[CALL])]
    assert found(tokenizer, turns) == ['<|call|>now {"zone": "CET"}!<|ran|>']


def test_a_call_that_is_left_out_is_refused_though_its_name_stands_elsewhere():
    first_only = TOOLED.replace("in m.tool_calls", "in m.tool_calls[:1]")
    tokenizer = tokenizer_of(first_only, "</s>", TOOLED_TOKENS)
    turns = [*talk("now"), Message("assistant", None, tool_calls=[CALL, CALL]), Message("tool", "now")]
    with pytest.raises(RowError, match=r'message 1 .* leaves its call of "now" out'):
        found(tokenizer, turns)


def test_calls_without_headers_in_a_row_are_turns_of_their_own_though_the_system_message_moves_to_the_front():
    moved = (
        "{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}"
        "{% for m in messages if m.role != 'system' %}"
        "{% if m.role != 'assistant' or loop.first or loop.previtem.role != 'assistant' %}<|{{ m.role }}|>{% endif %}"
        "{{ m.content }}{% for c in m.tool_calls %}<|call|>{{ c.function.name }}{% endfor %}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    turns = [*talk("a"), Message("assistant", "b", tool_calls=[CALL]), Message("assistant", "", tool_calls=[CALL])]
    found_turns = found(tokenizer_of(moved, "</s>", TOOLED_TOKENS), [*turns, Message("system", "be kind")])
    assert found_turns == ["b<|call|>now<|end|>", "<|call|>now<|end|>"]


# --- Completions
def test_a_prompt_that_is_rendered_differently_is_told_apart_by_the_turns():
    eager = CHATML.replace("{% if add_generation_prompt %}", "{% if add_generation_prompt %}<|ready|>")
    tokenizer = tokenizer_of(eager, "<|im_end|>", ("<|im_start|>", "<|ready|>"))
    example = Example(prompt=talk("a", "b", "c"), completion=[Message("assistant", "d"), *talk("e", "f")])
    assert supervised(tokenizer, example) == (
        "d<|im_end|>\n<|im_start|>user\ne<|im_end|>\n<|im_start|>assistant\nf<|im_end|>"
    )
    assert supervised(styled("deepseek"), Example(prompt=talk("a"), completion=talk("", "b")[1:])) == (
        "b<｜end▁of▁sentence｜>"
    )


def test_mask_style_trl_supervises_what_the_template_adds_after_the_end_token():
    example = Example(prompt=talk("a"), completion=[Message("assistant", "b")])
    assert supervised(styled("gemma"), example, mask_style="turn") == "b<end_of_turn>"
    assert supervised(styled("gemma"), example, mask_style="trl") == "b<end_of_turn>\n"
    with pytest.raises(ValueError, match='mask_style is "turn" or "trl", got "line"'):
        Renderer(styled("gemma"), mask_style="line")


def test_a_completion_that_begins_with_the_user_begins_behind_the_prompt():
    example = Example(prompt=[Message("system", "s")], completion=talk("a", "b"))
    assert supervised(styled("chatml"), example) == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>"


# --- Refusals
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("{{ m.content | upper }}", "rewrites the messages' text"),
        ("{{ m.content[:3] }}", "leaves its words out|rewrites the messages' text"),
        ("{{ m.content if m.role == 'user' }}", "leaves its words out"),
    ],
)
def test_what_cannot_be_verified_is_refused_with_its_reason(change, said):
    with pytest.raises(RowError, match=said):
        found(tokenizer_of(CHATML.replace("{{ m.content }}", change), "<|im_end|>"), talk("hello", "there"))


def test_an_answer_that_is_left_out_is_refused_though_the_user_said_the_same():
    silent = tokenizer_of(CHATML.replace("{{ m.content }}", "{{ m.content if m.role == 'user' }}"), "<|im_end|>")
    for choice in ({"assistant_only": True}, {}):
        with pytest.raises(RowError, match=r"message 3 \(assistant\) .* leaves its words out"):
            supervised(silent, Example(messages=talk("a", "", "b", "b")), **choice)


def test_a_row_that_can_be_verified_is_not_refused_for_one_that_could_not():
    picky = CHATML.replace("{{ m.content }}", "{{ m.content | replace('!', '') }}")
    renderer = Renderer(tokenizer_of(picky, "<|im_end|>"), assistant_only=True)
    for _ in range(2):
        with pytest.raises(RowError, match="rewrites the messages' text"):
            renderer.render(Example(messages=talk("a", "b!")))
        one = renderer.render(Example(messages=talk("a", "b")))
        assert [one.text[span.start : span.end] for span in one.spans] == ["b<|im_end|>"]


def test_content_is_put_in_the_shape_in_which_every_message_is_printed():
    strict = CHATML.replace(
        "{{ m.content }}",
        "{% if m.content is string %}{{ m.content if m.role != 'system' }}{% else %}{{ m.content[0].text }}{% endif %}",
    )
    tokenizer = tokenizer_of(strict, "<|im_end|>")
    one = rendered(tokenizer, [Message("system", "be kind"), *talk("a", "b")])
    assert one.text.startswith("<|im_start|>system\nbe kind<|im_end|>")
    assert one.notes == ()


def test_a_template_that_demands_something_of_a_tools_words_is_still_verified():
    demanding = CHATML.replace(
        "{{ m.content }}",
        "{% if m.role == 'tool' and '{' not in m.content %}{{ raise_exception('no JSON') }}{% endif %}{{ m.content }}",
    )
    turns = [*talk("a", "b"), Message("tool", '{"c": 1}'), Message("assistant", "d")]
    assert found(tokenizer_of(demanding, "<|im_end|>"), turns) == ["b<|im_end|>", "d<|im_end|>"]


def test_a_users_turn_that_is_to_be_trained_on_is_refused_in_a_shape_that_is_known_too():
    renderer = Renderer(styled("chatml"))
    renderer.render(Example(messages=talk("a", "b")))
    for turns in (talk("a", "b"), [Message("user", "a", train=False), Message("assistant", "b")]):
        renderer.render(Example(messages=turns))
    with pytest.raises(RowError, match=r"message 0 \(user\) is marked for training"):
        renderer.render(Example(messages=[Message("user", "a", weight=0.5), Message("assistant", "b")]))


def test_arguments_of_a_row_reach_the_template_and_tell_its_shapes_apart():
    thinks = CHATML.replace("{{ m.content }}", "{% if mood %}<{{ mood }}>{% endif %}{{ m.content }}")
    renderer = Renderer(tokenizer_of(thinks, "<|im_end|>"))
    texts = [
        renderer.render(Example(messages=talk("a", "b"), template_kwargs=given)).text
        for given in ({"mood": "glad"}, {}, {"mood": "sad"})
    ]
    assert [text.count("<glad>") for text in texts] == [2, 0, 0]
    assert texts[2].count("<sad>") == 2


def test_words_that_look_like_a_sentinel_are_words():
    texts = ["q7z00000zq", "q7z00001zq", "q7zX", "q7z00003zq q7zXX"]
    assert found(styled("chatml"), talk(*texts)) == [f"{texts[1]}<|im_end|>", f"{texts[3]}<|im_end|>"]


def test_only_the_assistants_words_need_to_stand_as_they_are():
    loud = CHATML.replace("{{ m.content }}", "{{ m.content if m.role == 'assistant' else m.content | upper }}")
    assert found(tokenizer_of(loud, "<|im_end|>"), talk("a", "b", "c", "d")) == ["b<|im_end|>", "d<|im_end|>"]


def test_parts_of_text_are_told_apart_one_by_one():
    parts = CHATML.replace("{{ m.content }}", "{% for p in m.content %}({{ p.text }}){% endfor %}")
    turns = [*talk("a"), Message("assistant", [Part("text", "b"), Part("text", "c")])]
    assert found(tokenizer_of(parts, "<|im_end|>"), turns) == ["(b)(c)<|im_end|>"]


# --- What is kept
def test_rows_of_one_shape_are_rendered_once_each():
    tokenizer = styled("chatml")
    renderer = Renderer(tokenizer, assistant_only=True)
    renderer.render(Example(messages=talk("a", "b")))
    template = renderer._conversations._template(None)
    calls = []
    template.render = lambda *given: calls.append(given) or type(template).render(template, *given)
    for i in range(20):
        one = renderer.render(Example(messages=talk(f"question {i}", f"answer {i}")))
        assert one.text[one.spans[0].start : one.spans[0].end] == f"answer {i}<|im_end|>"
    assert len(calls) == 20


def test_a_kept_shape_that_a_row_does_not_fit_is_made_anew_for_it():
    shouts = CHATML.replace("{{ m.content }}", "{% if '!' in messages[0].content %}<|loud|>{% endif %}{{ m.content }}")
    tokenizer = tokenizer_of(shouts, "<|im_end|>", ("<|loud|>",))
    renderer = Renderer(tokenizer, assistant_only=True)
    for question, turn in [("a", "b<|im_end|>"), ("a!", "<|loud|>b<|im_end|>"), ("a", "b<|im_end|>")]:
        one = renderer.render(Example(messages=talk(question, "b")))
        assert [one.text[span.start : span.end] for span in one.spans] == [turn]


def test_what_is_kept_is_bounded_and_does_not_travel_to_workers():
    renderer = Renderer(styled("chatml"))
    before = pickle.dumps(renderer)
    for i in range(1100):
        renderer.render(Example(messages=talk(" " * i + "a", "b")))
    assert len(renderer._conversations._kept) <= 1024
    assert pickle.dumps(renderer) == before
    assert pickle.loads(before).render(Example(messages=talk("a", "b"))).text.endswith("b<|im_end|>\n")


def test_markers_and_derived_turns_agree():
    turns = talk("a", "b", "c", "d")
    assert found(tokenizer_of(CHATML_MARKED, "<|im_end|>"), turns) == found(styled("chatml"), turns)
