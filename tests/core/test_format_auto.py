"""`format: auto`: one yes wins, two are an error, and a broken format is passed over aloud."""

from __future__ import annotations

import warnings

import attrs
import pytest

from sftcore.core.errors import ConflictError, DataError
from sftcore.data.format import choose_format


@pytest.fixture
def choose(set_up):
    """The name and distribution of the format that a run takes for these columns."""

    def choose_for(*columns: str, **keys) -> tuple[str, str]:
        setup = set_up(**keys)
        chosen = choose_format(setup, columns, "rows.jsonl")
        return chosen.entry.name, chosen.entry.distribution

    return choose_for


def test_one_format_that_detects_the_columns_is_taken_without_a_word(choose):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose("messages", "id") == ("chat", "sftcore")


def test_a_third_partys_format_is_asked_like_a_built_in_one(install, choose):
    install("sftcore-alpaca-zh")
    assert choose("问题", "回答") == ("alpaca-zh", "sftcore-alpaca-zh")


def test_two_formats_that_detect_are_an_error_that_names_both(install, choose):
    install("acme-chat")
    with pytest.raises(ConflictError) as error:
        choose("messages")
    text = str(error.value)
    assert text.startswith('rows.jsonl: 2 formats recognise the columns "messages"')
    assert "chat@sftcore" in text
    assert "chat@acme-chat" in text


def test_the_choice_that_a_clash_of_two_formats_proposes_resolves_it(install, choose):
    install("acme-chat")
    with pytest.raises(ConflictError) as error:
        choose("messages")
    proposed = error.value.fix.rpartition("format: ")[2]
    assert choose("messages", format=proposed)[0] == "chat"


@pytest.mark.parametrize(
    ("distribution", "label", "cause"),
    [
        ("acme-broken", 'format "broken@acme-broken"', "libacme.so.3"),
        ("acme-undecorated", 'format "undecorated@acme-undecorated"', "not a plugin class"),
        ("acme-misspelled", 'format "misspelled@acme-misspelled"', "make_formater"),
        ("acme-stray", 'format "stray@acme-stray"', "tokenizer"),
        ("acme-raising", 'format "raising@acme-raising"', "ZeroDivisionError: acme divided by zero"),
    ],
)
def test_a_broken_format_is_passed_over_with_a_warning_that_names_it(install, choose, distribution, label, cause):
    install(distribution)
    with pytest.warns(UserWarning, match="is broken and ignored: ") as caught:
        assert choose("messages") == ("chat", "sftcore")
    (text,) = [str(one.message) for one in caught]
    assert text.startswith(label)
    assert text.count(label) == 1
    assert cause in text
    assert len(text) < 240


def test_a_format_whose_library_is_missing_is_named_with_what_installs_it(set_up):
    setup = set_up()
    entries = [
        attrs.evolve(one, missing=("pillow>=10",)) if one.name == "vlm" else one for one in setup.catalog.entries
    ]
    catalog = attrs.evolve(setup.catalog, entries=tuple(entries))
    with pytest.raises(
        DataError, match=r'Not tried, because a library is missing: vlm \(pip install "sftcore\[vlm\]"\)'
    ):
        choose_format(attrs.evolve(setup, catalog=catalog), ("messages", "images"), "rows.json")


def test_a_named_format_spares_the_others_from_being_asked(install, choose):
    install("acme-broken", "acme-chat")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose("messages", format="chat@sftcore") == ("chat", "sftcore")


def test_columns_that_no_format_detects_are_refused_with_a_mapping_that_would_do(choose):
    with pytest.raises(DataError) as error:
        choose("question", "answer")
    text = str(error.value)
    assert text.startswith('rows.jsonl: no installed format recognises the columns "question", "answer".')
    assert "format: {prompt-completion: {prompt: question, completion: answer}}" in text


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (("prompt", "compleetion"), "format: {prompt-completion: {prompt: prompt, completion: compleetion}}"),
        (("promt", "completoin"), "format: {prompt-completion: {prompt: promt, completion: completoin}}"),
        (("Question", "anwser"), "format: {prompt-completion: {prompt: Question, completion: anwser}}"),
        (("id", "mesages"), "format: {chat: {messages: mesages}}"),
        (
            ("prompt", "completoin", "answer_id"),
            "format: {prompt-completion: {prompt: prompt, completion: completoin}}",
        ),
    ],
)
def test_columns_that_are_misspelt_are_offered_as_they_are_spelt(choose, columns, line):
    with pytest.raises(DataError) as error:
        choose(*columns)
    assert line in str(error.value)


@pytest.mark.parametrize(
    "columns",
    [
        ("prompt", "complexity"), ("question", "annotation"), ("message_id", "tags"), ("prompt", "response_id"),
        ("question", "choices", "answerKey"), ("question_id", "answer"), ("problem", "resolution"), ("human", "boat"),
        ("resource", "target"), ("user", "assistance"), ("prompt", "answers"), ("path", "ext"), ("file", "message"),
        ("response", "contents_of"), ("prompt", "responseA", "responseB"), ("introduction", "answer"),
    ],
)  # fmt: skip
def test_columns_of_another_meaning_are_not_taken_for_misspelt_ones(choose, columns):
    with pytest.raises(DataError) as error:
        choose(*columns)
    assert "format: {" not in str(error.value)


@pytest.mark.parametrize("answers", ["response_0 response_1 better_response_id", "answer_a answer_b winner"])
def test_answers_of_preference_data_are_not_taken_for_misspelt_ones(choose, answers):
    with pytest.raises(DataError, match="preference data") as error:
        choose("prompt", *answers.split())
    assert "instruction:" not in str(error.value)
    assert "completion:" not in str(error.value)
