"""`sftcore evaluate`: the same figures as the run's own evaluation, and as plain transformers gives."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import commands
from tests.conftest import alpaca_rows, make_llama


def sftcore(*words: object, code: int = 0) -> str:
    """What the command printed: stdout, or stderr where it failed."""
    done = commands.sftcore(*map(str, words))
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr if code else done.stdout


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rows")
    rows = [json.dumps({"question": row["instruction"], "reply": row["output"]}) + "\n" for row in alpaca_rows(30)]
    found = {"train": folder / "train.jsonl", "held": folder / "held.jsonl"}
    found["train"].write_text("".join(rows[:24]))
    found["held"].write_text("".join(rows[24:]))
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_folder, files) -> Path:
    """An adapter trained with a mapped format, rows that are cut, and checkpoints."""
    out = tmp_path_factory.mktemp("run") / "out"
    sftcore(
        "train", "--model", model_folder, "--data", files["train"], f"data.eval={files['held']}", "adapter=lora",
        "format={alpaca: {instruction: question, output: reply}}", f"output_dir={out}", "max_steps=4", "use_cpu=true",
        "learning_rate=1e-2", "max_length=28", "eval_strategy=steps", "eval_steps=2", "save_steps=2",
    )  # fmt: skip
    return out


def logged(run: Path) -> dict[int, float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}


def test_the_figures_are_those_of_the_runs_own_evaluation(run, files):
    for place, step in ((run, 4), (run / "checkpoint-2", 2)):
        found = json.loads(sftcore("evaluate", place, files["held"], "use_cpu=true", "--json"))
        assert found["loss"] == pytest.approx(logged(run)[step], rel=1e-5)
        assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found["rows"][0].startswith(f'{files["held"]}: 6 of 6 rows kept (format "alpaca")')
    assert "rows cut to length" in found["rows"][1]


def test_without_data_the_runs_own_evaluation_rows_are_read(run, files):
    printed = sftcore("evaluate", run, "use_cpu=true")
    assert printed.splitlines()[0] == f"loss       {logged(run)[4]:.4f}"


def test_each_of_several_sets_has_its_own_figures_beside_those_of_all(tmp_path, model_folder, files):
    out = tmp_path / "out"
    words = ["max_steps=1", "use_cpu=true", "eval_strategy=steps", "eval_steps=1", "max_length=28"]
    mapped = "format={alpaca: {instruction: question, output: reply}}"
    held = tmp_path / "some.jsonl"
    held.write_text("".join(files["held"].read_text().splitlines(keepends=True)[:2]))
    sets = f"data.eval={{dev: {files['held']}, some: {held}}}"
    sftcore("train", "--model", model_folder, "--data", files["train"], mapped, sets, *words, f"output_dir={out}")
    found = json.loads(sftcore("evaluate", out, "--json", "use_cpu=true"))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    wanted = {key: value for line in lines for key, value in line.items() if key.startswith("eval_")}
    assert set(found["sets"]) == {"dev", "some"}
    for name, figures in found["sets"].items():
        assert figures["loss"] == pytest.approx(wanted[f"eval_{name}_loss"], rel=1e-5)
        assert figures["perplexity"] == pytest.approx(wanted[f"eval_{name}_perplexity"], rel=1e-4)
    losses = [found["sets"][name]["loss"] for name in ("dev", "some")]
    assert min(losses) < found["loss"] < max(losses)
    printed = sftcore("evaluate", out, "use_cpu=true").splitlines()
    assert [printed[i] for i in (4, 5, 11)] == ["", "dev", "some"]
    assert printed[7] == f"perplexity {found['sets']['dev']['perplexity']:.4g}"


def test_a_loss_that_is_no_likelihood_has_no_perplexity(run, files):
    printed = sftcore("evaluate", run, files["held"], "use_cpu=true", "loss=dft").splitlines()
    assert [line.split()[0] for line in printed] == ["loss", "accuracy", "entropy"]


def test_rows_that_the_run_held_back_are_held_back_again(tmp_path, model_folder, files):
    out = tmp_path / "out"
    words = ["data.eval_fraction=0.25", "max_steps=2", "use_cpu=true", "eval_strategy=steps", "eval_steps=2", "seed=7"]
    mapped = "format={alpaca: {instruction: question, output: reply}}"
    sftcore("train", "--model", model_folder, "--data", files["train"], mapped, *words, f"output_dir={out}")
    found = json.loads(sftcore("evaluate", out, "--json", "use_cpu=true"))
    assert found["loss"] == pytest.approx(logged(out)[2], rel=1e-5)
    assert "6 of 6 rows kept" in found["rows"][0]


def test_the_base_alone_and_any_model_give_what_plain_transformers_gives(run, model_folder, files):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    total, count = 0.0, 0
    for line in files["held"].read_text().splitlines():
        row = json.loads(line)
        turns = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["reply"]}]
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
        start = len(tokenizer(whole.partition("assistant\n")[0] + "assistant\n")["input_ids"])
        ids = tokenizer(whole.removesuffix("\n"))["input_ids"][:28]
        with torch.no_grad():
            scores = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        total -= sum(scores[i - 1, ids[i]].item() for i in range(start, len(ids)))
        count += len(ids) - start
    base = json.loads(sftcore("evaluate", run, files["held"], "use_cpu=true", "--no-adapter", "--json"))
    assert (base["loss"], base["num_supervised"]) == (pytest.approx(total / count, rel=1e-4), count)
    mapped = "format={alpaca: {instruction: question, output: reply}}"
    plain = json.loads(
        sftcore("evaluate", model_folder, files["held"], mapped, "max_length=28", "use_cpu=true", "--json")
    )
    assert plain["loss"] == pytest.approx(total / count, rel=1e-4)


def test_nothing_is_written_and_the_run_stays_as_it_is(run, files):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    sftcore("evaluate", run, files["held"], "use_cpu=true")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_base_that_has_moved_is_named(run, files, tmp_path, tokenizer):
    make_llama(tokenizer, seed=5).save_pretrained(tmp_path / "moved")
    tokenizer.save_pretrained(tmp_path / "moved")
    found = sftcore("evaluate", run, files["held"], "use_cpu=true", "--base", tmp_path / "moved")
    assert found != sftcore("evaluate", run, files["held"], "use_cpu=true")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["max_lenth=3"], 'evaluate: unknown key "max_lenth". Did you mean "max_length"?'),
    ],
)
def test_mistakes_are_one_line(run, words, said):
    printed = sftcore("evaluate", run, *words, code=1)
    assert said in printed
    assert len(printed.splitlines()) == 1


def test_a_run_without_evaluation_rows_asks_for_data(tmp_path, model_folder):
    assert "Give DATA: sftcore evaluate RUN DATA" in sftcore("evaluate", model_folder, code=1)
    assert "is a whole model" in sftcore("evaluate", model_folder, "x.jsonl", "--no-adapter", code=2)
