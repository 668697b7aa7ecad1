"""Scripts' arguments under TRL's names: fields, the parser with its YAML file, and data mixtures."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import warnings
from pathlib import Path

import pytest
import trl
from datasets import Dataset
from trl.scripts.utils import DatasetConfig as TheirDatasetConfig

import sftcore
from sftcore import ConflictError, DataError, DatasetConfig, DatasetMixtureConfig, RecipeError, get_dataset
from sftcore.compat.script_arguments import get_sources
from sftcore.config import yaml12
from sftcore.core.errors import OptionTypeError, UnknownKeyError


@dataclasses.dataclass
class Arguments:
    size: int
    """How large."""
    name: str = "alpha"
    """Its name, 100% free."""
    rate: float = 0.1
    wide: bool = False
    parts: list[str] = dataclasses.field(default_factory=list)


@pytest.fixture
def parse():
    def parse(*words, classes=Arguments, **how):
        return sftcore.TrlParser(classes).parse_args_and_config(list(words), **how)

    return parse


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (sftcore.ScriptArguments, trl.ScriptArguments),
        (sftcore.DatasetMixtureConfig, trl.DatasetMixtureConfig),
        (DatasetConfig, TheirDatasetConfig),
    ],
)
def test_fields_and_defaults_are_trls(ours, theirs):
    def fields(one):
        return {field.name: (field.default, field.default_factory) for field in dataclasses.fields(one)}

    assert fields(ours) == fields(theirs)


# --- The parser -----------------------------------------------------------------------------------------------------
def test_the_file_takes_the_place_of_defaults_and_the_command_line_wins(parse, write):
    file = write("c.yaml", "size: 3\nrate: 2e-5\nwide: no\nparts: [a, b]\n")
    assert parse("--config", str(file)) == (Arguments(3, rate=2e-5, parts=["a", "b"]),)
    assert parse("--size", "4", f"--config={file}", "--wide") == (Arguments(4, rate=2e-5, wide=True, parts=["a", "b"]),)
    assert parse("--size", "5") == (Arguments(5),)


@pytest.mark.parametrize("return_remaining", [False, True])
@pytest.mark.parametrize("separate", [False, True])
def test_what_comes_back_is_what_trl_gives_back(parse, write, return_remaining, separate):
    file = str(write("c.yaml", "size: 3\n" + ("other: 1\n" if return_remaining else "")))
    how = {"return_remaining_strings": return_remaining, "separate_remaining_strings": separate}
    how["fail_with_unknown_args"] = not return_remaining
    words = ["--config", file, *(["--more", "x"] if return_remaining else [])]
    theirs = trl.TrlParser([Arguments]).parse_args_and_config(list(words), **how)
    assert parse(*words, **how) == tuple(theirs)


def test_env_of_the_file_goes_to_the_environment(parse, write, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    parse("--config", str(write("c.yaml", "env: {SFT_A: 1, SFT_B: text}\nsize: 1\n")))
    assert (os.environ["SFT_A"], os.environ["SFT_B"]) == ("1", "text")


def test_what_nobody_reads_is_refused_with_the_nearest_name(parse, write):
    with pytest.raises(UnknownKeyError, match=r'c\.yaml: unknown key "sise"\. Did you mean "size"'):
        parse("--config", str(write("c.yaml", "size: 1\nsise: 2\n")))
    with pytest.raises(RecipeError, match=r'unknown arguments: "--nme", "x"\. Did you mean "name"'):
        parse("--size", "1", "--nme", "x")
    assert parse("--config", str(write("d.yaml", "size: 1\nsise: 2\n")), fail_with_unknown_args=False) == (
        Arguments(1),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a", "must contain a mapping"),
        ("env: [a]", "env must be a mapping"),
        ("size: [", "c.yaml line 1"),
        ("size: 1\nsize: 2", "twice"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(parse, write, text, said):
    with pytest.raises(RecipeError, match=said):
        parse("--config", str(write("c.yaml", text)))


def test_a_missing_file_and_a_field_named_config_are_refused(parse):
    with pytest.raises(RecipeError, match="no such file"):
        parse("--config", "nowhere.yaml")
    with pytest.raises(RecipeError, match="--config needs a file"):
        parse("--config")
    taken = dataclasses.make_dataclass("Taken", [("config", str, "x")])
    with pytest.raises(ConflictError, match='Taken has a field "config"'):
        sftcore.TrlParser(taken)


def test_help_shows_the_docstrings_below_the_fields():
    text = sftcore.TrlParser([Arguments, sftcore.SFTConfig, sftcore.ModelConfig]).format_help()
    for line in ("How large.", "Its name, 100% free.", "Loss on the completion alone.", "Hub id or folder."):
        assert line in text


def test_a_whole_script_configuration_is_read(parse, write, tmp_path):
    text = (
        "model_name_or_path: m\nuse_peft: true\nlora_target_modules: [all-linear]\n"
        f"output_dir: {tmp_path}\nuse_cpu: true\neval_strategy: no\nmax_length: 64\nlearning_rate: 1e-4\n"
        "datasets:\n  - path: a.jsonl\n    split: train\n    fraction: 0.5\n  - {path: b.jsonl}\ntest_split_size: 0.1\n"
    )
    classes = [sftcore.ScriptArguments, sftcore.SFTConfig, sftcore.ModelConfig, DatasetMixtureConfig]
    _, config, model, mixture = parse("--config", str(write("c.yaml", text)), "--max_steps", "2", classes=classes)
    assert (config.learning_rate, config.max_length, config.max_steps, config.eval_strategy.value) == (
        1e-4,
        64,
        2,
        "no",
    )
    assert (model.model_name_or_path, model.lora_target_modules) == ("m", "all-linear")
    assert mixture.datasets == [DatasetConfig("a.jsonl", fraction=0.5), DatasetConfig("b.jsonl")]


def test_the_script_of_the_documentation_trains(write, tmp_path, model_folder, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "coming-from-trl.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    config = yaml12.load(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1], where="page")
    for i, one in enumerate(config["datasets"]):
        rows = [{"messages": [{"role": role, "content": f"say {i}"} for role in ("user", "assistant")]}] * 20
        one["path"] = str(write(one["path"], "".join(json.dumps(row) + "\n" for row in rows)))
    config |= {"model_name_or_path": str(model_folder), "output_dir": str(tmp_path / "out"), "max_length": 64}
    monkeypatch.setenv("SFTCORE_CACHE", str(tmp_path / "cache"))
    words = ["--config", str(write("run.yaml", json.dumps(config))), "--max_steps", "1", "--use_cpu", "--bf16", "no"]
    monkeypatch.setattr("sys.argv", ["train.py", *words])
    done = {"__name__": "__main__"}
    exec(compile(code, "coming-from-trl.md", "exec"), done)
    assert len(done["trainer"].train_dataset["seq_lengths"][0]) > 1
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


# --- Mixtures -------------------------------------------------------------------------------------------------------
@pytest.fixture
def files(write):
    """Files of 10 and 4 rows."""

    def lines(first, count):
        return "".join(json.dumps({"text": f"row {first + i}", "id": first + i}) + "\n" for i in range(count))

    return str(write("a.jsonl", lines(0, 10))), str(write("b.jsonl", lines(100, 4)))


@pytest.mark.parametrize("fractions", [(None, None), (0.5, 0.5), (3, 1), (1, 0), (0.7, 0.3)])
def test_a_mixture_holds_the_rows_that_trls_holds(files, fractions):
    ours = [DatasetConfig(path, fraction=share) for path, share in zip(files, fractions, strict=True)]
    theirs = [
        TheirDatasetConfig("json", data_files=path, fraction=share)
        for path, share in zip(files, fractions, strict=True)
    ]
    mixed = get_dataset(DatasetMixtureConfig(ours))
    assert list(mixed) == ["train"]
    assert mixed["train"]["id"][:] == trl.get_dataset(trl.DatasetMixtureConfig(theirs))["train"]["id"][:]


@pytest.mark.parametrize("fractions", [(None, None), (0.5, 0.5), (1, 0)])
def test_sources_of_other_columns_hold_the_rows_that_those_of_equal_columns_would(files, write, fractions):
    from sftcore.data.rules.numbers import numbers_of

    other = str(write("c.jsonl", "".join(json.dumps({"prompt": f"{i}", "completion": "x"}) + "\n" for i in range(4))))
    alike, unlike = (
        DatasetMixtureConfig(
            [DatasetConfig(path, fraction=share) for path, share in zip(paths, fractions, strict=True)]
        )
        for paths in (files, (files[0], other))
    )
    assert sorted(get_sources(alike)) == ["train"]
    assert get_sources(alike)["train"]["id"][:] == get_dataset(alike)["train"]["id"][:]
    mixture = get_sources(unlike)["train"]
    expected = [number for number in get_dataset(alike)["train"]["id"][:] if number < 100]
    assert mixture.sources[0].dataset["id"][:] == expected
    assert [one.name for one in mixture.sources] == [files[0], other][: 1 if fractions == (1, 0) else 2]
    if fractions == (None, None):
        unlike.test_split_size = 3
        split = get_sources(unlike)
        rows = {which: [list(numbers_of(one.dataset)) for one in split[which].sources] for which in ("train", "test")}
        assert sum(map(len, rows["test"])) == 3
        alike.test_split_size = 3
        held = [number for number in get_dataset(alike)["test"]["id"][:] if number < 100]
        assert sorted(rows["test"][0] if split["test"].sources[0].name == files[0] else []) == sorted(held)


def test_columns_builders_and_streams_are_taken(files):
    one = {"path": "json", "data_files": files[0], "columns": ["text"]}
    stream = get_dataset(DatasetMixtureConfig([one], streaming=True))["train"]
    assert next(iter(stream)) == {"text": "row 0"}
    assert get_dataset(DatasetMixtureConfig([one]))["train"].column_names == ["text"]


def test_the_test_split_is_the_same_each_time(files):
    mixture = DatasetMixtureConfig([DatasetConfig(files[0])], test_split_size=0.2)
    first, second = get_dataset(mixture), get_dataset(mixture)
    assert {name: len(rows) for name, rows in first.items()} == {"train": 8, "test": 2}
    assert first["test"]["id"][:] == second["test"]["id"][:]


def test_mixtures_that_cannot_be_made_are_refused(files, tmp_path):
    a, b = files
    with pytest.raises(DataError, match="does not name any data set"):
        get_dataset(DatasetMixtureConfig())
    with pytest.raises(ConflictError, match="only some data sets have a fraction"):
        get_dataset(DatasetMixtureConfig([DatasetConfig(a, fraction=1.0), DatasetConfig(b)]))
    with pytest.raises(ConflictError, match="fraction needs the number of rows"):
        get_dataset(DatasetMixtureConfig([DatasetConfig(a, fraction=1.0)], streaming=True))
    with pytest.raises(ConflictError, match="test_split_size needs the number of rows"):
        get_dataset(DatasetMixtureConfig([DatasetConfig(a)], streaming=True, test_split_size=0.5))
    with pytest.raises(DataError, match="fractions must be 0 or more"):
        get_dataset(DatasetMixtureConfig([DatasetConfig(a, fraction=-1.0), DatasetConfig(b, fraction=2.0)]))
    with pytest.raises(DataError, match="no such file"):
        get_dataset(DatasetMixtureConfig([DatasetConfig(str(tmp_path / "c.jsonl"))]))
    with pytest.raises(DataError, match=r"nowhere/at-all: the data set cannot be loaded"):
        get_dataset(DatasetMixtureConfig([DatasetConfig("nowhere/at-all")]))
    Dataset.from_list([{"id": "text"}]).to_json(tmp_path / "d.jsonl")
    with pytest.raises(DataError, match="the data sets cannot be concatenated"):
        get_dataset(DatasetMixtureConfig([DatasetConfig(a), DatasetConfig(str(tmp_path / "d.jsonl"))]))


def test_a_data_set_of_a_mixture_is_checked_when_it_is_given():
    with pytest.raises(UnknownKeyError, match=r'datasets\[0\]: unknown key "pth"\. Did you mean "path"'):
        DatasetMixtureConfig([{"pth": "a"}])
    with pytest.raises(RecipeError, match="has no path"):
        DatasetMixtureConfig([{"split": "train"}])
    with pytest.raises(OptionTypeError, match="a data set must be a mapping"):
        DatasetMixtureConfig(["a.jsonl"])


# --- Quiet scripts --------------------------------------------------------------------------------------------------
def test_warnings_go_to_the_log_and_the_log_shows_errors(monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.WARNING)
    sftcore.init_zero_verbose()
    (handler,) = logging.root.handlers
    seen = []
    monkeypatch.setattr(handler, "emit", seen.append)
    warnings.showwarning("odd", UserWarning, "script.py", 3)
    assert (logging.root.level, seen) == (logging.ERROR, [])
    logging.root.setLevel(logging.WARNING)
    warnings.showwarning("odd", UserWarning, "script.py", 3)
    assert [record.getMessage() for record in seen] == ["script.py:3: UserWarning: odd"]


# --- Older names ------------------------------------------------------------------------------------------------------
def test_older_names_of_fields_work_in_a_file_and_on_the_command_line(write):
    parser = sftcore.TrlParser((sftcore.SFTConfig, sftcore.ModelConfig))
    file = write("c.yaml", "output_dir: o\nmax_seq_length: 99\nwarmup_ratio: 0.1\n")
    words = ["--config", str(file), "--evaluation_strategy", "steps", "--group-by-length", "--no_cuda=true"]
    with pytest.warns(FutureWarning) as seen:
        args, _ = parser.parse_args_and_config([*words, "--seed", "3"])
    assert (args.max_length, args.warmup_steps, args.eval_strategy, args.seed) == (99, 0.1, "steps", 3)
    assert (args.train_sampling_strategy, args.use_cpu) == ("group_by_length", True)
    assert "command line: evaluation_strategy is now eval_strategy." in [str(one.message) for one in seen]
    with pytest.raises(RecipeError, match=r"command line: logging_dir is not a field of SFTConfig\. .*TENSORBOARD"):
        parser.parse_args_and_config(["--output_dir", "o", "--logging_dir", "logs"])


def test_a_dataclass_of_ones_own_may_have_a_field_of_an_older_name(parse):
    own = dataclasses.make_dataclass("Own", [("tokenizer", str, "t"), ("logging_dir", str, "l")])
    args, mine = parse("--output_dir", "o", "--tokenizer", "x", "--use_cpu", classes=(sftcore.SFTConfig, own))
    assert (args.output_dir, mine.tokenizer, mine.logging_dir) == ("o", "x", "l")
    with pytest.raises(RecipeError, match="unknown arguments"):
        parse("--size", "3", "--evaluation_strategy", "steps")
