"""What a report reads and finds, piece by piece: damaged files, words, turns, lengths, memory."""

from __future__ import annotations

import json
import tracemalloc

import attrs
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from sftcore import Example, Message
from sftcore.check.findings import KINDS, SHOWN, Findings, Location
from sftcore.check.inspect import Inspectors
from sftcore.check.report import Reporter
from sftcore.check.text import Words, text_faults, turn_faults
from sftcore.config.setup import set_up
from sftcore.core.types import ModelRequest
from sftcore.data.source.rows import Raw, raw_rows
from sftcore.report.lengths import describe, packed


def read(path, builder="json"):
    """(row or finding's id, line) of everything in the file."""
    return [(raw.fault.id if raw.fault else raw.row, raw.line) for raw in raw_rows(path, builder)]


# --- Reading --------------------------------------------------------------------------------------------------------
def test_lines_behind_a_broken_one_are_read(write):
    path = write("d.jsonl", '{"a": 1}\n{"a": \n\n[3]\n{"a": 4, "a": 5}\n{"a": 6}')
    assert read(path) == [({"a": 1}, 1), ("broken-json", 2), ("not-a-row", 4), ("broken-json", 5), ({"a": 6}, 6)]


def test_a_broken_element_of_a_list_costs_that_element_alone(write):
    path = write("d.json", '[\n  {"a": 1},\n  {"a" 2},\n  {"a": {\n    "b": 3}}\n  {"a": 4}\n]')
    assert read(path) == [({"a": 1}, 2), ("broken-json", 3), ({"a": {"b": 3}}, 4), ("broken-json", 6), ({"a": 4}, 6)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('[{"a": 1}, {"a": ', [({"a": 1}, 1), ("broken-json", 1), ("broken-json", 1)]),
        ('[{"a": 1}', [({"a": 1}, 1), ("broken-json", 1)]),
        ('[{"a": 1},]', [({"a": 1}, 1), ("broken-json", 1)]),
        ('[{"a": 1}] x', [({"a": 1}, 1), ("broken-json", 1)]),
        ("[]", []),
        ("  [ ]  ", []),
        ('[{"a": "\\ud800"}, {"a": "\\ud83d\\ude00"}]', [("lone-surrogate", 1), ({"a": "😀"}, 1)]),
    ],
)
def test_a_list_that_ends_wrongly_is_said(write, text, found):
    assert read(write("d.json", text)) == found


def test_bytes_that_are_no_utf8_cost_their_line_alone(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes('{"a": "é"}\n'.encode() + '{"a": "é"}\n'.encode("latin-1") + b'{"a": "\\ud800"}\n{"a": 1}\n')
    assert read(path) == [({"a": "é"}, 1), ("not-utf8", 2), ("lone-surrogate", 3), ({"a": 1}, 4)]
    path.write_text('{"a": 1}', encoding="utf-16")
    assert read(path) == [("not-utf8", None)]
    path.write_text('{"a": 1}', encoding="utf-8-sig")
    assert read(path) == [({"a": 1}, 1)]


def test_an_object_in_place_of_rows_is_one_fault(write):
    path = write("d.json", json.dumps({"data": [{"a": 1}], "version": 2}, indent=2))
    (raw,) = raw_rows(path, "json")
    assert (raw.fault.id, raw.fault.detail) == ("not-a-row", "the whole file is one object with the keys data, version")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.data())
def test_whatever_is_damaged_nothing_is_raised_and_whole_lines_are_read(tmp_path_factory, values, data):
    lines = [json.dumps({"a": value}).encode() for value in values]
    damaged = data.draw(st.sets(st.integers(0, len(lines) - 1)))
    # a { more never closes, and what stands behind it stays in its line
    junk = st.binary(max_size=9).filter(lambda raw: not {*b"\r\n"} & {*raw})
    written = [b"{" + data.draw(junk) + line if i in damaged else line for i, line in enumerate(lines)]
    path = tmp_path_factory.mktemp("damaged") / "d.jsonl"
    path.write_bytes(b"\n".join(written))
    found = list(raw_rows(path, "json"))
    assert [raw.row for raw in found if raw.fault is None] == [
        {"a": value} for i, value in enumerate(values) if i not in damaged
    ]
    assert {raw.line - 1 for raw in found if raw.fault is not None} == damaged


def test_a_table_is_read_with_the_nulls_that_a_run_sees(tmp_path):
    path = tmp_path / "d.csv"
    path.write_bytes('a,b\n1,"x, y"\n2,NA\n3,\n4,é\n'.encode() + b"5,\xe9\n6,x,y\n7,z\n")
    assert read(path, "csv") == [
        ({"a": "1", "b": "x, y"}, 2), ({"a": "2", "b": "NA"}, 3), ({"a": "3", "b": None}, 4), ({"a": "4", "b": "é"}, 5),
        ("not-utf8", 6), ("broken-csv", 7), ({"a": "7", "b": "z"}, 8),
    ]  # fmt: skip
    path.with_suffix(".tsv").write_text("a\tb\n1\tx")
    assert read(path.with_suffix(".tsv"), "csv") == [({"a": "1", "b": "x"}, 2)]


