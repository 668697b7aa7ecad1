"""Masks on every chat template that the installed trl package ships, and the page that says what comes out."""

from __future__ import annotations

import re
from functools import lru_cache

import pytest
import transformers
from packaging.version import Version

from sftcore import Example
from sftcore.chat.render import Renderer
from sftcore.core.types import IGNORED
from sftcore.data.tokenize import Tokenizer
from tests.chat import trl_templates as trl

STOCK, TRAINING = trl.names(training=False), trl.names(training=True)


def test_the_installed_trl_ships_what_these_tests_are_about():
    assert len(STOCK) >= 30
    assert len(TRAINING) >= 20


def supervised_ids(name: str, example: Example, **choice) -> tuple[list[int], list[int]]:
    """The row's token ids, and 1 for those that are supervised."""
    tokenizer = trl.tokenizer_of(name)
    row = Tokenizer(tokenizer).columns([Renderer(tokenizer, **choice).render(example)])[0].row(0)
    return list(row.input_ids), [int(label != IGNORED) for label in row.labels]


def first_tokens(offsets: list[tuple[int, int]]) -> list[int]:
    """The tokens to compare: transformers before 5.24 marks the first token alone of a stretch's last character."""
    if Version(transformers.__version__) >= Version("5.24"):
        return list(range(len(offsets)))
    return [i for i, place in enumerate(offsets) if i == 0 or place != offsets[i - 1]]


LEFT_OUT = {"diffusion_gemma_training": "<|tool_response>"}
"""What ends a call, and is left out by the markers of these templates: it is supervised all the same."""


# --- Training variants, read through their markers
@pytest.mark.parametrize("name", TRAINING)
def test_masks_are_those_of_transformers_token_for_token(name):
    """Where apply_chat_template takes the conversation as it is, ids and mask are its own, but for an end left out."""
    name, compared = f"{name}_training", 0
    tokenizer = trl.tokenizer_of(name)
    for kind in trl.TALKS:
        turns, tools = trl.talk(kind, name), trl.tools_of(kind)
        for parts in (False, True):
            try:
                theirs = tokenizer.apply_chat_template(
                    [trl.as_mapping(turn, parts) for turn in turns],
                    tools=tools,
                    return_dict=True,
                    return_assistant_tokens_mask=True,
                )
            except Exception:
                continue
            text = tokenizer.decode(theirs["input_ids"])
            if all(word in text for word in trl.words_of(turns)):
                break
        else:
            continue
        ids, mask = supervised_ids(name, Example(messages=turns, tools=tools), assistant_only=True)
        assert ids == theirs["input_ids"], kind
        starts = first_tokens(theirs.encodings[0].offsets)
        expected = list(theirs["assistant_masks"])
        end = tokenizer.convert_tokens_to_ids(LEFT_OUT[name]) if name in LEFT_OUT else None
        for i in range(1, len(ids)):
            expected[i] |= int(ids[i] == end and expected[i - 1])
        assert [mask[i] for i in starts] == [expected[i] for i in starts], kind
        assert any(mask), kind
        compared += 1
    assert compared >= 8


# --- Stock templates, whose turns are derived
@pytest.mark.parametrize("name", STOCK)
def test_turns_hold_the_assistants_words_in_full_and_nobody_elses(name):
    accepted = 0
    for kind in trl.TALKS:
        found = trl.outcome(name, kind)
        if isinstance(found, str):
            continue
        accepted += 1
        turns = [found.text[span.start : span.end] for span in found.spans]
        said = "".join(turns)
        at = 0
        # a template may print calls before the words of the same message
        words = trl.words_of(trl.talk(kind, name))
        for word in words if kind != "call with words" else sorted(words, key=said.find):
            at = said.index(word, at) + len(word)
        if kind != "special tokens":
            heard = {turn.content for turn in trl.talk(kind, name) if turn.role != "assistant"}
            assert not [word for word in heard if len(word) > 4 and word in said], kind
        assert turns[-1].rstrip().endswith(tuple(ends(name))), kind
    assert accepted >= 9


@lru_cache
def ends(name: str) -> list[str]:
    return [token.content for token in trl.tokenizer_of(name).added_tokens_decoder.values()]


