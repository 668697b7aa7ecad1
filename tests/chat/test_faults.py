"""Small templates in the manner of real ones whose turns are easily told wrong, each with what is to be supervised."""

from __future__ import annotations

import json

import pytest

from sftcore import Message, RowError
from tests.chat.test_spans import found, rendered, talk, tokenizer_of
from tests.conftest import CHATML

TOOLS = [{"type": "function", "function": {"name": "now", "description": "the time", "parameters": {}}}]


def call(name: str = "now", number: int = 0, **arguments) -> dict:
    return {"id": f"call0000{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


def asks(*calls: dict, content: str | None = "", **more) -> Message:
    return Message("assistant", content, tool_calls=list(calls), **more)


def answers(content: str, number: int = 0) -> Message:
    return Message("tool", content, name="now", tool_call_id=f"call0000{number}")


# --- Where a turn ends ------------------------------------------------------------------------------------------------
COHERE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'tool' %}<|TURN|><|SYSTEM|><result>\n{{ m.content }}</result><|END_TURN|>"
    "{% elif m.tool_calls %}<|TURN|><|BOT|>Action:\n```json\n[{% for c in m.tool_calls %}"
    '{"tool_name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}'
    "{{ ',' if not loop.last }}{% endfor %}]```<|END_TURN|>"
    "{% else %}<|TURN|>{{ '<|BOT|>' if m.role == 'assistant' else '<|USER|>' }}{{ m.content }}<|END_TURN|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|TURN|><|BOT|>{% endif %}"
)
COHERE_TOKENS = ("<|TURN|>", "<|USER|>", "<|BOT|>", "<|SYSTEM|>")


def test_a_call_does_not_run_into_the_next_header():
    """In the manner of Command-R: the token that ends turns is no special one, that which opens them is."""
    tokenizer = tokenizer_of(COHERE, "</s>", COHERE_TOKENS)
    turns = [*talk("a"), asks(call(zone="CET")), answers("9"), Message("assistant", "nine"), *talk("b", "c")]
    action = 'Action:\n```json\n[{"tool_name": "now", "parameters": {"zone": "CET"}}]```<|END_TURN|>'
    assert found(tokenizer, turns, tools=TOOLS) == [action, "nine<|END_TURN|>", "c<|END_TURN|></s>"]
    assert "is not a token of the tokenizer" in " ".join(rendered(tokenizer, turns).notes)


@pytest.mark.parametrize(
    ("end", "words"), [("<|im_end|>", "<|im_end|>"), ("</s>", "</s>"), ("</s>", "<s>struck</s> through")]
)
def test_end_tokens_inside_arguments_end_nothing(end, words):
    template = CHATML.replace("<|im_end|>", end).replace(
        "{{ m.content }}",
        "{{ m.content }}{% for c in m.tool_calls %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}",
    )
    for eos in ("<|im_end|>", "</s>"):
        tokenizer = tokenizer_of(template, eos, ("<|im_start|>", "<|im_end|>", "</s>", "<tool_call>", "</tool_call>"))
        one = call(html=words, deep={"list": [words, 1, 2.5, None, True, f"{words}\n\"'"]}, number=0)
        turns = [*talk("a"), asks(one, call("then", at=words)), answers("9"), Message("assistant", words)]
        printed = "".join(f"<tool_call>{json.dumps(c['function'])}</tool_call>" for c in turns[1].tool_calls)
        assert found(tokenizer, turns) == [f"{printed}{end}", f"{words}{end}"]
        assert found(tokenizer, turns[:2]) == [f"{printed}{end}"]


OLD_CHATML = (
    "{% for m in messages %}{% if not loop.first %}<|im_end|>\n{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_end|>\n<|im_start|>assistant\n{% endif %}"
)


def test_an_end_that_is_written_with_the_next_header_belongs_to_the_turn_and_is_appended_to_the_last():
    tokenizer = tokenizer_of(OLD_CHATML, "</s>", ("<|im_start|>", "<|im_end|>"))
    one = rendered(tokenizer, talk("a", "b", "c", "d"))
    assert found(tokenizer, talk("a", "b", "c", "d")) == ["b<|im_end|>", "d<|im_end|>"]
    in_a_row = [*talk("a", "b"), Message("assistant", "x"), *talk("c", "")]
    assert found(tokenizer, in_a_row) == ["b<|im_end|>", "x<|im_end|>", "<|im_end|>"]
    assert one.notes == ("stop token appended, because the chat template ends the last turn without one",)


