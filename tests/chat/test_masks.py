"""What is supervised, seen as a user would: the decoded labels."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftcore import DataError, Example, Message, RowError, Span
from sftcore.chat.render import Rendered, Renderer
from sftcore.data.tokenize import IGNORED, Tokenizer
from tests.conftest import CHATML, CHATML_MARKED, make_tokenizer

USER, ASSISTANT = Message("user", "say hello"), Message("assistant", "The answer")


def supervised(tokenizer, example: Example, **choice) -> str:
    rendered = Renderer(tokenizer, **choice).render(example)
    row = Tokenizer(tokenizer).columns([rendered])[0].row(0)
    return tokenizer.decode([label for label in row.labels if label != IGNORED])


def test_text_counts_whole_and_ends_with_one_eos(tokenizer):
    assert supervised(tokenizer, Example(text="hello")) == "hello<|im_end|>"
    assert supervised(tokenizer, Example(text="hello<|im_end|>")) == "hello<|im_end|>"


def test_a_tokenizer_that_appends_eos_itself_is_not_helped():
    from tokenizers import processors

    tokenizer = make_tokenizer()
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|im_end|>", special_tokens=[("<|im_end|>", 3)]
    )
    assert supervised(tokenizer, Example(text="hello")) == "hello<|im_end|>"


def test_bos_stands_once_before_text_and_never_in_a_completion():
    tokenizer = make_tokenizer(bos=True)
    row = (
        Tokenizer(tokenizer).columns([Renderer(tokenizer).render(Example(prompt="say", completion=" hello"))])[0].row(0)
    )
    assert list(row.input_ids).count(1) == 1
    assert row.input_ids[0] == 1
    assert row.labels[0] == IGNORED


def test_only_the_completion_of_a_text_counts(tokenizer):
    example = Example(prompt="say:", completion=" hello")
    assert supervised(tokenizer, example) == " hello<|im_end|>"
    assert supervised(tokenizer, example, completion_only=False) == "say: hello<|im_end|>"


def test_a_token_that_overlaps_the_edge_is_supervised(tokenizer):
    assert supervised(tokenizer, Example(prompt="say: ", completion="hello")) == " hello<|im_end|>"


def test_a_chat_completion_counts_from_the_generation_prompt_to_its_end_token(tokenizer):
    example = Example(prompt=[USER], completion=[ASSISTANT])
    assert supervised(tokenizer, example) == "The answer<|im_end|>"
    whole = "<|im_start|>user\nsay hello<|im_end|>\n<|im_start|>assistant\nThe answer<|im_end|>\n"
    assert supervised(tokenizer, example, completion_only=False) == whole


def test_a_prompt_that_ends_with_the_assistant_is_continued(tokenizer):
    template = CHATML.replace("<|im_end|>\n{% endfor %}", "{% if not loop.last %}<|im_end|>\n{% endif %}{% endfor %}")
    continued = make_tokenizer(template=template)
    example = Example(prompt=[USER, ASSISTANT], completion=[Message("user", "more")])
    assert supervised(continued, example).endswith("<|im_start|>user\nmore")


def test_marked_templates_give_the_assistants_turns():
    tokenizer = make_tokenizer(template=CHATML_MARKED)
    example = Example(messages=[USER, ASSISTANT, USER, Message("assistant", "hello")])
    assert supervised(tokenizer, example, assistant_only=True) == "The answer<|im_end|>hello<|im_end|>"
    assert supervised(tokenizer, example).count("say hello") == 2


def test_assistant_only_and_completion_only_together_give_what_both_mean():
    tokenizer = make_tokenizer(template=CHATML_MARKED)
    example = Example(prompt=[USER, ASSISTANT, USER], completion=[Message("assistant", "hello"), USER])
    assert supervised(tokenizer, example, assistant_only=True) == "hello<|im_end|>"


def test_templates_without_markers_give_the_same_turns_as_marked_ones(tokenizer):
    example = Example(messages=[USER, ASSISTANT, USER, Message("assistant", "hello")])
    marked = supervised(make_tokenizer(template=CHATML_MARKED), example, assistant_only=True)
    assert supervised(tokenizer, example, assistant_only=True) == marked == "The answer<|im_end|>hello<|im_end|>"


def test_settings_that_do_not_fit_the_rows_are_refused(tokenizer):
    with pytest.raises(DataError, match="needs rows with a prompt and a completion, but these rows hold messages"):
        supervised(tokenizer, Example(messages=[USER, ASSISTANT]), completion_only=True)
    with pytest.raises(DataError, match="needs conversations, but these rows are texts"):
        supervised(tokenizer, Example(text="x"), assistant_only=True)


def test_conversations_need_a_chat_template():
    with pytest.raises(DataError, match="the tokenizer has no chat template"):
        supervised(make_tokenizer(template=None), Example(messages=[USER, ASSISTANT]))


def test_a_template_that_renders_the_prompt_differently_is_refused():
    backwards = make_tokenizer(template="{% for m in messages | reverse %}{{ m.content }}{% endfor %}")
    with pytest.raises(RowError, match="renders the prompt differently when the completion follows"):
        supervised(backwards, Example(prompt=[USER], completion=[ASSISTANT]))


def test_what_the_template_itself_refuses_is_said_in_its_words():
    strict = make_tokenizer(template="{% if true %}\n{{ raise_exception('no system role here') }}{% endif %}")
    with pytest.raises(RowError, match=r"no system role here.*roles: user, assistant. See line 2 of the template"):
        supervised(strict, Example(messages=[USER, ASSISTANT]))


def test_tool_calls_that_the_template_would_swallow_are_refused(tokenizer):
    call = Message("assistant", "", tool_calls=[{"type": "function", "function": {"name": "now", "arguments": {}}}])
    with pytest.raises(RowError, match="the chat template would leave the call out"):
        supervised(tokenizer, Example(messages=[USER, call]))


def test_text_parts_are_joined_where_the_template_knows_plain_strings(tokenizer):
    from sftcore import Part

    parts = Message("assistant", [Part("text", "The "), Part("text", "answer")])
    assert supervised(tokenizer, Example(prompt=[USER], completion=[parts])) == "The answer<|im_end|>"
    with pytest.raises(RowError, match='message 1 has a part of type "image", which the chat template does not render'):
        supervised(tokenizer, Example(messages=[USER, Message("user", [Part("image")])]))


def test_strings_become_parts_where_the_template_would_leave_them_out():
    body = "{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}"
    tokenizer = make_tokenizer(template=CHATML.replace("{{ m.content }}", body))
    example = Example(messages=[USER, ASSISTANT])
    assert "say hello<|im_end|>" in supervised(tokenizer, example)
    assert supervised(tokenizer, example, assistant_only=True) == "The answer<|im_end|>"


def test_text_parts_stay_parts_where_the_template_reads_them():
    from sftcore import Part

    template = CHATML.replace("{{ m.content }}", "{% for p in m.content %}({{ p.text }}){% endfor %}")
    example = Example(messages=[Message("user", [Part("text", "hello"), Part("text", "world")])])
    assert "(hello)(world)<|im_end|>" in supervised(make_tokenizer(template=template), example)


def test_turns_are_singled_out_by_train_and_weight(tokenizer):
    def talk(**flags):
        return Example(messages=[USER, Message("assistant", "hello", **flags), USER, Message("assistant", "world")])

    assert supervised(tokenizer, talk(train=False)) == "world<|im_end|>"
    assert supervised(tokenizer, talk(weight=0.0), assistant_only=True) == "world<|im_end|>"
    assert supervised(tokenizer, talk(train=True)) == "hello<|im_end|>world<|im_end|>"
    marked = make_tokenizer(template=CHATML_MARKED)
    assert supervised(marked, talk(train=False), assistant_only=True) == "world<|im_end|>"


def test_a_weight_lies_on_the_tokens_of_its_turn(tokenizer):
    example = Example(messages=[USER, Message("assistant", "hello", weight=0.25), USER, Message("assistant", "world")])
    row = Tokenizer(tokenizer).columns([Renderer(tokenizer).render(example)])[0].row(0)
    by_weight = {
        weight: tokenizer.decode(
            [ids for ids, found in zip(row.input_ids, row.weights, strict=True) if found == weight]
        )
        for weight in (0.25, 1.0)
    }
    assert by_weight == {0.25: "hello<|im_end|>", 1.0: "world<|im_end|>"}
    assert all((weight > 0) == (label != IGNORED) for weight, label in zip(row.weights, row.labels, strict=True))


def test_only_assistant_turns_can_be_singled_out(tokenizer):
    with pytest.raises(RowError, match=r"message 0 \(user\) is marked for training, but only assistant turns can be"):
        supervised(tokenizer, Example(messages=[Message("user", "x", train=True), ASSISTANT]))


def test_all_tokens_of_one_character_go_together(tokenizer):
    text = "say 🎉!"
    row = Tokenizer(tokenizer).columns([Rendered(text, (Span(4, 5),), False)])[0].row(0)
    assert tokenizer.decode([label for label in row.labels if label != IGNORED]) == "🎉"
    assert sum(label != IGNORED for label in row.labels) > 1


@settings(max_examples=200, deadline=None)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), min_size=2, max_size=5),
    chosen=st.data(),
)
def test_tokens_are_supervised_exactly_where_they_overlap_the_span(tokenizer, texts, chosen):
    text = "".join(texts)
    start = chosen.draw(st.integers(0, len(text)))
    end = chosen.draw(st.integers(start, len(text)))
    row = Tokenizer(tokenizer).columns([Rendered(text, (Span(start, end),), False)])[0].row(0)
    # an independent route: Python-side offsets of a second call
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    for token, label, (left, right) in zip(encoded["input_ids"], row.labels, encoded["offset_mapping"], strict=True):
        overlaps = start < end and left < end and right > start and not (token in special and left < start)
        assert (label == token) == overlaps
        assert label in (token, IGNORED)