@pytest.mark.parametrize("name", STOCK)
def test_a_completion_is_the_last_turn(name):
    compared = 0
    for kind in trl.TALKS:
        turns, tools = trl.talk(kind, name), trl.tools_of(kind)
        if (
            isinstance(whole := trl.outcome(name, kind), str)
            or Renderer(trl.tokenizer_of(name), assistant_only=True)._conversations._template(tools).marker_lines
        ):
            continue
        example = Example(prompt=turns[:-1], completion=turns[-1:], tools=tools)
        found = Renderer(trl.tokenizer_of(name)).render(example)
        (span,), last = found.spans, max(whole.spans, key=lambda one: one.start)
        assert found.text == whole.text
        assert span.end == last.end, kind
        # what the template itself would not prompt is the model's to write
        assert found.text[span.start : last.start] in ("", "<|turn>model\n"), kind
        assert trl.render(name, turns, kind, mask_style="trl").text == whole.text
        compared += 1
    assert compared >= 9 or name.startswith("lfm2_2_5")


@pytest.mark.parametrize("name", STOCK)
def test_mask_style_trl_is_all_that_follows_the_prompts_ids(name):
    """TRL's rule for completions, by its own route: the prompt is tokenised apart, what exceeds it is supervised."""
    tokenizer, compared = trl.tokenizer_of(name), 0
    for kind in ("one turn", "many turns", "unicode", "think tags", "edge white space"):
        turns = trl.talk(kind, name)
        for parts in (False, True):
            try:
                said = [trl.as_mapping(turn, parts) for turn in turns]
                prompt = tokenizer.apply_chat_template(said[:-1], add_generation_prompt=True, return_dict=False)
                whole = tokenizer.apply_chat_template(said, return_dict=False)
            except Exception:
                continue
            if whole[: len(prompt)] == prompt and all(word in tokenizer.decode(whole) for word in trl.words_of(turns)):
                break
        else:
            continue
        ids, mask = supervised_ids(name, Example(prompt=turns[:-1], completion=turns[-1:]), mask_style="trl")
        assert ids[: len(whole)] == whole
        assert mask == [0] * len(prompt) + [1] * (len(ids) - len(prompt)), kind
        compared += 1
    # these open the thinking in the prompt alone
    assert compared or name.startswith("deepseek")


@pytest.mark.parametrize("name", TRAINING)
def test_derived_turns_are_those_that_training_variants_mark_but_for_what_the_page_lists(name):
    compared = [found for kind in trl.TALKS if (found := trl.differences(name, kind)) is not None]
    assert compared
    for who, place, text in {one for found in compared for one in found}:
        # words and end tokens are never among them
        assert place != "in the turn" or who == "sftcore", (place, text)
        assert place != "before the turn" or re.search(r"<|^\s+$", text)
        assert place != "behind the turn" or re.fullmatch(r"\s*(<[^<>]+>\s*|assistant)*", text)


# --- Refusals
@pytest.mark.parametrize("name", STOCK)
def test_only_what_a_template_drops_or_refuses_itself_is_refused(name):
    for kind in trl.TALKS:
        if isinstance(trl.outcome(name, kind), str):
            words = trl.words_of(trl.talk(kind, name))
            for text in trl.plain_renderings(name, kind):
                assert not all(word in text for word in words), f"{kind} could have been rendered: {text!r:.300}"


# --- The page
def rows_of(heading: str) -> list[str]:
    section = trl.PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return [line for line in section.splitlines() if line.startswith("|")][2:]


def restricted(row: str, names: set[str]) -> str:
    """The row with only these templates named in its last column."""
    *cells, named = row.strip("| ").rsplit(" | ", 1)
    kept = [name for name in named.split(", ") if name in names]
    return " | ".join([*cells, ", ".join(kept)]) if kept else ""


@pytest.mark.slow
def test_the_page_says_what_comes_out():
    """For every template whose text is the one that the page is about; all of them with the version it names."""
    listed = dict(row.strip("| ").split(" | ") for row in rows_of("Templates"))
    known = {name for name in STOCK if listed.get(name) == f"`{trl.fingerprint(name)}`"}
    named = re.search(r"trl (\d+\.\d+\.\d+)", trl.PAGE.read_text(encoding="utf-8"))[1]
    assert known == set(STOCK) == set(listed) if named == trl.version() else len(known) >= 10
    tables, turns_said = trl.tables(), [row.strip("| ") for row in rows_of("Turns")]
    for row in tables["Turns"]:
        assert row.split(" | ")[0].strip("| ") not in known or row in "\n".join(f"| {one} |" for one in turns_said)
    for heading in ("Refusals", "Differences", "Notes"):
        said = {restricted(row, known) for row in rows_of(heading)}
        found = {restricted(row, known) for row in tables[heading]}
        assert said - {""} == found - {""}, heading
    heading = "Different texts"
    said = {row for row in rows_of(heading) if row.strip("| ").split(" | ")[0] in known}
    assert said == {row for row in tables[heading] if row.strip("| ").split(" | ")[0] in known}