KIMI = (
    "{% for m in messages %}<|im_{{ m.role }}|>{{ m.role }}<|im_middle|>{{ m.content }}"
    "{% if m.tool_calls %}<|calls_begin|>{% for c in m.tool_calls %}<|call_begin|>{{ c.id }}<|call_arg|>"
    "{{ c.function.arguments | tojson }}<|call_end|>{% endfor %}<|calls_end|>{% endif %}"
    "{% if not loop.last %}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_end|><|im_assistant|>assistant<|im_middle|>{% endif %}"
)


def test_a_last_turn_of_calls_without_an_end_gets_one_and_that_is_said():
    special = ("<|im_user|>", "<|im_assistant|>", "<|im_tool|>", "<|im_middle|>", "<|im_end|>", "<|call_begin|>",
               "<|call_arg|>", "<|call_end|>", "<|calls_begin|>", "<|calls_end|>")  # fmt: skip
    tokenizer = tokenizer_of(KIMI, "[EOS]", special)
    turns = [*talk("a"), asks(call(zone="CET"), call(zone="UTC", number=1))]
    calls = "".join(f'<|call_begin|>call0000{i}<|call_arg|>{{"zone": "{zone}"}}<|call_end|>'
                    for i, zone in enumerate(("CET", "UTC")))  # fmt: skip
    printed = f"<|calls_begin|>{calls}<|calls_end|><|im_end|>"
    assert found(tokenizer, turns) == [printed]
    assert rendered(tokenizer, turns).notes == (
        "stop token appended, because the chat template ends the last turn without one",
    )
    more = [*turns, answers("9"), answers("8", 1), Message("assistant", "so"), *talk("b", "c")]
    assert found(tokenizer, more) == [printed, "so<|im_end|>", "c<|im_end|>"]


def test_a_template_whose_tokens_the_tokenizer_lacks_ends_every_turn_alike_and_that_is_said_once():
    foreign = CHATML.replace("im_start", "turn").replace("im_end", "turn_end")
    tokenizer = tokenizer_of(foreign)
    one = rendered(tokenizer, talk("a", "b", "c", "d", "e", "f"))
    assert found(tokenizer, talk("a", "b", "c", "d", "e", "f")) == [
        "b<|turn_end|>", "d<|turn_end|>", "f<|turn_end|>\n</s>",
    ]  # fmt: skip
    assert one.notes == (
        "what the chat template ends turns with is not a token of the tokenizer, but text",
        "stop token appended, because the chat template ends the last turn without one",
    )


def test_tokens_that_are_added_but_not_special_end_turns():
    tokenizer = tokenizer_of(CHATML.replace("im_start", "turn").replace("im_end", "turn_end"), "[EOS]", ())
    tokenizer.add_tokens(["<|turn|>", "<|turn_end|>"])
    one = rendered(tokenizer, talk("a", "b", "c", "d"))
    assert [one.text[span.start : span.end] for span in one.spans] == ["b<|turn_end|>", "d<|turn_end|>"]
    assert one.notes == ()


# --- Where a turn begins ----------------------------------------------------------------------------------------------
GEMMA4 = (
    "{{ bos_token }}{% for m in messages %}<|turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{% if m.reasoning_content and loop.last %}<|channel>thought\n{{ m.reasoning_content }}<channel|>{% endif %}"
    "{{ m.content }}<turn|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn>model\n{% if not think %}<|channel>thought\n<channel|>{% endif %}{% endif %}"
)
GEMMA4_TOKENS = ("<|turn>", "<turn|>", "<|channel>", "<channel|>")


def test_a_header_is_left_out_where_the_generation_prompt_holds_an_empty_thinking_channel():
    tokenizer = tokenizer_of(GEMMA4, "<eos>", GEMMA4_TOKENS)
    assert found(tokenizer, talk("a", "b", "c", "d")) == ["b<turn|>", "d<turn|>"]
    thinks = [*talk("a"), Message("assistant", "b", reasoning="why")]
    whole = "<|channel>thought\nwhy<channel|>b<turn|>"
    assert found(tokenizer, thinks) == [whole]
    assert found(tokenizer, thinks, template_kwargs={"think": True}) == [whole]


GPT_OSS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if m.thinking and loop.last %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>"
    "{% endif %}{% if m.tool_calls %}<|start|>assistant to={{ m.tool_calls[0].function.name }}<|channel|>commentary"
    "<|message|>{{ m.tool_calls[0].function.arguments | tojson }}<|call|>"
    "{% else %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{{ '<|return|>' if loop.last else '<|end|>' }}{% endif %}"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|channel|>final<|message|>{% endif %}"
)
GPT_OSS_TOKENS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>")


