"""`sftcore evaluate RUN --tasks`: lm-eval's scores are those of the run's model, and are kept with it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftcore.cli import cli
from sftcore.core.errors import SFTCoreError
from sftcore.tools.saved import SavedRun
from sftcore.tools.tasks.lm_eval import Asked, TaskScore, keep, lines_of, names_of, task_manager
from tests.conftest import make_llama, make_tokenizer

HAS_LM_EVAL = importlib.util.find_spec("lm_eval") is not None
needs_lm_eval = pytest.mark.skipif(not HAS_LM_EVAL, reason="lm-eval is not installed")
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.5}}
"""
QUESTIONS = [
    {"question": f"Q{i}: what follows {'abcdefgh'[i]}?", "choices": [f"{i} x", f"y{i} z", f"the w{i}"], "answer": i % 3}
    for i in range(8)
]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
    (folder / "letters.yaml").write_text(TASK.format(name="letters_of_ours", data=data))
    return folder


@pytest.fixture
def run(tmp_path, model_folder) -> Path:
    """An adapter on the tiny model that changes its answers, as a run would save it."""
    torch.manual_seed(1)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), LoraConfig(task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(tmp_path / "out")
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").write_text('{"schema": 1, "steps": 7}')
    return tmp_path / "out"


def asked(*words: object) -> tuple[int, str, str]:
    """Exit code, what was printed, and what was said of it; an error of ours as the command line says it."""
    done = CliRunner().invoke(cli, ["evaluate", *map(str, words)])
    said = f"{done.exception}" if isinstance(done.exception, SFTCoreError) else done.stderr
    return done.exit_code, done.stdout, said


def accuracy(folder: Path, base: Path | None) -> float:
    """The share of questions whose answer is the most likely choice, by plain transformers."""
    model = AutoModelForCausalLM.from_pretrained(base or folder)
    model = (PeftModel.from_pretrained(model, folder) if base else model).eval()
    tokenizer, right = AutoTokenizer.from_pretrained(folder), 0
    for one in QUESTIONS:
        scores = []
        for choice in one["choices"]:
            start = len(tokenizer(one["question"])["input_ids"])
            ids = torch.tensor([tokenizer(f"{one['question']} {choice}")["input_ids"]])
            with torch.no_grad():
                found = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
            scores.append(found[start - 1 :].sum().item())
        right += scores.index(max(scores)) == one["answer"]
    return right / len(QUESTIONS)


@needs_lm_eval
@pytest.mark.slow
def test_scores_of_run_and_base_are_those_of_plain_transformers(run, tasks, model_folder):
    words = ["--tasks", "letters_of_ours", "--include-path", tasks]
    code, printed, said = asked(run, *words, "--json")
    assert code == 0, said
    found = json.loads(printed)["tasks"]["letters_of_ours"]
    assert found["metrics"]["acc,none"] == pytest.approx(accuracy(run, model_folder))
    assert (found["samples"], found["num_fewshot"], found["version"]) == (8, 0, 1.5)
    kept = json.loads((run / "tasks.json").read_text())["tasks"]
    assert kept["letters_of_ours"].items() >= {**found, "limit": None, "steps": 7}.items()
    assert "kept in" in said

    before = (run / "tasks.json").read_text()
    code, printed, said = asked(run, *words, "--no-adapter", "--batch-size", "3")
    assert code == 0, said
    assert f"acc                  {accuracy(model_folder, None):.4f}" in printed
    assert "(8 samples, 0-shot)" in printed
    assert (run / "tasks.json").read_text() == before  # these are the base's


@needs_lm_eval
@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "letters_of_our"], 'lm-eval has no task "letters_of_our". Did you mean "letters_of_ours"?'),
        (["--tasks", "broken_of_ours"], "lm-eval cannot evaluate the tasks"),
    ],
)
def test_mistakes_in_tasks_are_one_line(run, tasks, words, said):
    (tasks / "broken.yaml").write_text(TASK.format(name="broken_of_ours", data=tasks / "nowhere.jsonl"))
    code, _, printed = asked(run, *words, "--include-path", tasks)
    assert code == 1
    assert said in printed
    assert len(printed.splitlines()) == 1
    assert not (run / "tasks.json").exists()


# --- Without lm-eval --------------------------------------------------------------------------------------------------
def test_a_missing_package_is_named_before_the_model_is_read(run, monkeypatch):
    monkeypatch.setattr("sftcore.tools.tasks.lm_eval.installed", lambda name: False)
    (run / "adapter_model.safetensors").write_bytes(b"nothing that could be read")
    code, printed, said = asked(run, "--tasks", "hellaswag,arc_easy")
    assert (code, printed) == (1, "")
    assert said.splitlines() == ['--tasks: it needs lm-eval. Install: pip install "lm-eval[hf]"']


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rows.jsonl", "--tasks", "x"], "--tasks takes neither DATA nor KEY=VALUE"),
        (["--num-fewshot", "0"], "--num-fewshot is of --tasks"),
        (["--limit", "1"], "--limit is of --tasks"),
        (["--tasks", "x", "--limit", "0"], "--limit"),
    ],
)
def test_options_that_do_not_go_together_are_refused(run, words, said):
    code, _, printed = asked(run, *words)
    assert code == 2
    assert said in printed


def test_names_and_folders_are_looked_at_first(tmp_path, monkeypatch):
    assert names_of(" a,b , a,") == ("a", "b")
    with pytest.raises(SFTCoreError, match="--tasks: it names no task"):
        names_of(" , ")
    monkeypatch.setattr("sftcore.tools.tasks.lm_eval.installed", lambda name: True)
    with pytest.raises(SFTCoreError, match="--include-path: there is no folder"):
        task_manager(Asked(("a",), (str(tmp_path / "nowhere"),)))


def test_scores_are_kept_beside_those_of_other_tasks(tmp_path):
    saved = SavedRun("out", tmp_path, None, manifest={"steps": 3})
    first, second = (
        TaskScore({"acc,none": 0.5, "acc_stderr,none": 0.1}, 8, 0, 1.0),
        TaskScore({"f1,x": 1.0}, None, None, None),
    )
    keep(saved, Asked(("a",)), {"a": first})
    path = keep(saved, Asked(("b",), limit=2), {"b": second})
    found = json.loads(path.read_text())["tasks"]
    assert {name: (one["metrics"], one["limit"], one["steps"]) for name, one in found.items()} == {
        "a": (dict(first.metrics), None, 3), "b": ({"f1,x": 1.0}, 2, 3)
    }  # fmt: skip
    path.write_text("[broken")
    assert set(json.loads(keep(saved, Asked(("b",)), {"b": second}).read_text())["tasks"]) == {"b"}
    assert keep(SavedRun("some/model", None, None), Asked(("a",)), {"a": first}) is None
    assert lines_of({"a": first, "b": second}) == [
        f"{'a':<24} {'acc':<20} 0.5000 ± 0.1000  (8 samples, 0-shot)", f"{'b':<24} {'f1 (x)':<20} 1.0000"
    ]  # fmt: skip


def test_a_run_that_replaces_another_removes_its_scores(tmp_path):
    from sftcore.train.checkpoint.other_run import remove_run

    (tmp_path / "tasks.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    make_llama(make_tokenizer()).save_pretrained(tmp_path)
    remove_run(tmp_path)
    assert {one.name for one in tmp_path.iterdir()} <= {"notes.txt", "generation_config.json"}
