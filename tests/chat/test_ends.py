"""Turns whose ends are easily told wrong: calls without words in their arguments, and answers without words."""

from __future__ import annotations

import itertools
import json

import pytest

from sftcore import Example, Message, RowError
from sftcore.chat.render import Renderer
from sftcore.chat.template import ChatTemplate
from tests.chat.test_faults import TOOLS, answers, asks, call
from tests.chat.test_spans import found, talk, tokenizer_of

ARGUMENTS = [{}, {"all": True}, {"n": ""}, {"n": None}, {"deep": [{}, []]}, {"zone": "CET"}, {"n": 3}]

# --- Calls whose name stands behind them as well ----------------------------------------------------------------------
NAMED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ ' name=' + m.name if m.name }}\n"
    "{{ m.reasoning_content if m.reasoning_content and loop.last }}{{ m.content or '' }}"
    "{% for c in m.tool_calls %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HARMONY = (
    "{% set ns = namespace(name='') %}{% for m in messages %}{% if m.role == 'assistant' %}<|start|>assistant"
    "{% if m.thinking and loop.last %}<|channel|>analysis<|message|>{{ m.thinking }}<|end|><|start|>assistant"
    "{% endif %}{% if m.tool_calls %}{% set ns.name = m.tool_calls[0].function.name %} to={{ ns.name }}"
    "<|channel|>commentary<|message|>{{ m.tool_calls[0].function.arguments | tojson }}<|call|>"
    "{% else %}<|channel|>final<|message|>{{ m.content }}{{ '<|return|>' if loop.last else '<|end|>' }}{% endif %}"
    "{% elif m.role == 'tool' %}<|start|>{{ ns.name }} to=assistant<|message|>{{ m.content }}<|end|>"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
HARMONY_TOKENS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>")
CONTINUED = (
    "{{ bos_token }}{% set ns = namespace(before='') %}{% for m in messages %}{% if m.role != 'tool' %}"
    "{% set mine = m.role == 'assistant' %}{% if not (mine and ns.before == 'assistant') %}"
    "<|turn>{{ 'model' if mine else m.role }}\n{% endif %}"
    "{% for c in m.tool_calls %}<|tool_call>call:{{ c.function.name }}{{ c.function.arguments | tojson }}<tool_call|>"
    "{% endfor %}{% set answered = m.tool_calls and not loop.last and loop.nextitem.role == 'tool' %}"
    "{% if answered %}<|tool_response>response:{{ m.tool_calls[0].function.name }}:{{ loop.nextitem.content }}"
    "<tool_response|>{% endif %}{{ m.content }}"
    "{% if m.tool_calls and not answered %}<|tool_response>{% elif not answered or m.content %}<turn|>\n{% endif %}"
    "{% set ns.before = m.role %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt and messages[-1].role == 'user' %}<|turn>model\n{% endif %}"
)
CONTINUED_TOKENS = ("<|turn>", "<turn|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>")


@pytest.mark.parametrize("reasoning", [None, "why"])
@pytest.mark.parametrize("given", ARGUMENTS)
def test_a_call_reaches_to_its_end_where_the_answer_of_the_tool_names_it_again(given, reasoning):
    one = call(**given)
    turns = [*talk("a"), asks(one, reasoning=reasoning), answers("9"), Message("assistant", "so", reasoning=reasoning)]
    turns += [*talk("b"), asks(one), answers(""), Message("assistant", "c", reasoning=reasoning)]
    printed = json.dumps(given)
    by_name = f'<tool_call>{{"name": "now", "arguments": {printed}}}</tool_call><|im_end|>'
    tokenizer = tokenizer_of(NAMED, "<|im_end|>", ("<|im_start|>",))
    last = f"{reasoning or ''}c<|im_end|>"
    assert found(tokenizer, turns) == [by_name, "so<|im_end|>", by_name, last]
    called = f" to=now<|channel|>commentary<|message|>{printed}<|call|>"
    thought = f"<|channel|>analysis<|message|>{reasoning}<|end|><|start|>assistant" if reasoning else ""
    tokenizer = tokenizer_of(HARMONY, "<|return|>", HARMONY_TOKENS)
    final = "<|channel|>final<|message|>"
    assert found(tokenizer, turns) == [called, f"{final}so<|end|>", called, f"{thought}{final}c<|return|>"]
    assert found(tokenizer, turns[:3]) == [called]
    tokenizer = tokenizer_of(CONTINUED, "<eos>", CONTINUED_TOKENS)
    called = f"<|tool_call>call:now{printed}<tool_call|><|tool_response>"
    assert found(tokenizer, turns) == [called, "so<turn|>", called, "c<turn|>"]


