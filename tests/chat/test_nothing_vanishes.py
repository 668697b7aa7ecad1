"""What ends turns as stops, markers, parts that would vanish, and advice: small templates that show each."""

from __future__ import annotations

import pytest
from datasets import Dataset

from sftcore import Example, Message, Part, RowError, Span
from sftcore.chat.render import Renderer
from sftcore.chat.stops import align_stop
from tests.chat.test_faults import (
    APERTUS,
    APERTUS_TOKENS,
    GPT_OSS,
    GPT_OSS_TOKENS,
    call,
)
from tests.chat.test_spans import found, rendered, talk, tokenizer_of
from tests.conftest import CHATML, make_llama, make_tokenizer


# --- What ends a turn is a stop ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("template", "eos", "special", "stops"),
    [
        (GPT_OSS, "<|return|>", GPT_OSS_TOKENS, ["<|return|>", "<|call|>"]),
        (APERTUS, "<|assistant_end|>", APERTUS_TOKENS, ["<|assistant_end|>", "<|tools_suffix|>"]),
        (CHATML, "<|im_end|>", ("<|im_start|>",), ["<|im_end|>"]),
    ],
)
def test_generation_stops_at_what_ends_answers_and_calls_and_at_nothing_else(template, eos, special, stops):
    tokenizer = tokenizer_of(template, eos, special)
    model = make_llama(tokenizer)
    notes = align_stop(model, tokenizer, None, eos_is_chosen=False)
    assert model.generation_config.eos_token_id in (
        [tokenizer.convert_tokens_to_ids(token) for token in stops], tokenizer.convert_tokens_to_ids(stops[0]),
    )  # fmt: skip
    assert len(notes) == len(stops) - 1


def test_a_token_behind_which_the_model_goes_on_becomes_no_stop():
    template = (
        "{% for m in messages %}{% if m.reasoning_content %}<|start|>think:{{ m.reasoning_content }}<|end|>{% endif %}"
        "<|start|>{{ m.role }}:{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|start|>{% endif %}"
    )
    tokenizer = tokenizer_of(template, "</s>", ("<|start|>", "<|end|>"))
    model = make_llama(tokenizer)
    (note,) = align_stop(model, tokenizer, None, eos_is_chosen=False)
    assert note == 'generation does not stop at "<|end|>", though answers end with it: the model goes on behind it'
    assert tokenizer.eos_token == "</s>"


def test_the_stop_of_calls_is_the_header_of_a_tools_answer_where_only_that_ends_them():
    template = (
        "{% for m in messages %}{{ '<|observation|>' if m.role == 'tool' else '<|' ~ m.role ~ '|>' }}\n{{ m.content }}"
        "{% for c in m.tool_calls %}\n<tool_call>{{ c.function.name }}{{ c.function.arguments | tojson }}</tool_call>"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    tokenizer = tokenizer_of(template, "<|endoftext|>", ("<|user|>", "<|assistant|>", "<|observation|>"))
    tokenizer.add_tokens(["<tool_call>", "</tool_call>"])
    model = make_llama(tokenizer)
    align_stop(model, tokenizer, None, eos_is_chosen=False)
    stops = tokenizer.convert_ids_to_tokens(model.generation_config.eos_token_id)
    assert stops == ["<|user|>", "<|endoftext|>", "<|observation|>"]


# --- Markers ----------------------------------------------------------------------------------------------------------
def marked(body: str, behind: str = "") -> str:
    return (
        "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>{% generation %}" + body
        + "{% endgeneration %}" + behind + "{% else %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )  # fmt: skip


MARKED_TOKENS = ("<|user|>", "<|assistant|>", "<|end|>")


def test_markers_that_leave_the_end_out_get_it():
    """In the manner of LLaVA 1.5."""
    told = talk("a", "b", "c", "d")
    written = rendered(tokenizer_of(marked("{{ m.content }}", "<|end|>"), "</s>", MARKED_TOKENS), told)
    assert supervised_text(written) == "b<|end|>d<|end|>"
    assert rendered(tokenizer_of(marked("{{ m.content }}<|end|>"), "</s>", MARKED_TOKENS), told).spans
    nowhere = tokenizer_of(marked("{{ m.content }}").replace("<|end|>", " "), "</s>", ("<|user|>", "<|assistant|>"))
    assert supervised_text(rendered(nowhere, told)) == "b<|user|>d<|user|>"
    assert "stop token appended" in rendered(nowhere, told).notes[-1]


def test_markers_around_the_words_of_others_are_refused():
    template = marked("{{ messages[0].content }}{{ m.content }}<|end|>")
    with pytest.raises(RowError, match=r"generation markers enclose words of message 0 \(user\)"):
        rendered(tokenizer_of(template, "</s>", MARKED_TOKENS), talk("a", "b"))


def supervised_text(one) -> str:
    return "".join(one.text[span.start : span.end] for span in one.spans)


# --- Nothing vanishes -------------------------------------------------------------------------------------------------
CALLING = CHATML.replace(
    "{{ m.content }}",
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}",
)


TEXT = {"type": "text", "text": "b"}


def blocks(role: str, *parts: dict) -> Message:
    keys = ({key: value for key, value in one.items() if key not in ("type", "text")} for one in parts)
    return Message(role, [Part(one["type"], one.get("text"), extra) for one, extra in zip(parts, keys, strict=True)])


def test_blocks_of_anthropic_are_calls_results_and_reasoning():
    tokenizer = tokenizer_of(CALLING, "<|im_end|>", ("<|im_start|>",))
    turns = [
        Message("user", "time?"),
        blocks("assistant", {"type": "thinking", "thinking": "must look"}, {"type": "text", "text": "Let me see."},
               {"type": "tool_use", "id": "t1", "name": "now", "input": {"zone": "CET"}}),
        blocks("user", {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "9"}]},
               {"type": "text", "text": "and now?"}),
        Message("assistant", "nine"),
    ]  # fmt: skip
    one = rendered(tokenizer, turns)
    call_text = '<tool_call>{"name": "now", "arguments": {"zone": "CET"}}</tool_call>'
    assert supervised_text(one) == f"<think>must look</think>Let me see.{call_text}<|im_end|>nine<|im_end|>"
    assert "<|im_start|>tool\n9<|im_end|>\n<|im_start|>user\nand now?<|im_end|>" in one.text