def test_a_generation_prompt_that_opens_the_final_channel_gives_what_an_answer_begins_with():
    tokenizer = tokenizer_of(GPT_OSS, "<|return|>", GPT_OSS_TOKENS)
    assert found(tokenizer, talk("a", "b", "c", "d")) == ["b<|end|>", "d<|return|>"]
    thought = found(tokenizer, [*talk("a"), Message("assistant", "b", reasoning="why")])
    ending = "analysis<|message|>why<|end|><|start|>assistant<|channel|>final<|message|>b<|return|>"
    # the prompt opens a channel, but another one
    assert thought in ([ending], [f"<|channel|>{ending}"])
    (turn,) = found(tokenizer, [*talk("a"), asks(call(zone="CET"))])
    assert turn == ' to=now<|channel|>commentary<|message|>{"zone": "CET"}<|call|>'


HERMES = (
    "{{ '<|im_start|>system\nTools: ' }}{% for t in tools %}{{ t.function.name | upper }}{% endfor %}"
    "{% if tools is none %}{{ raise_exception('needs tools') }}{% endif %}<|im_end|>\n"
    + CHATML.replace(
        "{{ m.content }}",
        "{{ m.content }}{% for c in m.tool_calls %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}",
    )
)


def test_a_template_that_fails_without_tools_is_tried_with_those_of_the_row():
    tokenizer = tokenizer_of(HERMES, "<|im_end|>", ("<|im_start|>",))
    turns = [*talk("a"), asks(call(zone="CET")), answers("9"), Message("assistant", "nine")]
    assert found(tokenizer, turns, tools=TOOLS) == [
        '<tool_call>{"name": "now", "arguments": {"zone": "CET"}}</tool_call><|im_end|>', "nine<|im_end|>",
    ]  # fmt: skip
    # nothing stands before the first answer with which its header could be compared
    begun = [Message("assistant", "hello"), *turns]
    assert found(tokenizer, begun, tools=TOOLS)[0] == "hello<|im_end|>"


APERTUS = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}<|user_start|>{{ m.content }}<|user_end|>"
    "{% elif m.role == 'tool' %}[{{ m.content }}]"
    "{% else %}{% if loop.first or loop.previtem.role != 'tool' %}<|assistant_start|>{% endif %}"
    "{{ m.content }}{% if m.tool_calls %}<|tools_prefix|>[{% for c in m.tool_calls %}"
    '{"{{ c.function.name }}": {{ c.function.arguments | tojson }}}'
    "{{ ', ' if not loop.last }}{% endfor %}]<|tools_suffix|>{% else %}<|assistant_end|>{% endif %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant_start|>{% endif %}"
)
APERTUS_TOKENS = ("<|user_start|>", "<|user_end|>", "<|assistant_start|>", "<|assistant_end|>", "<|tools_prefix|>",
                  "<|tools_suffix|>")  # fmt: skip


def test_the_token_that_opens_a_second_call_is_the_models_to_write():
    tokenizer = tokenizer_of(APERTUS, "<|assistant_end|>", APERTUS_TOKENS)
    turns = [*talk("a"), asks(call(zone="CET")), answers("9"), asks(call(zone="UTC")), answers("8"),
             Message("assistant", "so"), *talk("b", "c")]  # fmt: skip
    calls = [f'<|tools_prefix|>[{{"now": {{"zone": "{zone}"}}}}]<|tools_suffix|>' for zone in ("CET", "UTC")]
    assert found(tokenizer, turns) == [*calls, "so<|assistant_end|>", "c<|assistant_end|>"]


@pytest.mark.parametrize("user", ["a", ""])
def test_a_marker_that_opens_the_response_is_the_models_to_write_where_the_prompt_opens_another(user):
    """In the manner of Command-R7B, whose prompt opens the thinking."""
    template = (
        "{{ bos_token }}{% for m in messages %}<|TURN|>{% if m.role == 'assistant' %}<|BOT|>"
        "{% if m.tool_calls %}<|ACTION|>{{ m.tool_calls | tojson }}<|/ACTION|>"
        "{% else %}<|RESPONSE|>{{ m.content }}<|/RESPONSE|>{% endif %}"
        "{% else %}<|USER|>{{ m.content }}{% endif %}<|END|>{% endfor %}"
        "{% if add_generation_prompt %}<|TURN|><|BOT|><|THINK|>{% endif %}"
    )
    special = ("<|TURN|>", "<|USER|>", "<|BOT|>", "<|ACTION|>", "<|/ACTION|>", "<|RESPONSE|>", "<|/RESPONSE|>",
               "<|THINK|>")  # fmt: skip
    tokenizer = tokenizer_of(template, "<|END|>", special)
    assert found(tokenizer, talk(user, "b", "c", "d")) == [f"<|RESPONSE|>{x}<|/RESPONSE|><|END|>" for x in "bd"]
    asked = found(tokenizer, [*talk(user), asks(call(zone="CET")), answers("9"), Message("assistant", "so")])
    assert asked == [
        f"<|ACTION|>{json.dumps([call(zone='CET')])}<|/ACTION|><|END|>", "<|RESPONSE|>so<|/RESPONSE|><|END|>",
    ]  # fmt: skip