@pytest.mark.parametrize("content", ["", "e"])
@pytest.mark.parametrize("given", ARGUMENTS)
def test_a_last_call_ends_where_the_model_waits_for_the_tool(given, content):
    tokenizer = tokenizer_of(CONTINUED, "<eos>", CONTINUED_TOKENS)
    called = f"<|tool_call>call:now{json.dumps(given)}<tool_call|>"
    assert found(tokenizer, [*talk("a"), asks(call(**given), content=content)]) == [
        f"{called}{content}<|tool_response>"
    ]


@pytest.mark.parametrize("given", ARGUMENTS)
def test_a_call_that_names_its_tool_twice_reaches_to_its_end(given):
    template = NAMED.replace(
        "{{ c.function | tojson }}</tool_call>", "<{{ c.function.name }}>{{ c.function.arguments | tojson }}"
        "</{{ c.function.name }}></tool_call>"
    )  # fmt: skip
    tokenizer = tokenizer_of(template, "<|im_end|>", ("<|im_start|>",))
    turns = [*talk("a"), asks(call(**given), call("then", **given)), answers("9"), answers("8"), *talk("b", "c")[1:]]
    printed = "".join(f"<tool_call><{name}>{json.dumps(given)}</{name}></tool_call>" for name in ("now", "then"))
    assert found(tokenizer, turns) == [f"{printed}<|im_end|>", "c<|im_end|>"]
    assert found(tokenizer, turns[:2]) == [f"{printed}<|im_end|>"]


@pytest.mark.parametrize("given", ARGUMENTS)
@pytest.mark.parametrize("shown", ["call {{ messages | length }}", "{{ m.tool_calls[0].id }}"])
def test_a_name_that_stands_in_the_answer_alone_is_not_taken_for_the_call(given, shown):
    """Where nothing else of the call can be found, the row is refused; its turn never reaches into the tool's."""
    template = HARMONY.replace(" to={{ ns.name }}", f" to={shown}")
    tokenizer = tokenizer_of(template, "<|return|>", HARMONY_TOKENS)
    turns = [*talk("a"), asks(call(**given)), answers("9"), Message("assistant", "so")]
    if given in ({"zone": "CET"}, {"n": 3}) or ".id" in shown:
        named = "call00000" if ".id" in shown else "call 4"
        called = f" to={named}<|channel|>commentary<|message|>{json.dumps(given)}<|call|>"
        assert found(tokenizer, turns) == [called, "<|channel|>final<|message|>so<|return|>"]
    else:
        with pytest.raises(RowError, match="cannot be located"):
            found(tokenizer, turns)


