"""What torchtune trains of each of several data sets, and how it evaluates."""

from __future__ import annotations

import pytest

from sftcore.importers.bring import bring

_CHAT = "{_component_: torchtune.datasets.chat_dataset, source: a, conversation_style: openai, conversation_column: m"
_ALPACA = "{_component_: torchtune.datasets.alpaca_dataset, train_on_input: "


def values(tmp_path, sources, *, more=""):
    file = tmp_path / "x.yaml"
    file.write_text(f"model: {{_component_: torchtune.models.x}}\ndataset: [{sources}]\n{more}", encoding="utf-8")
    return bring("torchtune", file)


@pytest.mark.parametrize(
    ("sources", "completion", "assistant", "turns"),
    [
        (f"{_CHAT}}}, {_ALPACA}true}}", False, None, "answers"),
        (f"{_CHAT}}}, {_ALPACA}false}}", None, True, None),
        (f"{_CHAT}, train_on_input: true}}, {_ALPACA}false}}", None, None, None),
        (f"{_CHAT}}}", None, True, None),
        (f"{_CHAT}, train_on_input: true}}, {_CHAT}}}", None, None, "answers"),
    ],
)
def test_each_data_set_trains_what_it_says(tmp_path, sources, completion, assistant, turns):
    found = values(tmp_path, sources).values
    assert (found.get("completion_only_loss"), found.get("assistant_only_loss")) == (completion, assistant)
    assert str(found).count("trained_turns") == (turns is not None)


def test_prompts_that_would_be_trained_against_a_data_sets_word_are_named(tmp_path):
    found = values(tmp_path, f"{_ALPACA}true}}, {_ALPACA}false}}")
    assert "of every source, though train_on_input is false for some" in found.text


def test_a_remark_on_several_data_sets_stands_once(tmp_path):
    assert values(tmp_path, f"{_ALPACA}true}}, {_ALPACA}true}}").text.count("prompt text into") == 1


def test_evaluation_runs_as_often_and_with_batches_as_large_as_there(tmp_path):
    more = "dataset_val: {_component_: torchtune.datasets.alpaca_dataset, source: b}\nbatch_size_val: 3\n"
    found = values(tmp_path, f"{_ALPACA}true}}", more=more + "run_val_every_n_steps: 20\n").values
    settings = ("per_device_eval_batch_size", "eval_strategy", "eval_steps")
    assert [found.get(name) for name in settings] == [3, "steps", 20]