def test_a_think_tag_behind_a_plain_text_header_is_the_models_to_write():
    """Without a generation prompt to compare with."""
    template = (
        "{% for m in messages %}### {{ 'Response' if m.role == 'assistant' else 'Instruction' }}:\n"
        "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n{% endif %}{{ m.content }}"
        "{{ eos_token if m.role == 'assistant' }}\n\n{% endfor %}"
    )
    tokenizer = tokenizer_of(template, "</s>")
    tokenizer.add_tokens(["<think>", "</think>"])
    assert found(tokenizer, [*talk("a"), Message("assistant", "b", reasoning="why"), *talk("c", "d")]) == [
        "<think>\nwhy\n</think>\nb</s>", "d</s>",
    ]  # fmt: skip


DEEPSEEK = (
    "{{ bos_token }}{% set ns = namespace(tool=false, first=true, called=false) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set ns.tool = false %}<｜User｜>{{ m.content }}"
    "{% elif m.role == 'tool' %}{% set ns.tool = true %}{{ '<｜outputs▁begin｜>' if ns.first }}"
    "{% set ns.first = false %}<｜output▁begin｜>{{ m.content }}<｜output▁end｜>"
    "{% elif m.tool_calls %}{{ '<｜outputs▁end｜>' if ns.tool and twice }}{% set ns.tool = false %}"
    "{% for c in m.tool_calls %}{{ '<｜Assistant｜><｜calls▁begin｜>' if not ns.called else '\n' }}"
    "{% set ns.called = true %}<｜call▁begin｜>{{ c.function.name }}\n{{ c.function.arguments | tojson }}<｜call▁end｜>"
    "{% endfor %}<｜calls▁end｜>{{ eos_token }}"
    "{% elif ns.tool %}<｜outputs▁end｜>{{ m.content }}{{ eos_token }}{% set ns.tool = false %}"
    "{% else %}<｜Assistant｜>{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if ns.tool %}<｜outputs▁end｜>{% endif %}"
    "{% if add_generation_prompt and not ns.tool %}<｜Assistant｜><think>\n{% endif %}"
)
DEEPSEEK_TOKENS = ("<｜User｜>", "<｜Assistant｜>")


def test_the_end_of_a_tools_output_is_given_in_a_second_round_too():
    tokenizer = tokenizer_of(DEEPSEEK, "<｜end｜>", DEEPSEEK_TOKENS)
    tokenizer.add_tokens([f"<｜{one}｜>" for one in ("outputs▁begin", "outputs▁end", "output▁begin", "output▁end",
                                                   "calls▁begin", "calls▁end", "call▁begin", "call▁end")])  # fmt: skip
    turns = [*talk("a"), asks(call(zone="CET")), answers("9"), asks(call(zone="UTC")), answers("8"),
             Message("assistant", "so"), *talk("b", "c")]  # fmt: skip
    first = '<｜calls▁begin｜><｜call▁begin｜>now\n{"zone": "CET"}<｜call▁end｜><｜calls▁end｜><｜end｜>'
    second = '\n<｜call▁begin｜>now\n{"zone": "UTC"}<｜call▁end｜><｜calls▁end｜><｜end｜>'
    assert found(tokenizer, turns) == [first, second, "so<｜end｜>", "c<｜end｜>"]
    assert found(tokenizer, turns, template_kwargs={"twice": True}) == [first, second, "so<｜end｜>", "c<｜end｜>"]


# --- What stands in between -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("printed", ["c.function.arguments", "c"])
def test_arguments_come_out_as_json_where_the_template_prints_them_as_they_are(printed):
    template = CHATML.replace("{{ m.content }}", "{{ m.content }}{% for c in m.tool_calls %}<|tool_call|>"
                              "{{ c.function.name }}{{ " + printed + " }}<|/tool_call|>{% endfor %}")  # fmt: skip
    tokenizer = tokenizer_of(template, "<|im_end|>", ("<|im_start|>", "<|tool_call|>", "<|/tool_call|>"))
    turns = [*talk("a"), asks(call(zone="CET", note="it's")), answers("9"), Message("assistant", "so")]
    if printed == "c":
        with pytest.raises(RowError, match="as Python shows them"):
            found(tokenizer, turns)
        return
    assert found(tokenizer, turns)[0] == '<|tool_call|>now{"zone": "CET", "note": "it\'s"}<|/tool_call|><|im_end|>'