def test_parquet_and_saved_sets_are_read_in_order_and_damage_is_said(tmp_path):
    rows = [{"text": f"row {i}"} for i in range(2500)]
    Dataset.from_list(rows).to_parquet(tmp_path / "d.parquet")
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    for name, builder in (("d.parquet", "parquet"), ("saved", "arrow")):
        assert [raw.row for raw in raw_rows(tmp_path / name, builder)] == rows
    (tmp_path / "d.parquet").write_bytes(b"PAR1 no more")
    assert read(tmp_path / "d.parquet", "parquet") == [("unreadable", None)]


# --- Words ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cafÃ©", '"Ã©" was "é"'),
        ("itâ€™s", '"â€™" was "’"'),
        ("ðŸ˜€", '"ðŸ˜€" was "😀"'),
        ("ÐŸÑ€Ð¸", '"ÐŸÑ€Ð¸" was "При"'),
        ("25Â°C", '"Â°" was "°"'),
    ],
)
def test_text_in_the_wrong_encoding_is_found_with_what_was_meant(text, said):
    assert list(text_faults(Words("user", "turn 0 (user)", text))) == [("mojibake", f"turn 0 (user): {said}")]


@pytest.mark.parametrize(
    "text", ["«CAFÉ»", "NÃO", "naïve – “q” …", "日本語", "Это", "AT&T", "a\tb\r\nc", "é»…", "½ × 3 = 1½"]
)
def test_text_that_is_meant_so_is_left_alone(text):
    assert list(text_faults(Words("user", "turn 0 (user)", text))) == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("a\x1b[31m", "control-characters"),
        ("a\x92s", "control-characters"),
        ("\x00", "control-characters"),
        ("lost \ufffd", "replacement-character"),
        ("in\ufeffside", "bom-inside"),
        ("a\u200bb", "invisible-characters"),
        ("\U000e0041", "invisible-characters"),
        ("a &lt; b", "html-entities"),
        ("&#39;", "html-entities"),
    ],
)
def test_characters_that_nobody_means_are_found(text, kind):
    assert [found for found, _ in text_faults(Words("user", "turn 0 (user)", text))] == [kind]


# --- Turns ----------------------------------------------------------------------------------------------------------
CALL = {"type": "function", "function": {"name": "now", "arguments": {}}}


def turns(*spoken: str) -> list[Message]:
    """One message for each `role` or `role:words`."""
    pairs = [one.partition(":") for one in spoken]
    return [Message(role, words if colon else "words") for role, colon, words in pairs]


@pytest.mark.parametrize(
    ("messages", "found"),
    [
        (turns("system", "user", "assistant"), []),
        (turns("system", "developer", "user", "assistant", "user", "assistant"), []),
        (turns("user", "user", "assistant"), ["two-in-a-row"]),
        (turns("assistant", "user", "assistant"), ["assistant-first"]),
        (turns("user", "assistant", "system", "user", "assistant"), ["system-not-first"]),
        (turns("user", "assistant", "user"), ["ends-unanswered"]),
        (turns("user"), ["missing-answer"]),
        (turns("user", "assistant:"), ["missing-answer"]),
        (turns("user: \n", "assistant"), ["empty-turn"]),
        (turns("user", "assistant:", "user", "assistant"), ["empty-turn"]),
        (turns("user", "tool", "assistant"), ["tool-without-call"]),
        (turns("user", "assistant", "tool", "assistant"), ["tool-without-call"]),
        (turns("user", 'assistant:{"name": "now"}', "tool", "assistant"), []),
        ([*turns("user"), Message("assistant", "", tool_calls=[CALL]), *turns("tool", "tool", "assistant")], []),
        ([*turns("user"), Message("assistant", None, tool_calls=[CALL])], []),
        (
            [
                *turns("user"),
                Message("assistant", None, tool_calls=[{**CALL, "id": "1"}]),
                Message("tool", "words", tool_call_id="2"),
                *turns("assistant"),
            ],
            ["tool-without-call"],
        ),
    ],
)
def test_the_order_of_a_conversation_is_judged(messages, found):
    assert [kind for kind, _ in turn_faults(Example(messages=messages))] == found
    if len(messages) > 1:
        halves = Example(prompt=messages[:-1], completion=messages[-1:])
        assert [kind for kind, _ in turn_faults(halves)] == found