def test_an_older_call_and_a_refusal_of_openai_are_read():
    tokenizer = tokenizer_of(CALLING, "<|im_end|>", ("<|im_start|>",))
    old = Message("assistant", None, extra={"function_call": {"name": "now", "arguments": '{"zone": "CET"}'}})
    printed = '<tool_call>{"name": "now", "arguments": {"zone": "CET"}}</tool_call><|im_end|>'
    assert found(tokenizer, [*talk("a"), old]) == [printed]
    assert found(tokenizer, [*talk("a"), Message("assistant", "", extra={"refusal": "No."})]) == ["No.<|im_end|>"]
    block = blocks("assistant", {"type": "refusal", "refusal": "No."})
    assert found(tokenizer, [*talk("a"), block]) == ["No.<|im_end|>"]


@pytest.mark.parametrize(
    ("turn", "named"),
    [
        (blocks("assistant", TEXT, {"type": "redacted_thinking", "data": "x"}), "redacted_think"),
        (Message("assistant", "b", extra={"audio": {"id": "1"}}), '"audio"'),
        (Message("assistant", "b", extra={"refusal": "No."}), '"refusal"'),
        (blocks("user", TEXT, {"type": "input_audio", "input_audio": {}}), '"input_audio"'),
        (blocks("user", TEXT, {"type": "chart", "data": "x"}), 'a part of type "chart"'),
    ],
)
def test_what_no_template_would_print_is_refused_by_name(turn, named):
    texts = "{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}"
    either = f"{{% if m.content is string %}}{{{{ m.content }}}}{{% else %}}{texts}{{% endif %}}"
    for template in (CALLING, CALLING.replace("{{ m.content }}", either)):
        tokenizer = tokenizer_of(template, "<|im_end|>", ("<|im_start|>",))
        with pytest.raises(RowError, match=named):
            rendered(tokenizer, [*talk("a"), turn, Message("assistant", "c")])


