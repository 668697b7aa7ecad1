"""Generation markers of chat templates: what they may enclose, what they must not, and what they may leave out."""

from __future__ import annotations

import pytest

from sftcore import Example, Message, RowError
from sftcore.chat.render import Renderer
from tests.chat.test_faults import call
from tests.chat.test_spans import found, rendered, talk, tokenizer_of

HEADER = "<|im_start|>assistant\n"
OTHERS = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
CALLS = "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}"
TOKENS = ("<|im_start|>",)


def chatml(answer: str, *, others: str = OTHERS, before: str = "", header: str = HEADER) -> str:
    """ChatML with « and » in place of `{% generation %}` and `{% endgeneration %}`."""
    source = (
        before + "{% for m in messages %}{% if m.role == 'assistant' %}" + answer + "{% else %}" + others
        + "{% endif %}{% endfor %}{% if add_generation_prompt %}" + header + "{% endif %}"
    )  # fmt: skip
    source = source.replace("\n", "{{ '\\n' }}")  # line breaks behind tags are taken away
    return source.replace("«", "{% generation %}").replace("»", "{% endgeneration %}")


def of(template: str):
    return tokenizer_of(template, "<|im_end|>", TOKENS)


CALLING = [
    Message("user", "time?"),
    Message("assistant", "Wait.", tool_calls=[call(zone="CET")]),
    Message("tool", "nine", name="now", tool_call_id=call()["id"]),
    Message("assistant", "It is nine."),
]
SPOKEN = '<call>{"name": "now", "arguments": {"zone": "CET"}}</call>'


# --- What the assistant does not write
@pytest.mark.parametrize(
    "words",
    ["{{ m.content }}", "{{ m.content | upper }}", "{{ m.content | replace('e', 'o') }}", "{{ m.content[:3] }}",
     "{{ m.content[1:3] }}", "{{ m.content | length }} letters", "{{ m.content | trim | reverse }}"],
)  # fmt: skip
@pytest.mark.parametrize("content", ["secret", "", " e e "])
@pytest.mark.parametrize("answer", ["{{ m.content }}", "{{ m.content | upper }}"])
def test_markers_around_the_users_words_are_refused_whatever_the_template_makes_of_them(words, content, answer):
    others = f"<|im_start|>{{{{ m.role }}}}\n«{words}<|im_end|>»\n"
    with pytest.raises(RowError, match=r"generation markers enclose .*lines? 1.* of the template"):
        rendered(of(chatml(f"{HEADER}«{answer}<|im_end|>»\n", others=others)), talk(content, "answer"))


@pytest.mark.parametrize("words", ["{{ m.content }}", "{{ m.content | upper }}", "{{ m.content[:3] }}"])
@pytest.mark.parametrize("answer", ["{{ m.content }}", "{{ m.content | upper }}"])
def test_markers_around_a_tools_words_are_refused_whatever_the_template_makes_of_them(words, answer):
    marked = f"{{% if m.role == 'tool' %}}«{words}<|im_end|>»{{% else %}}{{{{ m.content }}}}<|im_end|>{{% endif %}}"
    template = chatml(f"{HEADER}«{answer}{CALLS}<|im_end|>»\n", others=f"<|im_start|>{{{{ m.role }}}}\n{marked}\n")
    with pytest.raises(RowError, match="generation markers enclose"):
        rendered(of(template), CALLING)