def test_texts_without_words_are_told_apart():
    assert [kind for kind, _ in turn_faults(Example(prompt=" ", completion=""))] == ["empty-turn", "missing-answer"]
    assert [kind for kind, _ in turn_faults(Example(text=""))] == ["empty-turn"]


# --- Findings and lengths -------------------------------------------------------------------------------------------
def test_a_row_counts_once_and_the_first_places_are_kept():
    findings = Findings()
    for row in range(30):
        for _ in range(2):
            findings.add("mojibake", Location(row, "d.jsonl", row + 1))
    (found,) = findings.all()
    assert (found.count, [place.row for place in found.rows]) == (30, list(range(SHOWN)))


def test_reasons_without_end_are_counted_together():
    findings = Findings()
    for row in range(100):
        findings.add("refused", Location(row), what=f"reason {row}.")
    found = findings.all()
    assert sum(one.count for one in found) == 100
    assert len(found) == 31
    assert found[0].what == "further reasons."


def test_findings_are_sorted_by_severity():
    order = {"error": 0, "warning": 1, "info": 2}
    severities = [order[severity] for severity, _, _ in KINDS.values()]
    assert severities == sorted(severities)


def test_the_histogram_counts_every_row_and_its_quantiles_are_lengths_of_rows():
    lengths = [i * i % 701 for i in range(2000)] + [90_000]
    found = describe(lengths, "tokens")
    assert sum(one.rows for one in found.histogram) == 2001
    for one in found.histogram:
        assert one.rows == sum(one.start <= length and (one.end is None or length < one.end) for length in lengths)
    assert all(value in lengths for value in found.quantiles.values())
    assert (found.quantiles["min"], found.quantiles["max"], found.total) == (0, 90_000, sum(lengths))
    assert describe([], "tokens") is None


def test_the_packing_estimate_is_that_of_the_packer():
    found = packed([5, 3, 2], 4, "bfd_split")
    assert (found.blocks, found.num_split, found.fill) == (3, 1, 10 / 12)


# --- A whole set ----------------------------------------------------------------------------------------------------
def reporter(**kwargs) -> Reporter:
    without = ["collator", "loader", "adapter", "attention", "kernel", "loss", "noise"]
    setup = set_up((), {}, ModelRequest(), where="test", without=without)
    return Reporter("train", "made", Inspectors(setup), **kwargs)


def test_memory_does_not_grow_with_the_rows():
    one = reporter()
    tracemalloc.start()
    one.read("made", (Raw({"text": f"{i} " + chr(97 + i % 26) * 20_000}) for i in range(6000)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    report = one.report()
    assert report.lengths.total > 120_000_000
    assert peak < 40_000_000  # a sample of 1,000 rows, a batch, and a digest for each row


def test_rows_of_the_evaluation_set_that_are_trained_on_are_found():
    training = reporter()
    training.read("train", [Raw({"prompt": "a", "completion": "b"}), Raw({"prompt": "c", "completion": "d"})])
    held_out = reporter(training=training.seen)
    held_out.read("eval", [Raw({"prompt": "x", "completion": "y"}), Raw({"prompt": "c", "completion": "d"})])
    (found,) = held_out.report().findings
    assert (found.id, found.rows[0].row, found.rows[0].detail) == ("also-in-training", 1, "as training row 1")


def test_files_that_one_format_cannot_read_together_are_an_error(tmp_path):
    one = reporter()
    one.read("a", [Raw({"text": "a"})])
    one.read("b", [Raw({"prompt": "a", "completion": "b"})])
    report = one.report()
    assert [file.format for file in report.files] == ["text", "prompt-completion"]
    assert [found.what for found in report.findings if found.id == "mixed-formats"] == [
        "a run reads all files with one format, but these need text, prompt-completion."
    ]


def test_columns_that_come_late_decide_too():
    rows = [Raw({"text": "a"}) for _ in range(1500)] + [Raw({"prompt": "a", "completion": "b", "text": "c"})]
    one = reporter()
    one.read("a", rows)
    found = {finding.id: finding.what for finding in one.report().findings}
    assert "2 formats recognise the columns" in found["mixed-formats"]
    assert json.dumps(one.report().as_dict())


def test_a_row_of_which_the_format_makes_nothing_is_dropped_also_without_a_model():
    one = reporter()
    one.read("a", [Raw({"prompt": "a", "completion": "b"})])
    inspector = one.inspectors.open(["prompt", "completion"], "a")
    silent = attrs.evolve(inspector, reader=attrs.evolve(inspector.reader, formatter=lambda row: []))
    (found,) = silent.inspect([{"prompt": "a"}], [7])
    assert (found.number, found.example, found.dropped) == (7, None, "the format returned no example for this row")