def test_a_template_that_reads_blocks_by_itself_gets_them():
    each = "{% if p.type == 'thinking' %}[{{ p.thinking }}]{% else %}{{ p.text }}{% endif %}"
    either = (
        "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
        + each
        + "{% endfor %}{% endif %}"
    )
    own = CHATML.replace("{{ m.content }}", either)
    thinks = blocks("assistant", {"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "b"})
    assert found(tokenizer_of(own, "<|im_end|>", ("<|im_start|>",)), [*talk("a"), thinks]) == ["[hm]b<|im_end|>"]


# --- Marks of other libraries for turns that are not to be trained
@pytest.mark.parametrize(
    ("key", "no", "yes"),
    [("loss", False, True), ("loss_mask", 0, 1), ("trainable", False, True), ("masked", True, False)],
)
def test_marks_of_other_libraries_for_single_turns_are_read(key, no, yes):
    tokenizer = tokenizer_of(CALLING, "<|im_end|>", ("<|im_start|>",))
    bad, good = Message("assistant", "BAD", extra={key: no}), Message("assistant", "GOOD", extra={key: yes})
    assert found(tokenizer, [*talk("a"), bad, *talk("b"), good]) == ["GOOD<|im_end|>"]
    plain = Message("assistant", "plain")
    assert found(tokenizer, [*talk("a"), bad, *talk("b"), plain]) == ["plain<|im_end|>"]
    chosen = Message("assistant", "GOOD", train=False, extra={key: yes})
    assert found(tokenizer, [*talk("a"), chosen, *talk("b"), plain]) == ["plain<|im_end|>"]
    with pytest.raises(RowError, match=f'message 1 has "{key}": "some".*"train"'):
        rendered(tokenizer, [*talk("a"), Message("assistant", "b", extra={key: "some"})])


def test_marks_on_the_parts_of_a_message_are_read_for_each_of_them():
    tokenizer = tokenizer_of(CALLING, "<|im_end|>", ("<|im_start|>",))

    def parts(first: bool, second: bool) -> Message:
        marked_parts = [Part("text", "BAD ", {"train": first}), Part("text", "STEP", {"train": second})]
        return Message("assistant", marked_parts)

    good = Message("assistant", "GOOD")
    assert found(tokenizer, [*talk("a"), parts(False, False), *talk("b"), good]) == ["GOOD<|im_end|>"]
    assert found(tokenizer, [*talk("a"), parts(True, True), *talk("b"), good]) == [
        "BAD STEP<|im_end|>",
        "GOOD<|im_end|>",
    ]
    assert found(tokenizer, [*talk("a"), parts(False, True), *talk("b"), good]) == [
        "STEP<|im_end|>",
        "GOOD<|im_end|>",
    ]


def test_calls_in_a_key_that_the_template_does_not_read_are_refused():
    tokenizer = tokenizer_of(CALLING, "<|im_end|>", ("<|im_start|>",))
    turn = Message("assistant", "Let me look.", extra={"function_calls": "f(x=1)"})
    with pytest.raises(RowError, match='message 1 has "function_calls", which the chat template does not render'):
        rendered(tokenizer, [*talk("a"), turn])
    reads = tokenizer_of(
        CALLING.replace("<|im_end|>", "{{ m.function_calls }}<|im_end|>"), "<|im_end|>", ("<|im_start|>",)
    )
    assert found(reads, [*talk("a"), turn]) == ["Let me look.f(x=1)<|im_end|>"]


# --- Advice -----------------------------------------------------------------------------------------------------------
def test_advice_on_calls_is_offered_where_it_helps():
    from tests.data.test_pipeline import preparation

    calling = {"role": "assistant", "content": "", "tool_calls": [call()]}
    rows = {
        "chat": {"messages": [{"role": "user", "content": "a"}, calling]},
        "sharegpt": {"conversations": [{"from": "human", "value": "a"},
                                       {"from": "function_call", "value": '{"name": "now", "arguments": {}}'}]},
    }  # fmt: skip
    said = {}
    for name, row in rows.items():
        with pytest.raises(RowError) as caught:
            preparation(make_tokenizer()).prepare(Dataset.from_list([row]), "train_dataset")
        said[name] = str(caught.value)
    assert "the chat template would leave the call out. Use a template that renders tool_calls." in said["chat"]
    assert "format:" not in said["chat"]
    assert said["sharegpt"].endswith("Or keep the calls as text: format: {sharegpt: {function_call: content}}.")


def test_a_token_that_takes_a_blank_along_is_not_noted_and_one_that_takes_a_letter_along_is():
    from sftcore.chat.render import Rendered
    from sftcore.data.tokenize import Tokenizer

    tokenizer = make_tokenizer()
    texts = [Rendered("say: hello", (Span(5, 10),), False), Rendered("say: hello", (Span(6, 10),), False)]
    assert Tokenizer(tokenizer).columns(texts)[1] == [False, True]


@pytest.mark.parametrize("kind", ["image_url", "image", "video"])
def test_a_part_that_only_a_template_for_images_prints_is_refused_where_nobody_reads_it(kind):
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}"
        "{% elif c.type in ['image', 'image_url', 'video'] %}<|pad|>{% endif %}{% endfor %}{% endif %}"
        "<|im_end|>\n{% endfor %}"
    )
    user = Message("user", [Part(kind, None, {kind: "a"}), Part("text", "Who?")])
    with pytest.raises(RowError, match=f'message 0 has a part of type "{kind}", but the format reads no'):
        Renderer(make_tokenizer(template=template)).render(Example(messages=[user, Message("assistant", "A word.")]))