def test_a_last_call_ends_as_others_do_where_the_answer_alone_names_it():
    """In the manner of GLM 4: the token of the next header ends a turn."""
    template = (
        "{% set ns = namespace(name='') %}{% for m in messages %}<|{{ m.role }}|>\n"
        "{% if m.role == 'tool' %}{{ ns.name }}: {% endif %}{{ m.content }}{% for c in m.tool_calls %}"
        "{% set ns.name = c.function.name %}<tool_call>{{ c.id }}\n{{ c.function.arguments | tojson }}</tool_call>"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    tokenizer = tokenizer_of(template, "</s>", ("<|user|>", "<|assistant|>", "<|tool|>"))
    for given in ARGUMENTS:
        called = f"<tool_call>call00000\n{json.dumps(given)}</tool_call><|tool|>"
        turns = [*talk("a", "b", "c"), asks(call(**given)), answers("9"), Message("assistant", "so")]
        assert found(tokenizer, turns[:4]) == ["b<|user|>", called]
        assert found(tokenizer, turns) == ["b<|user|>", called, "so<|user|>"]


@pytest.mark.parametrize(
    ("template", "eos", "special"),
    [
        (NAMED, "<|im_end|>", ("<|im_start|>",)),
        (HARMONY, "<|return|>", HARMONY_TOKENS),
        (CONTINUED, "<eos>", CONTINUED_TOKENS),
    ],
)
def test_further_calls_and_empty_answers_cost_no_further_renderings(template, eos, special, monkeypatch):
    """Two for a row of another shape: as it is, and with its words and calls hidden."""
    renderer = Renderer(tokenizer_of(template, eos, special), assistant_only=True)
    made = []
    plain = ChatTemplate.render
    monkeypatch.setattr(ChatTemplate, "render", lambda *given: made.append(given) or plain(*given))
    for answered in (["9", "", "8"], ["9", "", "8", "", "9"], ["", "9"]):
        made.clear()
        rounds = itertools.chain(*([asks(call(n=None)), answers(words)] for words in answered))
        renderer.render(Example(messages=[*talk("a"), *rounds, *talk("", "so", "", "")[1:]]))
    assert len(made) == 2


# --- Messages without words -------------------------------------------------------------------------------------------
MISTRAL = (
    "{% set asked = messages | selectattr('role', 'equalto', 'user') | list %}"
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
    "{% if tools and m == asked[-1] %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "[INST] {{ system + '\n\n' if loop.last and system }}{{ m.content }}[/INST]"
    "{% elif m.tool_calls %}[TOOL_CALLS] {{ m.tool_calls | tojson }}{{ eos_token }}"
    "{% elif m.role == 'tool' %}[TOOL_RESULTS] {\"content\": {{ m.content }}}[/TOOL_RESULTS]"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content | trim + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_TOKENS = ("[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
                  "[/TOOL_RESULTS]")  # fmt: skip


@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("user", ["", " ", "\n"])
@pytest.mark.parametrize("answer", ["x", "", " ", "\n\n"])
def test_an_empty_turn_of_the_user_stays_outside_where_only_the_last_one_lists_the_tools(user, answer, tools):
    """In the manner of Mistral v3, which has no generation prompt."""
    tokenizer = tokenizer_of(MISTRAL, "</s>", MISTRAL_TOKENS)
    said = f" {answer.strip()}</s>"
    calls = [asks(call(zone="CET")), answers("9"), Message("assistant", "so")]
    called = f"[TOOL_CALLS] {json.dumps(calls[0].tool_calls)}</s>"
    for turns, expected in (
        (talk(user, answer), [said]),
        (talk(user, answer, "z", "w"), [said, " w</s>"]),
        (talk("z", "w", user, answer), [" w</s>", said]),
        (talk("b", "c", user, answer, "z", "w"), [" c</s>", said, " w</s>"]),
        ([*talk(user), Message("assistant", "b"), Message("assistant", answer)], [" b</s>", said]),
        ([Message("system", "s"), *talk(user, answer)], [said]),
        ([Message("system", "s"), *talk(user, answer, "z", "w")], [said, " w</s>"]),
        ([*talk(user), *calls, *talk("z", answer)], [called, " so</s>", said]),
        ([*talk("z"), calls[0], answers(user), *talk("", answer)[1:], *talk(user, "w")], [called, said, " w</s>"]),
    ):  # fmt: skip
        assert found(tokenizer, turns, tools=tools) == expected


THINKING = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and m.reasoning_content and loop.index0 > ns.last %}<think>\n{{ m.reasoning_content }}"
    "\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GLM = (
    "[gMASK]<sop>{% for m in messages %}{% if m.role == 'user' %}<|user|>\n{{ m.content }}{% else %}<|assistant|>\n"
    "<think></think>\n{{ m.content.strip() }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.parametrize("tags", ["<think>", "</think>", "<think>\n\n</think>\n\n", "<think>\nhm\n</think>\n\n"])
@pytest.mark.parametrize("reasoning", [None, "why"])
def test_an_answer_of_thinking_tags_alone_keeps_its_end(tags, reasoning):
    tokenizer = tokenizer_of(THINKING, "<|im_end|>", ("<|im_start|>",))
    tokenizer.add_tokens(["<think>", "</think>"])
    answered = [*talk("a"), Message("assistant", tags, reasoning=reasoning)]
    thought = f"<think>\n{reasoning}\n</think>\n\n" if reasoning else ""
    assert found(tokenizer, answered) == [f"{thought}{tags}<|im_end|>"]
    assert found(tokenizer, [*answered, *talk("b", "c")]) == [f"{tags}<|im_end|>", "c<|im_end|>"]
    tokenizer = tokenizer_of(GLM, "<|endoftext|>", ("<|user|>", "<|assistant|>", "[gMASK]", "<sop>"))
    tokenizer.add_tokens(["<think>", "</think>"])
    given = "\n<think></think>\n"
    assert found(tokenizer, answered) == [f"{given}{tags.strip()}<|user|>"]
    assert found(tokenizer, [*answered, *talk("b", "c")]) == [f"{given}{tags.strip()}<|user|>", f"{given}c<|user|>"]


@pytest.mark.parametrize("answer", ["b", "", " ", "\n", "b\n\n", "\n\nUser: b"])
def test_white_space_that_alone_ends_turns_belongs_to_each_of_them(answer):
    """In the manner of RWKV: the last turn has it before the token that is appended."""
    template = (
        "{% for m in messages %}{{ 'Assistant' if m.role == 'assistant' else m.role | title }}: {{ m.content }}\n\n"
        "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
    )
    tokenizer = tokenizer_of(template, "<|endoftext|>")
    assert found(tokenizer, talk("a", answer)) == [f" {answer}\n\n<|endoftext|>"]
    for turns in (
        talk("a", answer, "", "d"),
        [*talk("a", answer), Message("assistant", "d")],
        talk("a", answer, "c", "d"),
    ):
        assert found(tokenizer, turns) == [f" {answer}\n\n", " d\n\n<|endoftext|>"]


# --- What was refused without need ------------------------------------------------------------------------------------
DEFAULT_SYSTEM = (
    "{{ bos_token }}{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a careful assistant.<|im_end|>\n"
    "{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("first", ["x", "", "You are a careful assistant.", "<|im_start|>assistant\n"])
def test_a_conversation_may_begin_with_the_assistant(first):
    tokenizer = tokenizer_of(DEFAULT_SYSTEM, "<|im_end|>", ("<|im_start|>",))
    turns = [Message("assistant", first), *talk("a", "b")]
    assert found(tokenizer, turns) == [f"{first}<|im_end|>", "b<|im_end|>"]
    assert found(tokenizer, turns[:1]) == [f"{first}<|im_end|>"]
    assert found(tokenizer, [turns[0], *turns]) == [f"{first}<|im_end|>"] * 2 + ["b<|im_end|>"]


@pytest.mark.parametrize("opener", ["", "<|ready|>"])
def test_a_first_answer_begins_behind_its_header_where_nothing_else_tells_it(opener):
    """The end comes with the next header, and the prompt may open more than that."""
    template = (
        "{% if messages[0].role != 'system' %}You are careful.{% set before = true %}{% endif %}"
        "{% for m in messages %}{{ eos_token if not loop.first or before }}### {{ m.role }}:\n{{ m.content }}"
        "{% endfor %}{% if add_generation_prompt %}{{ eos_token }}" + opener + "### assistant:\n{% endif %}"
    )
    tokenizer = tokenizer_of(template, "</s>", ("<|ready|>",))
    turns = [Message("assistant", "x"), *talk("a", "b")]
    assert found(tokenizer, turns) == ["x</s>", "b</s>"]


def test_a_first_answer_that_the_template_writes_into_the_users_turn_is_refused():
    """In the manner of Llama 3.1, which puts the tools before what it takes to be the user's first words."""
    template = DEFAULT_SYSTEM.replace(
        "<|im_start|>{{ m.role }}\n", "<|im_start|>{{ 'user' if loop.first else m.role }}\n"
    )
    tokenizer = tokenizer_of(template, "<|im_end|>", ("<|im_start|>",))
    with pytest.raises(RowError, match="where its turn begins cannot be told"):
        found(tokenizer, [Message("assistant", "x"), *talk("a", "b")])


@pytest.mark.parametrize("words", ["", "nine"])
def test_an_empty_thought_in_an_answer_is_supervised_unless_the_prompt_gives_it(words):
    """In the manner of EXAONE 4, whose last turn has one of its own."""
    thought = "<think>\n\n</think>\n\n"
    template = (
        "{% for m in messages %}[|{{ m.role }}|]\n{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n"
        "{% endif %}{{ m.content }}[|endofturn|]\n{% endfor %}"
        "{% if add_generation_prompt %}[|assistant|]\n<think>\n\n</think>\n\n{% endif %}"
    )
    tokenizer = tokenizer_of(template, "[|endofturn|]", ("[|user|]", "[|assistant|]"))
    tokenizer.add_tokens(["<think>", "</think>"])
    turns = talk("a", thought + words, "b", thought + words)
    assert found(tokenizer, turns) == [f"{words}[|endofturn|]", f"{thought}{words}[|endofturn|]"]


KIMI_IDS = (
    "{% for m in messages %}<|im_{{ m.role }}|>{{ m.role }}<|im_middle|>"
    "{% if m.role == 'tool' %}## Return of {{ m.tool_call_id }}\n{% endif %}{{ m.content }}"
    "{% if m.tool_calls %}<|calls_begin|>{% for c in m.tool_calls %}<|call_begin|>{{ c.id }}<|call_arg|>"
    "{{ c.function.arguments | tojson }}<|call_end|>{% endfor %}<|calls_end|>{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif %}"
)


@pytest.mark.parametrize("content", ["", "e"])
@pytest.mark.parametrize("given", ARGUMENTS)
def test_a_call_is_located_by_its_id_where_nothing_else_of_it_has_words(given, content):
    """In the manner of Kimi K2, whose ids hold the names, so that it prints none."""
    special = ("<|im_user|>", "<|im_assistant|>", "<|im_tool|>", "<|im_middle|>", "<|im_end|>")
    tokenizer = tokenizer_of(KIMI_IDS, "[EOS]", special)
    tokenizer.add_tokens(["<|calls_begin|>", "<|call_begin|>", "<|call_arg|>", "<|call_end|>", "<|calls_end|>"])
    ids = [f"functions.now:{i}" for i in range(3)]
    calls = [{**call(**given), "id": one} for one in ids]
    results = [Message("tool", str(i), name="now", tool_call_id=one) for i, one in enumerate(ids)]
    printed = [f"<|call_begin|>{one}<|call_arg|>{json.dumps(given)}<|call_end|>" for one in ids]
    both = f"{content}<|calls_begin|>{printed[0]}{printed[1]}<|calls_end|><|im_end|>"
    third = f"{content}<|calls_begin|>{printed[2]}<|calls_end|><|im_end|>"
    turns = [*talk("a"), asks(*calls[:2], content=content), *results[:2], asks(calls[2], content=content), results[2]]
    assert found(tokenizer, [*turns, Message("assistant", "so")]) == [both, third, "so<|im_end|>"]
    assert found(tokenizer, turns[:2]) == [both]
    # the same id twice
    again = asks(calls[0], calls[0], content=content)
    assert found(tokenizer, [*talk("a"), again, results[0], results[0], *talk("b", "c")]) == [
        f"{content}<|calls_begin|>{printed[0]}{printed[0]}<|calls_end|><|im_end|>", "c<|im_end|>",
    ]  # fmt: skip


def test_a_call_of_which_nothing_is_written_is_refused():
    template = KIMI_IDS.replace("{{ c.id }}", "")
    tokenizer = tokenizer_of(template, "[EOS]", ("<|im_user|>", "<|im_assistant|>", "<|im_middle|>", "<|im_end|>"))
    with pytest.raises(RowError, match='its call of "now"'):
        found(tokenizer, [*talk("a"), asks(call())])


def test_what_was_learned_from_other_white_space_around_the_words_is_not_used():
    """In the manner of Blenderbot, whose turns are told by white space alone."""
    template = (
        "{% for m in messages %}{{ ' ' if m.role == 'user' }}{{ m.content }}{{ '  ' if not loop.last }}{% endfor %}"
        "{{ eos_token }}"
    )
    tokenizer = tokenizer_of(template, "</s>", ())
    rows = [talk(f"{one}a{two}", f"{three}b{four}", "c", "d")
            for one, two, three, four in itertools.product(("", " "), repeat=4)]  # fmt: skip
    rows += [talk("a", *one) for one in itertools.product(("", " ", "b", " b", "b "), ("", " ", "c"), ("", " ", "d "))]
    alone = [found(tokenizer, turns) for turns in rows]
    for order in (rows, rows[::-1]):
        renderer = Renderer(tokenizer, assistant_only=True)
        together = [renderer.render(Example(messages=turns)) for turns in order]
        texts = [[one.text[span.start : span.end] for span in one.spans] for one in together]
        assert texts == (alone if order is rows else alone[::-1])