@pytest.mark.parametrize(
    "template",
    [
        chatml(f"{HEADER}«{{{{ m.content }}}}<|im_end|>»\n", before="«<|im_start|>system\nBe kind.<|im_end|>\n»"),
        chatml(f"{HEADER}«{{{{ m.content }}}}<|im_end|>»\n", before="<|im_start|>system\n«Be kind.»<|im_end|>\n"),
        chatml(f"{HEADER}«{{{{ m.content | upper }}}}<|im_end|>»\n",
               before="<|im_start|>system\n«Be kind.»<|im_end|>\n"),
        chatml(f"{HEADER}«{{{{ m.content }}}}<|im_end|>»\n",
               others="<|im_start|>{{ m.role }}\n«Question: »{{ m.content }}<|im_end|>\n"),
        chatml(f"{HEADER}«{{{{ m.content }}}}<|im_end|>»\n", others="«<|im_start|>user\n»{{ m.content }}<|im_end|>\n"),
        chatml(f"{HEADER}«{{{{ m.content }}}}<|im_end|>»\n", others="<|im_start|>user\n{{ m.content }}«<|im_end|>»\n"),
        chatml(f"{HEADER}«{{{{ m.content }}}}<|im_end|>»\n", before="«{{ tools | tojson }}»"),
        chatml(f"{HEADER}«{{{{ m.content | upper }}}}<|im_end|>»\n", before="«{{ tools | tojson }}»"),
    ],
    ids=["default system turn", "default system words", "the same, rewritten", "prefix of a question", "user's header",
         "user's end", "tools", "tools, rewritten"],
)  # fmt: skip
def test_what_the_template_itself_writes_for_others_is_refused_within_markers(template):
    tools = [{"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {}}}]
    with pytest.raises(RowError, match="generation markers enclose"):
        rendered(of(template), talk("a", "b", "c", "d"), tools=tools)


@pytest.mark.parametrize("words", ["{{ m.content }}", "{{ m.content | upper }}"])
@pytest.mark.parametrize("due", ["not loop.last", "true"])
@pytest.mark.parametrize("outside", ["", "user\n"])
def test_markers_that_reach_into_the_next_header_are_refused(words, due, outside):
    """The header is written for the next user alone, or behind the last answer, too."""
    others = "{% if loop.first %}<|im_start|>user\n{% endif %}{{ m.content }}<|im_end|>\n"
    inside = "<|im_start|>user\n".removesuffix(outside)
    end = f"<|im_end|>\n{{% if {due} %}}{inside}{{% endif %}}»{{% if {due} %}}{outside}{{% endif %}}"
    with pytest.raises(RowError, match="generation markers enclose"):
        rendered(of(chatml(f"{HEADER}«{words}{end}", others=others)), talk("a", "b", "c", "d", "e", "f"))


def test_markers_that_begin_with_the_end_of_the_users_turn_are_refused():
    others = "<|im_start|>{{ m.role }}\n{{ m.content }}"
    for header in (f"«<|im_end|>\n{HEADER}", f"«\n<|im_end|>\n{HEADER}"):
        template = chatml(header + "{{ m.content }}<|im_end|>»\n", others=others, header=header[1:])
        with pytest.raises(RowError, match="generation markers enclose"):
            rendered(of(template), talk("a", "b", "c", "d"))


# --- What the assistant writes
@pytest.mark.parametrize(
    ("answer", "turns", "what"),
    [
        (HEADER + "{{ m.content[:1] }}«{{ m.content[1:] }}<|im_end|>»\n", talk("a", "hello"), "words"),
        (HEADER + "«{{ m.content[:1] }}»{{ m.content[1:] }}«<|im_end|>»\n", talk("a", "hello"), "words"),
        (HEADER + "{{ m.content[:1] | upper }}«{{ m.content[1:] }}<|im_end|>»\n", talk("a", "hello"), "words"),
        (HEADER + "«{{ m.content[:2] | upper }}»{{ m.content[2:] }}<|im_end|>\n", talk("a", "hello"), "words"),
        (HEADER + "{{ m.content }}«<|im_end|>»\n", talk("a", "hello"), "words"),
        (HEADER + "{{ m.content }}<|im_end|>«»\n", talk("a", "hello"), "words"),
        (HEADER + "{{ m.reasoning_content }}«{{ m.content }}<|im_end|>»\n",
         [*talk("a"), Message("assistant", "b", reasoning="hm")], "words"),
        (HEADER + "«{{ m.content }}»" + CALLS + "<|im_end|>\n", CALLING, "words"),
        (HEADER + "{{ m.content }}«" + CALLS + "<|im_end|>»\n", CALLING, "words"),
        (HEADER + "<answer>«{{ m.content }}</answer><|im_end|>»\n", talk("a", "hello"), "'<answer>'"),
        (HEADER + "«{{ m.reasoning_content }}»\n---\n«{{ m.content }}<|im_end|>»\n",
         [*talk("a"), Message("assistant", "b", reasoning="hm")], "'.n---.n'"),
    ],
)  # fmt: skip
def test_markers_that_leave_out_a_part_of_what_the_assistant_writes_are_refused(answer, turns, what):
    with pytest.raises(RowError, match=rf"generation markers leave out {what}.*lines? 1.* of the template"):
        rendered(of(chatml(answer)), turns)


@pytest.mark.parametrize(
    ("answer", "turns", "expected"),
    [
        (HEADER + "«{{ m.content }}»<|im_end|>\n", talk("a", "b", "c", "d"), ["b", "<|im_end|>", "d", "<|im_end|>"]),
        (HEADER + "«{{ m.content }}»\n<|im_end|>\n", talk("a", "b"), ["b", "\n<|im_end|>"]),
        (HEADER + "«{{ m.content }}" + CALLS + "»<|im_end|>\n", CALLING,
         [f"Wait.{SPOKEN}", "<|im_end|>", "It is nine.", "<|im_end|>"]),
        (HEADER + "«{{ m.content }}»<|im_end|>\n", talk("a", "", "c", "d"), ["<|im_end|>", "d", "<|im_end|>"]),
        (HEADER + "«{{ m.content }}" + CALLS + "»<|im_end|>\n",
         [CALLING[0], Message("assistant", "", tool_calls=[call()])],
         ['<call>{"name": "now", "arguments": {}}</call>', "<|im_end|>"]),
    ],
)  # fmt: skip
def test_the_end_of_a_turn_that_markers_leave_out_is_supervised_all_the_same(answer, turns, expected):
    tokenizer = make_own(chatml(answer))
    assert found(tokenizer, turns) == expected


def make_own(template: str):
    """A tokenizer that knows what closes a call as a token of its own."""
    from tests.conftest import make_tokenizer

    tokenizer = make_tokenizer(template=template)
    tokenizer.add_tokens(["<call>", "</call>"])
    return tokenizer


# --- What is right
@pytest.mark.parametrize(
    ("answer", "expected", "note"),
    [
        (HEADER + "«{{ m.content }}<|im_end|>»\n", ["b<|im_end|>", "d<|im_end|>"], ""),
        (HEADER + "«{{ m.content }}<|im_end|>\n»", ["b<|im_end|>\n", "d<|im_end|>\n"], ""),
        (HEADER + "«{{ m.content | upper }}<|im_end|>\n»", ["B<|im_end|>\n", "D<|im_end|>\n"], ""),
        (HEADER.rstrip() + "«\n{{ m.content }}<|im_end|>»\n", ["\nb<|im_end|>", "\nd<|im_end|>"], ""),
        ("«" + HEADER + "{{ m.content }}<|im_end|>»\n",
         ["<|im_start|>assistant\nb<|im_end|>", "<|im_start|>assistant\nd<|im_end|>"], "what stands before"),
        (HEADER + "{% if loop.last %}«{{ m.content }}<|im_end|>»{% else %}{{ m.content }}<|im_end|>{% endif %}\n",
         ["d<|im_end|>"], "leave out whole turns"),
        (HEADER + "«{{ m.content }}<|im_end|>{{ '<|endoftext|>' if loop.last }}»\n",
         ["b<|im_end|>", "d<|im_end|><|endoftext|>"], ""),
    ],
    ids=["plain", "line break", "rewritten", "header's line break", "header", "last", "behind the last"],
)  # fmt: skip
def test_markers_decide_where_they_are_right(answer, expected, note):
    tokenizer = tokenizer_of(chatml(answer), "<|im_end|>", ("<|im_start|>", "<|endoftext|>"))
    one = rendered(tokenizer, talk("a", "b", "c", "d"))
    assert [one.text[span.start : span.end] for span in one.spans] == expected
    assert [note for said in one.notes if "markers" in said and note in said] == ([note] if note else [])


@pytest.mark.parametrize("words", ["{{ m.content | upper }}", "{{ m.content | replace('e', 'o') }}", "{{ m.content }}"])
def test_right_markers_are_read_where_the_template_rewrites_the_words_of_others(words):
    others = f"<|im_start|>{{{{ m.role }}}}\n{words}<|im_end|>\n"
    tokenizer = of(chatml(f"{HEADER}«{{{{ m.content }}}}{CALLS}<|im_end|>»\n", others=others))
    assert found(tokenizer, talk("seven", "b", "", "d")) == ["b<|im_end|>", "d<|im_end|>"]
    assert found(tokenizer, CALLING) == [f"Wait.{SPOKEN}<|im_end|>", "It is nine.<|im_end|>"]


def test_right_markers_are_read_where_the_template_rewrites_all_words():
    body = "{{ m.content | upper }}"
    template = chatml(f"{HEADER}«{body}{CALLS}<|im_end|>»\n", others=OTHERS.replace("{{ m.content }}", body))
    assert found(of(template), CALLING) == [f"WAIT.{SPOKEN}<|im_end|>", "IT IS NINE.<|im_end|>"]
    assert found(of(template), talk("seven", "", "c", "d")) == ["<|im_end|>", "D<|im_end|>"]


# --- What was learned of other rows
def test_markers_that_depend_on_the_words_are_proven_for_each_row():
    """Two conversations of one shape, whose texts are rebuilt alike, but whose markers are not."""
    secret = "{% if 'secret' in m.content %}«{{ m.content }}»{% else %}{{ m.content }}{% endif %}"
    others = f"<|im_start|>{{{{ m.role }}}}\n{secret}<|im_end|>\n"
    renderer = Renderer(of(chatml(f"{HEADER}«{{{{ m.content }}}}<|im_end|>»\n", others=others)), assistant_only=True)
    one = renderer.render(Example(messages=talk("open", "b")))
    assert [one.text[span.start : span.end] for span in one.spans] == ["b<|im_end|>"]
    with pytest.raises(RowError, match="generation markers enclose"):
        renderer.render(Example(messages=talk("secret", "b")))
    half = "{% if 'half' in m.content %}{{ m.content[:1] }}«{{ m.content[1:] }}<|im_end|>»{% else %}«" + (
        "{{ m.content }}<|im_end|>»{% endif %}"
    )
    renderer = Renderer(of(chatml(f"{HEADER}{half}\n")), assistant_only=True)
    assert renderer.render(Example(messages=talk("a", "whole"))).spans
    with pytest.raises(RowError, match="generation markers leave out words"):
        renderer.render(Example(messages=talk("a", "half")))


def test_markers_are_read_alike_behind_a_row_whose_turns_are_singled_out():
    template = chatml(HEADER + "«{{ m.content }}»<|im_end|>\n")
    renderer = Renderer(of(template), assistant_only=True)
    chosen = [Message("user", "a"), Message("assistant", "b", train=True)]
    assert renderer.render(Example(messages=chosen)).spans
    one = renderer.render(Example(messages=talk("a", "b")))
    assert "".join(one.text[span.start : span.end] for span in one.spans) == "b<|im_end|>"


@pytest.mark.parametrize(
    "shown", ["{# as TRL: « and » #}", "{{ '«' if not messages }}", "{% raw %}{% endraw %}{{ '{#' * 0 }}"]
)
def test_markers_that_are_only_mentioned_in_the_template_are_none(shown):
    assert found(of(chatml(shown + HEADER + "{{ m.content }}<|im_end|>\n")), talk("a", "b")) == ["b<|im_end|>"]


def test_markers_behind_what_looks_like_a_comment_are_read():
    template = chatml("{{ '{#' * 0 }}" + HEADER + "«{{ m.content }}<|im_end|>\n»")
    assert found(of(template), talk("a", "b")) == ["b<|im_end|>\n"]


# --- All places of markers, with an oracle that knows who writes which piece of a template
ANSWER = [HEADER, "{{ m.reasoning_content }}", "{{ m.content }}", CALLS, "<|im_end|>", "\n"]
REQUEST = ["<|im_start|>{{ m.role }}\n", "{{ m.content }}", "<|im_end|>", "\n"]
SAID = [["hm", "Wait.", SPOKEN], ["", "It is nine.", ""], ["", "", ""]]
"""The reasoning, words and calls of the assistant's messages below."""
TALK = [
    Message("user", "Time?"), Message("assistant", "Wait.", reasoning="hm", tool_calls=[call(zone="CET")]),
    Message("tool", "nine", name="now", tool_call_id=call()["id"]), Message("assistant", "It is nine."),
    Message("user", ""), Message("assistant", ""),
]  # fmt: skip


def places(pieces: list[str]) -> list[tuple[int, int]]:
    return [(i, j) for i in range(len(pieces)) for j in range(i + 1, len(pieces) + 1)]


def with_markers(pieces: list[str], place: tuple[int, int] | None) -> str:
    if place is None:
        return "".join(pieces)
    return "".join([*pieces[: place[0]], "«", *pieces[place[0] : place[1]], "»", *pieces[place[1] :]])


def oracle(answer: tuple[int, int], request: tuple[int, int] | None, *, rewritten: bool) -> list[str] | None:
    """What is supervised in each of the assistant's messages, or None if the row is to be refused."""
    if request is not None and request != (3, 4):  # a line break alone is nobody's word
        return None
    supervised = []
    for words in SAID:
        pieces = [HEADER, *words, "<|im_end|>", "\n"]
        inside = pieces[answer[0] : answer[1]]
        left_out = "".join([*pieces[1 : max(answer[0], 1)], *pieces[max(answer[1], 1) : 4]])
        if left_out or (answer[1] < 5 and rewritten) or answer[0] > 4 or answer[1] == 1:
            return None
        supervised.append("".join(inside) + ("<|im_end|>" if answer[1] < 5 else ""))
    return supervised


@pytest.mark.parametrize("words", ["{{ m.content }}", "{{ m.content | upper }}", "{{ m.content[1:3] }}"])
@pytest.mark.parametrize("spoken", ["{{ m.content }}", "{{ m.content | upper }}"])
def test_markers_at_every_place_are_right_or_refused(words, spoken):
    tokenizer = make_own(None)
    answers = [piece.replace("{{ m.content }}", spoken) for piece in ANSWER]
    requests = [piece.replace("{{ m.content }}", words) for piece in REQUEST]
    for answer in places(ANSWER):
        for request in [None, *(places(REQUEST) if answer in ((1, 5), (1, 6), (0, 5), (1, 4)) else ())]:
            tokenizer.chat_template = chatml(with_markers(answers, answer), others=with_markers(requests, request))
            expected = oracle(answer, request, rewritten="upper" in spoken)
            if expected is None:
                with pytest.raises(RowError, match="generation markers"):
                    found(tokenizer, TALK)
                continue
            supervised = "".join(found(tokenizer, TALK))
            assert "".join(supervised.upper().split()) == "".join("".join(expected).upper().split()), (answer, request)
