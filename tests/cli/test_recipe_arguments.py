"""Model, data and settings as people type them: options, pairs, files, and other tools' names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from sftcore.cli import cli, main
from tests import commands
from tests.conftest import alpaca_rows


@pytest.fixture
def data(write) -> Path:
    return write("train.jsonl", "".join(json.dumps(row) + "\n" for row in alpaca_rows(6)))


def printed(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=True)
    text = done.output if done.exception is None or isinstance(done.exception, SystemExit) else str(done.exception)
    found = done.exit_code
    assert found == code, text
    return text


# --- Options for model and data -------------------------------------------------------------------------------------
def test_train_takes_model_and_data_as_options(tmp_path, model_folder, data):
    done = commands.sftcore(
        "train", "--model", str(model_folder), "--data", str(data), "max_steps=1", "use_cpu=true",
        f"output_dir={tmp_path / 'out'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["recipe"]["model"] == str(model_folder)


@pytest.mark.parametrize("verb", ["explain", "check", "preview"])
def test_every_verb_with_a_recipe_takes_the_same_options(verb, model_folder, data):
    assert printed(verb, "--model", model_folder, "--data", data)
    assert printed(verb, f"--model={model_folder}", f"--data={data}")


def test_several_files_and_names_with_spaces_and_braces(tmp_path, model_folder, data):
    odd = tmp_path / "a {b}: c # d.jsonl"
    odd.write_bytes(data.read_bytes())
    shown = printed("explain", "--model", model_folder, "--data", data, "--data", odd)
    assert str(odd) in shown
    assert str(data) in shown


def test_options_override_a_recipe_and_pairs_reach_into_them(model_folder, data, write):
    recipe = write("r.yaml", "model: elsewhere\ndata: nowhere.jsonl\nloss: nll\n")
    shown = printed("explain", recipe, "--model", model_folder, "--data", data, "data.eval_fraction=0.5")
    assert f"model    {model_folder}" in shown
    assert f"data     {data}" in shown
    assert "recipe   " + str(recipe) in shown
    assert "6 read" in printed("check", recipe, "--data", data, "--model", model_folder)


@pytest.mark.parametrize(
    ("option", "pair"), [("--model", "model=x"), ("--model", "model.name=x"), ("--data", "data=x")]
)
def test_what_is_given_twice_is_refused(option, pair, data):
    assert f"is given twice: {option} and {pair}" in printed("train", option, data, pair, code=2)


def test_data_in_place_of_a_recipe_says_how_to_give_them(data):
    assert f"{data} is data, not a recipe. Write: --data {data}" in printed("train", data, "--model", "x", code=2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{model}"], "{model} is a folder, not a recipe. If it is the model: --model {model}"),
        (["base.gguf"], "base.gguf is a model, not a recipe. If it is the model: --model base.gguf"),
        (["owner/name"], "there is no recipe at owner/name. If it is the model: --model owner/name"),
        (["learning_rate", "1e-4"], "learning_rate is a setting, and settings are written key=value, without spaces: "),
        (["max-steps:", "3"], "settings are written key=value, without spaces: max_steps=…"),
        (["max_steps", "=", "1"], "settings are written key=value, without spaces: max_steps=…"),
    ],
)
def test_a_first_word_that_is_no_recipe_is_answered_with_what_it_may_be(words, said, model_folder, data):
    shown = printed("train", *(word.format(model=model_folder) for word in words), "--data", data, code=2)
    assert said.format(model=model_folder) in shown


@pytest.mark.parametrize("pair", [["max_steps", "=", "1"], ["max_steps=", "1"], ["max_steps", "=1"]], ids="".join)
def test_a_pair_with_spaces_is_told_how_pairs_are_written(pair, data):
    shown = printed("train", "model=m", f"data={data}", *pair, code=1)
    assert "Write key=value, without spaces around the =" in shown


def test_a_recipe_that_is_not_there_is_one(data):
    assert "there is no recipe at runs/r.yaml" in printed("train", "runs/r.yaml", "--data", data, code=1)


def test_what_evaluate_takes_is_told():
    assert "RUN and DATA are given without an option" in printed("evaluate", "--model", "out", "--data", "d", code=2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--learning_rate", "1e-4"], "no option --learning_rate. Settings are written key=value: learning_rate=…"),
        (["--learning-rate=1e-4"], "no option --learning-rate. Settings are written key=value: learning_rate=…"),
        (["--lr", "1"], "Settings are written key=value: learning_rate=…"),
        (["--output_dir=out"], "output_dir=…"),
        (["--adapter", "lora"], "adapter=…"),
        (["--lora_r", "8"], "adapter.lora.r=…"),
        (["-m", "x"], "There is no option -m. Write --model"),
        (["-d", "x"], "There is no option -d. Write --data"),
        (["--config", "r.yaml"], "The recipe is given without an option: sftcore train recipe.yaml"),
        (["--modle", "x"], "Did you mean"),
    ],
)
def test_a_setting_typed_as_an_option_is_answered_with_the_pair(words, said):
    assert said in printed("train", *words, code=2)


# --- Keys that nobody reads ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mdoel=M", "data=d"], 'the key "model" is missing; unknown key "mdoel" (did you mean "model"?).'),
        (["model=M", "datasets=[a]"], 'the key "data" is missing; unknown key "datasets" (did you mean "data"?).'),
        (["Model=M", "data=d"], 'unknown key "Model" (did you mean "model"?)'),
        (["model_name_or_path=M", "dataset_name=d"], '"dataset_name" (did you mean "data"?)'),
        (["model=M"], 'the key "data" is missing. Add a line such as: data: train.jsonl'),
        (["model=M", "data=d", "resume=auto"], 'unknown key "resume". Did you mean "resume_from_checkpoint"?'),
        (["model=M", "data=d", "lr=1", "epochs=2"], '"lr" (did you mean "learning_rate"?); unknown key "epochs" (did'),
        (["model=M", "data=d", "lora_r=8"], 'Did you mean "adapter.lora.r"?'),
        (["model=M", "data=d", "lora_rank=8"], 'Did you mean "adapter.lora.r"?'),
        (["model=M", "data=d", "lora_target_modules=[a]"], 'Did you mean "adapter.lora.target_modules"?'),
        (["model=M", "data=d", "val_set_size=0.1"], 'Did you mean "data.eval_fraction"?'),
        (["model=M", "data=d", "eval_dataset=e"], 'Did you mean "data.eval"?'),
        (["model=M", "data=d", "torch_dtype=bf16"], 'Did you mean "model.dtype"?'),
        (["model=M", "data=d", "qqqq=1"], 'unknown key "qqqq".'),
    ],
)
def test_an_unknown_key_is_named_beside_what_is_missing(words, said):
    done = printed("train", *words, code=1)
    assert said in done
    assert "\n" not in done


def test_unknown_keys_and_wrong_values_are_named_together():
    done = printed("train", "mdoel=M", "data=d", "lr=1", "lr_scheduler_type=cosin", "max_steps=many", code=1)
    said = ['the key "model" is missing', '"lr" (did you mean "learning_rate"?)', '"cosine"', "max_steps takes int"]
    assert [part for part in said if part not in done] == []


def test_options_of_a_plugin_are_offered_by_their_last_part_or_first_letter(model_folder, data):
    for given, meant in (("rank", "r"), ("lora_r", "r"), ("alpha", "lora_alpha"), ("lora_rank", "r")):
        words = [f"model={model_folder}", f"data={data}", f"adapter.lora.{given}=4"]
        assert f'unknown key "{given}". Did you mean "{meant}"?' in printed("explain", *words, code=1)


LONG = "a text where a name is wanted " * 200


@pytest.mark.parametrize(
    "words",
    [[f"model={LONG}", "data=d.jsonl"], ["model=m", f"data={LONG}"], ["model=m", f"data=/tmp/{LONG}.jsonl"],
     ["model=m", "data=d.jsonl", f"deepspeed={LONG}"], [LONG], ["--model", LONG, "--data", "d.jsonl"]],
    ids=["model", "data", "a file of data", "a file of settings", "the recipe", "an option"],
)  # fmt: skip
@pytest.mark.parametrize("verb", ["train", "check", "explain", "estimate"])
def test_a_text_too_long_to_name_a_file_is_one_line(verb, words, tmp_path, monkeypatch, capsys):
    if verb == "check" and words == [LONG]:
        words = [*words, "--model", "m"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["sftcore", verb, *words])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert said.count("error:") == 1
    assert "a text where a name is wanted" in said
    assert len(said) < 2000
    assert "Traceback" not in said