def test_calls_come_out_as_json_where_the_template_prints_all_of_them_at_once():
    template = CHATML.replace(
        "{{ m.content }}", "{{ m.content }}{% if m.tool_calls %}<|tool_call|>{{ m.tool_calls }}{% endif %}"
    )
    tokenizer = tokenizer_of(template, "<|im_end|>", ("<|im_start|>", "<|tool_call|>"))
    turns = [*talk("a"), asks(call(zone="CET"), call(zone="it's", number=1)), answers("9"), Message("assistant", "so")]
    printed = json.dumps([call(zone="CET"), call(zone="it's", number=1)])
    assert found(tokenizer, turns) == [f"<|tool_call|>{printed}<|im_end|>", "so<|im_end|>"]


def test_answers_within_a_turn_are_never_supervised_even_where_two_calls_have_the_same_id():
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n{{ m.content }}"
        "{% for c in m.tool_calls %}<call>{{ c.function | tojson }}</call>"
        "{% for t in messages if t.role == 'tool' and t.tool_call_id == c.id %}<result>{{ t.content }}</result>"
        "{% endfor %}{% endfor %}<|im_end|>\n"
        "{% elif m.role != 'tool' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = tokenizer_of(template, "<|im_end|>", ("<|im_start|>",))
    turns = [*talk("a"), asks(call(zone="CET")), answers("9"), Message("assistant", "so")]
    printed = '<call>{"name": "now", "arguments": {"zone": "CET"}}</call>'
    assert found(tokenizer, turns) == [printed, "so<|im_end|>"]
    again = [*talk("a"), asks(call(zone="CET"), call(zone="UTC")), answers("9"), Message("assistant", "so")]
    with pytest.raises(RowError, match="where its turn ends cannot be told"):
        found(tokenizer, again)


@pytest.mark.parametrize("before", [(), ("a", "b")])
def test_an_empty_users_turn_before_a_call_changes_nothing(before):
    tokenizer = tokenizer_of(GPT_OSS, "<|return|>", GPT_OSS_TOKENS)
    turns = [*talk(*before, ""), asks(call(zone="CET")), answers("9"), Message("assistant", "so")]
    printed = [' to=now<|channel|>commentary<|message|>{"zone": "CET"}<|call|>', "so<|return|>"]
    assert found(tokenizer, turns) == [*(["b<|end|>"] if before else []), *printed]


FALCON = (
    "{% for m in messages %}{{ 'Falcon: ' if m.role == 'assistant' else 'User: ' }}"
    "{{ m.content | trim | replace('\r\n', '\n') | replace('\n\n', '\n') }}\n{% endfor %}"
    "{% if add_generation_prompt %}Falcon:{% endif %}"
)


def test_users_words_that_a_template_rewrites_are_not_taken_for_the_end_of_the_turn_before_them():
    tokenizer = tokenizer_of(FALCON, "<|endoftext|>")
    turns = talk("Falcon: ", "<|endoftext|>", "<|endoftext|>\n\nbb", "Falcon:")
    assert [turn.rstrip("\n") for turn in found(tokenizer, turns)] == [" <|endoftext|>", " Falcon:\n<|endoftext|>"]


def test_a_template_that_rewrites_the_users_words_leaves_them_out_of_the_turns():
    """In the manner of Falcon."""
    tokenizer = tokenizer_of(FALCON, "<|endoftext|>")
    turns = talk("a\n\nFalcon: b\n\nUser: c", "d", "e\n\n</s>\n\nf", "g")
    assert found(tokenizer, turns) == [" d\n", " g\n<|endoftext|>"]
    with pytest.raises(RowError, match="rewrites the messages' text"):
        found(tokenizer, talk("a", "b\n\nc"))


@pytest.mark.parametrize("answer", ["", "  ", "\n\n"])
def test_answers_of_white_space_end_as_others_do_in_a_row_too(answer):
    tokenizer = tokenizer_of(OLD_CHATML, "</s>", ("<|im_start|>", "<|im_end|>"))
    turns = [*talk("a", "b"), Message("assistant", answer), *talk("c", answer)]
    assert found(tokenizer, turns) == ["b<|im_end|>", f"{answer}<|im_end|>", f"{answer}<|im_end|>"]
