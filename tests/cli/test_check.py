"""`sftcore check`: real files as they are, damaged copies of them with row and reason, exit codes, imports."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from sftcore import SFTCoreError
from sftcore.cli import cli
from sftcore.cli.check import SCHEMA
from sftcore.config.recipe import load_recipe
from sftcore.config.setup import set_up_recipe
from sftcore.data.source.load import inspect, load
from tests.conftest import CHATML, alpaca_rows, make_tokenizer

TOOLS_CHATML = CHATML.replace(
    "{{ m.content }}", "{{ m.content or '' }}{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}{% endif %}"
)
GSM8K_LINE = "format: {alpaca: {instruction: question, output: answer}}"


def run(*words: str, code: int | None = None):
    result = CliRunner().invoke(cli, ["check", *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert code is None or result.exit_code == code, result.output
    return result


def report(*words: str, code: int | None = None) -> dict:
    """The report of the training set as JSON."""
    return json.loads(run(*words, "--json", code=code).stdout)["sets"][0]


def found(one: dict) -> dict[str, dict]:
    return {finding["id"]: finding for finding in one["findings"]}


def jsonl(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="session")
def tool_model(tmp_path_factory, model_folder) -> Path:
    """The tiny model with a template that renders tool calls."""
    import shutil

    folder = tmp_path_factory.mktemp("tools") / "model"
    shutil.copytree(model_folder, folder)
    make_tokenizer(template=TOOLS_CHATML).save_pretrained(folder)
    return folder


# --- Real files as they are -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "rows", "format_label"),
    [
        ("gsm8k_train.jsonl", 7473, "{alpaca: {instruction: question, output: answer}}"),
        ("alpaca_en_demo.json", 999, "alpaca"),
        ("glaive_toolcall_en_demo.json", 300, "sharegpt"),
    ],
)
def test_real_files_are_reported_without_special_handling(shared_data, name, rows, format_label):
    one = report(str(shared_data / name), code=0)
    assert one["rows"] == {"read": rows, "broken": 0, "refused": 0, "dropped": 0, "kept": 0, "cut": 0}
    assert one["files"] == [{"path": str(shared_data / name), "rows": rows, "format": format_label}]
    assert (one["lengths"]["unit"], one["tokens"]) == ("characters", None)
    assert sum(bin_["rows"] for bin_ in one["lengths"]["histogram"]) == rows


def test_duplicates_of_a_real_file_are_those_that_a_count_finds(shared_data):
    path = shared_data / "alpaca_en_demo.json"
    rows = [json.dumps(row, sort_keys=True) for row in json.loads(path.read_text(encoding="utf-8"))]
    assert found(report(str(path)))["duplicate-rows"]["count"] == len(rows) - len(set(rows)) == 14


def test_columns_that_nobody_reads_are_reported_by_the_mapping_that_fits(write):
    path = write("qa.jsonl", jsonl({"question": f"what is {i}?", "answer": f"it is {i}"} for i in range(9)))
    one = report(str(path), code=0)
    assert one["suggested"] == GSM8K_LINE
    assert found(one)["format-suggested"]["fix"] == f"Add to the recipe: {GSM8K_LINE}"
    assert GSM8K_LINE in run(str(path)).stdout
    with_it = report(str(path), "--format", GSM8K_LINE.removeprefix("format: "), code=0)
    assert (with_it["suggested"], with_it["findings"]) == ("", [])
    assert with_it["roles"] == one["roles"]


# --- Damaged copies -------------------------------------------------------------------------------------------------
QUESTIONS = [{"question": f"What is {i} and {i}?", "answer": f"{i} and {i} is {2 * i}."} for i in range(20)]
TALKS = [
    {
        "conversations": [
            {"from": "human", "value": f"What time is it, {i}?"},
            {"from": "function_call", "value": '{"name": "now", "arguments": {}}'},
            {"from": "observation", "value": f'{{"time": "0{i % 10}:00"}}'},
            {"from": "gpt", "value": f"It is {i}."},
        ]
    }
    for i in range(20)
]
MADE = {"gsm8k_train.jsonl": QUESTIONS, "alpaca_en_demo.json": alpaca_rows(20), "glaive_toolcall_en_demo.json": TALKS}
GSM8K, ALPACA, GLAIVE = MADE


def change(number: int, **columns):
    """A mutation that sets columns of one row; None stays null, … removes the column."""

    def mutate(rows: list[dict]) -> str:
        changed = {**rows[number], **columns}
        rows[number] = {key: value for key, value in changed.items() if value is not ...}
        return jsonl(rows)

    return mutate


def turn(number: int, index: int, **keys):
    def mutate(rows: list[dict]) -> str:
        rows[number]["conversations"][index] |= keys
        return jsonl(rows)

    return mutate


def broken_lines(rows: list[dict]) -> str:
    lines = jsonl(rows).splitlines(keepends=True)
    lines[2] = lines[2].replace('"answer"', "answer", 1)
    lines[9] = lines[9][:-3] + "\n"
    return "".join(lines)


def swapped_turns(rows: list[dict]) -> str:
    turns = rows[6]["conversations"]
    turns[:] = [turns[-1], turns[0], turns[0], {"from": "gpt", "value": "Ten."}]
    return jsonl(rows)


def repeated(rows: list[dict]) -> str:
    return jsonl([*rows[:12], rows[3], *rows[12:], rows[0]])


MUTATIONS = {
    "wrong role": (GLAIVE, turn(3, 0, **{"from": "alien"}), "unknown-role", [3], 'role "alien" is not known', 1),
    "null content": (GLAIVE, turn(5, 0, value=None), "null-content", [5], "[0]", 1),
    "null answer": (ALPACA, change(5, output=None), "null-content", [5], 'the column "output" is null', 1),
    "missing answer": (GSM8K, change(7, answer=...), "null-content", [7], 'the column "answer" is missing', 1),
    "empty answer": (GSM8K, change(4, answer=" "), "missing-answer", [4], "turn 1 (assistant) has no words", 1),
    "broken JSON": (GSM8K, broken_lines, "broken-json", [2, 9], "broken JSON", 1),
    "huge row": (GSM8K, change(11, answer="a very long answer " * 9000), "huge-row", [11], "characters", 0),
    "duplicated rows": (GSM8K, repeated, "duplicate-rows", [12], "as row 3", 0),
    "two answers": (ALPACA, change(8, instruction="Sing.", input=""), "same-prompt", [8], "as row 2", 0),
    "assistant first": (GLAIVE, swapped_turns, "assistant-first", [6], "turn 0 is the assistant's", 0),
    "two in a row": (GLAIVE, swapped_turns, "two-in-a-row", [6], "turns 1 and 2 (user)", 0),
    "mojibake": (GSM8K, change(1, answer="It’s a café".encode().decode("cp1252")), "mojibake", [1], '"’"', 0),
    "control codes": (ALPACA, change(6, output="all \x1b[31mred"), "control-characters", [6], "\\x1b at", 0),
    "empty row": (GSM8K, lambda rows: jsonl([*rows[:3], {}, *rows[3:]]), "null-content", [3], "is missing", 1),
    "half a character": (GSM8K, change(2, answer="\ud83d"), "lone-surrogate", [2], "half a surrogate pair", 1),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("kind", ["made", "real"])
def test_a_damaged_copy_is_reported_with_row_and_reason(request, write, kind, mutation):
    name, mutate, finding, rows, said, code = MUTATIONS[mutation]
    source = json.loads(json.dumps(MADE[name]))
    if kind == "real":
        text = (request.getfixturevalue("shared_data") / name).read_text(encoding="utf-8")
        source = (json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()])[
            :300
        ]
    if mutation == "two answers":
        source[2] |= {"instruction": "Sing.", "input": ""}
    elif name == GLAIVE and kind == "real":
        # rows that all begin with a question, so that what is found was done here
        source = [row for row in source if row["conversations"][0]["from"] == "human"]
    path = write("copy.jsonl", mutate(source))
    one = report(str(path), code=code)
    hit = found(one)[finding]
    places = {place["row"]: place for place in hit["rows"]}
    assert set(rows) <= set(places), hit
    for row in rows:
        assert places[row]["line"] == row + 1
        assert said in hit["what"] + places[row]["detail"]
    printed = run(str(path)).stdout
    assert re.search(rf"^\w+ +{finding} \(\d+ rows?\): ", printed, re.MULTILINE)
    assert f"row {rows[0]} (line {rows[0] + 1})" in printed or kind == "real"
    assert "\x1b" not in printed


def test_the_rows_around_broken_ones_are_counted(write):
    one = report(str(write("copy.jsonl", broken_lines(json.loads(json.dumps(QUESTIONS))))))
    assert (one["rows"]["read"], one["rows"]["broken"]) == (20, 2)
    assert sum(bin_["rows"] for bin_ in one["lengths"]["histogram"]) == 18


@pytest.mark.parametrize(
    ("name", "text", "finding", "said"),
    [
        ("empty.jsonl", "", "unreadable", "the file is empty"),
        ("blank.jsonl", "\n \n", "no-rows", "there are no rows"),
        ("list.json", "[]", "no-rows", "there are no rows"),
        ("odd.jsonl", '{"foo": 1}\n', "no-format", 'no installed format recognises the columns "foo"'),
        (
            "sets.json",
            '{"train": [{"text": "a"}], "test": [{"text": "b"}]}',
            "no-format",
            'the columns "train", "test" have the names of data sets, and not of what a row holds',
        ),
        ("two.jsonl", '{"text": "a", "messages": []}\n', "no-format", "2 formats recognise the columns"),
        ("data.doc", "hello", "unreadable", 'files ending in ".doc" cannot be read'),
    ],
)
def test_a_file_without_usable_rows_is_an_error(write, name, text, finding, said):
    hit = found(report(str(write(name, text)), code=1))[finding]
    assert said in hit["what"]
    assert hit["severity"] == "error"


# --- With a model ---------------------------------------------------------------------------------------------------
def test_tokens_add_up_to_what_the_tokenizer_gives(write, tokenizer, model_folder):
    rows = [{"messages": [{"role": "user", "content": f"say {i} " * i}, {"role": "assistant", "content": "hello"}]}
            for i in range(1, 9)]  # fmt: skip
    lengths = [len(tokenizer.apply_chat_template(row["messages"], return_dict=False)) for row in rows]
    limit = sorted(lengths)[5]
    one = report(str(write("d.jsonl", jsonl(rows))), "--model", str(model_folder), f"max_length={limit}", code=0)
    over = [length - limit for length in lengths if length > limit]
    assert one["rows"] == {"read": 8, "broken": 0, "refused": 0, "dropped": 0, "kept": 8, "cut": len(over)}
    assert one["tokens"]["all"] == sum(lengths) == one["tokens"]["kept"] + one["tokens"]["cut"]
    assert one["tokens"]["cut"] == sum(over)
    assert one["tokens"]["supervised"] == one["tokens"]["kept"] - 8  # all but each row's first
    assert one["roles"]["user"] == {
        "turns": 8,
        "characters": sum(len(row["messages"][0]["content"]) for row in rows),
        "tokens": sum(len(tokenizer(row["messages"][0]["content"])["input_ids"]) for row in rows),
    }
    assert sum(role["tokens"] for role in one["roles"].values()) == sum(lengths)
    assert {place["row"] for place in found(one)["cut"]["rows"]} == {i for i, n in enumerate(lengths) if n > limit}


def test_the_report_agrees_with_the_ledger_of_a_run(write, tokenizer, model_folder):
    from datasets import Dataset

    from tests.data.test_pipeline import preparation

    rows = [{"prompt": "say " * i, "completion": " hello"} for i in range(1, 30)]
    settings = {"max_length": 20, "truncation_mode": "keep_start"}
    one = report(
        str(write("d.jsonl", jsonl(rows))), "--model", str(model_folder), *(f"{k}={v}" for k, v in settings.items())
    )
    data = preparation(tokenizer, **settings)
    data.prepare(Dataset.from_list(rows), "train_dataset")
    (ledger,) = data.ledgers
    assert (one["rows"]["read"], one["rows"]["kept"], one["rows"]["cut"], one["rows"]["dropped"]) == (
        ledger.rows_in, ledger.rows_kept, ledger.rows_cut, ledger.rows_in - ledger.rows_kept,
    )  # fmt: skip
    assert one["tokens"] == {
        "all": ledger.tokens_in, "kept": ledger.tokens_kept, "cut": ledger.tokens_cut,
        "dropped": ledger.tokens_dropped, "supervised": ledger.tokens_supervised,
    }  # fmt: skip
    assert "no supervised token left after truncation" in found(one)["dropped"]["what"]


def test_what_the_template_refuses_is_an_error_and_special_tokens_inside_messages_a_warning(write, tool_model):
    rows = json.loads(json.dumps(TALKS))
    rows[4]["conversations"][3]["value"] = "It is <|im_end|>"
    path = str(write("talks.jsonl", jsonl(rows)))
    one = report(path, "--model", str(tool_model), code=0)
    assert one["rows"]["kept"] == 20
    special = found(one)["special-tokens"]
    assert [(place["row"], place["detail"]) for place in special["rows"]] == [
        (4, "turn 3 (assistant): <|im_end|> at character 6")
    ]
    refused = report(path, "--model", str(tool_model), "chat_template_path=" + str(_template(write)), code=1)
    assert refused["rows"]["refused"] == 20
    assert "calls a tool" in found(refused)["refused"]["what"]


def _template(write) -> Path:
    return write("plain.jinja", CHATML)


def test_a_recipe_brings_model_settings_and_evaluation_set(write, model_folder):
    train, held_out = write("t.jsonl", jsonl(alpaca_rows(6))), write("e.jsonl", jsonl(alpaca_rows(2)))
    recipe = write("r.yaml", f"model: {model_folder}\ndata: {{train: {train}, eval: {held_out}}}\nmax_length: 40\n")
    printed = json.loads(run(str(recipe), "--json", code=0).stdout)
    assert [(one["name"], one["rows"]["kept"], one["max_length"]) for one in printed["sets"]] == [
        ("train", 6, 40), ("eval", 2, 40),
    ]  # fmt: skip
    assert found(printed["sets"][1])["also-in-training"]["count"] == 2
    assert report(str(recipe), "max_length=20")["max_length"] == 20


def test_packing_is_estimated_as_a_run_packs(write, tokenizer, model_folder):
    path = str(write("t.jsonl", jsonl(alpaca_rows(40))))
    one = report(path, "--model", str(model_folder), "max_length=64", "packing=true")
    from datasets import Dataset

    from tests.data.test_pipeline import preparation

    blocks = preparation(tokenizer, max_length=64, packing=True).prepare(Dataset.from_list(alpaca_rows(40)), "train")
    assert one["packing"]["blocks"] == len(blocks)
    assert one["packing"]["fill"] == pytest.approx(sum(map(len, blocks["input_ids"])) / (64 * len(blocks)))


# --- The command ----------------------------------------------------------------------------------------------------
def test_files_can_be_named_one_by_one_by_pattern_or_by_folder(write):
    for name in ("a.jsonl", "b.jsonl"):
        path = write(name, jsonl(alpaca_rows(3)))
    folder = path.parent
    for words in ([str(folder / "a.jsonl"), str(path)], [str(folder / "*.jsonl")], [str(folder)], [f"data={folder}"]):
        one = report(*words)
        assert [file["rows"] for file in one["files"]] == [3, 3]
        assert [place["row"] for place in found(one)["duplicate-rows"]["rows"]] == [3, 4, 5]


def test_the_command_written_wrongly_ends_with_2(write):
    assert "Give data or a recipe first" in run(code=2).stderr
    assert run(str(write("a.jsonl", "{}")), "--jsn", code=2).stderr
    with pytest.raises(SFTCoreError, match='unknown key "max_lenght"'):
        run(str(write("a.jsonl", "{}")), "max_lenght=3")


def test_the_printed_report_has_the_facts_the_histogram_and_the_sum(write):
    lines = run(str(write("d.jsonl", jsonl([*alpaca_rows(12), {"instruction": "x"}]))), code=1).stdout.splitlines()
    assert "  format         alpaca" in lines
    assert "  rows           13 read, 0 broken, 1 refused" in lines
    assert any(re.fullmatch(r" +\d+ – \d+ +█+ \d+", line) for line in lines)
    assert lines[-1] == "1 error, 0 warnings"


def test_the_schema_is_the_documented_one(write):
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "check-your-data.md").read_text(encoding="utf-8")
    (documented,) = (json.loads(code) for code in re.findall(r"^```json\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    rows = [{"question": "a", "answer": "b"}] * 2
    printed = json.loads(run(str(write("d.jsonl", jsonl(rows))), "--json").stdout)
    assert printed["schema"] == documented["schema"] == SCHEMA
    assert printed.keys() == documented.keys()
    one, told = printed["sets"][0], documented["sets"][0]
    assert one.keys() == told.keys()
    assert one["findings"][0].keys() == told["findings"][0].keys()
    assert one["findings"][0]["rows"][0].keys() == told["findings"][0]["rows"][0].keys()
    for key in ("rows", "lengths"):
        assert one[key].keys() == told[key].keys()


def test_every_finding_is_documented_with_its_severity():
    from sftcore.check.findings import KINDS

    page = (Path(__file__).parents[2] / "docs" / "how-to" / "check-your-data.md").read_text(encoding="utf-8")
    documented = dict(re.findall(r"^\| `([a-z0-9-]+)` \| (error|warning|info) \|", page, re.MULTILINE))
    assert documented == {kind: severity for kind, (severity, _, _) in KINDS.items()}


def in_a_process(*words: str) -> tuple[int, str, set[str]]:
    """Exit code, what was printed, and the heavy modules that were imported."""
    code = (
        "import sys\nfrom sftcore.cli import main\nsys.argv = ['sftcore', 'check', *sys.argv[1:]]\n"
        "try: main()\nfinally: print('heavy:', *({'torch', 'transformers', 'datasets', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, encoding="utf-8", check=False)
    printed, _, modules = done.stdout.rpartition("heavy:")
    return done.returncode, printed + done.stderr, set(modules.split())


@pytest.mark.parametrize("words", [[], ["--model", "nobody/nothing"]])
def test_a_broken_file_is_reported_without_torch(write, words):
    code, printed, heavy = in_a_process(str(write("d.jsonl", '{"text": \n')), *words)
    assert (code, heavy) == (1, set())
    assert "row 0 (line 1)" in printed


def test_a_whole_report_without_a_model_needs_no_torch(write):
    code, printed, heavy = in_a_process(str(write("d.jsonl", jsonl(alpaca_rows(3)))))
    assert (code, heavy) == (0, set())
    assert "3 read" in printed


@pytest.mark.slow
def test_a_model_that_cannot_be_had_is_one_clear_error(write):
    code, printed, _ = in_a_process(str(write("d.jsonl", jsonl(alpaca_rows(3)))), "--model", "nobody/nothing")
    assert code == 1
    assert printed.splitlines()[-1].startswith("error: model nobody/nothing: there is no folder of this name here.")


def test_numbers_in_a_table_are_read_by_check_and_train_alike(write, tokenizer):
    path = write("num.csv", "question,answer\nWhat?,4\nHow many?,5.0\nIs it?,true\n")
    line = "{prompt-completion: {prompt: question, completion: answer}}"
    one = report(str(path), "--format", line, code=0)
    assert one["rows"]["refused"] == 0
    recipe = load_recipe(None, [f"data={path}", "model=m", f"format={line}"])
    source = inspect(recipe.data.train, set_up_recipe(recipe))
    rows = load(source, recipe.data, "train")
    assert [source.reader.read(row, 0)[0].completion for row in rows] == ["4", "5.0", "true"]
