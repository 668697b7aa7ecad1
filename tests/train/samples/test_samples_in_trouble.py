"""Prompts that cannot be asked are refused before the first step; what goes wrong later does not stop a training."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from sftcore import SFTConfig, SFTCoreError, SFTTrainer
from sftcore.config.recipe import parse_recipe
from sftcore.train.run import check_recipe
from sftcore.train.samples.generated import refuse_split
from sftcore.train.samples.questions import Question
from tests.conftest import make_llama, make_tokenizer
from tests.train.samples.test_samples import HOSTILE, ROWS, samples, trainer_of


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        (0, "sample_prompts is 0. It must be at least 1."),
        (True, "sample_prompts takes int"),
        (2.5, "sample_prompts takes int"),
        (["say", 3], "sample_prompts takes int"),
        (["say", None], "sample_prompts takes int"),
        ([[["user", "say"]]], "sample_prompts takes int"),
        ([{"role": "user", "content": "say"}], r"sample_prompts\[0\]: the prompt is a message"),
        (["say", "  "], r"sample_prompts\[1\]: the prompt is empty"),
        ([[]], r"sample_prompts\[0\]: the prompt is empty"),
        ([{}], r"sample_prompts\[0\]: the prompt is empty"),
    ],
)
def test_values_that_are_no_prompts_are_refused_by_the_configuration(tmp_path, prompts, said):
    with pytest.raises(SFTCoreError, match=said):
        SFTConfig(str(tmp_path), use_cpu=True, sample_prompts=prompts)


@pytest.mark.parametrize(("name", "value"), [("sample_max_new_tokens", 0), ("sample_temperature", -1.0)])
def test_settings_of_samples_out_of_range_are_refused(tmp_path, name, value):
    with pytest.raises(SFTCoreError, match=f"{name} is {value}"):
        SFTConfig(str(tmp_path), use_cpu=True, **{name: value})


@pytest.mark.parametrize(
    ("prompts", "fields", "said"),
    [
        (["a", "say " * 600], {"max_length": None}, "prompt 1 has .* tokens, and the model's context holds"),
        (2, {"evaluated": None}, "is a number of evaluation rows, and there are none"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_the_first_step(tmp_path, prompts, fields, said):
    with pytest.raises(SFTCoreError, match=said):
        trainer_of(tmp_path, sample_prompts=prompts, **fields)


@pytest.mark.parametrize("sample", [2, "2"])
def test_a_recipe_without_evaluation_rows_is_refused_before_anything_is_loaded(tmp_path, write, sample):
    data = write("rows.jsonl", "".join(json.dumps(one) + "\n" for one in ROWS.to_list()))
    recipe = parse_recipe({"model": "tiny", "data": str(data), "sample_prompts": sample}, place="recipe.yaml")
    with pytest.raises(SFTCoreError, match="is a number of evaluation rows, and there are none"):
        check_recipe(recipe)


def split_by(**changed):
    """A trainer as it looks where several processes hold parts of a model."""
    parts = {"zero_stage": 0, "fsdp": False, "tp": 1, "cp": 1, **changed}
    accelerator = SimpleNamespace(
        state=SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=parts["zero_stage"])),
        parallelism_config=SimpleNamespace(cp_size=parts["cp"]),
    )
    tokenizer = make_tokenizer()
    return SimpleNamespace(
        accelerator=accelerator, get_tp_size=lambda: parts["tp"],
        is_fsdp_enabled=parts["fsdp"], model=make_llama(tokenizer), data=SimpleNamespace(tokenizer=tokenizer),
    )  # fmt: skip


def test_a_model_in_parts_is_refused_by_name():
    questions = [Question("", {"input_ids": [1]})]
    refuse_split(split_by(zero_stage=2), questions)
    refuse_split(split_by(zero_stage=3), ())
    parts = {
        "DeepSpeed ZeRO-3": {"zero_stage": 3},
        "FSDP": {"fsdp": True},
        "tensor parallelism": {"tp": 2},
        "context parallelism": {"cp": 2},
    }
    for name, changed in parts.items():
        with pytest.raises(SFTCoreError, match=f"sample_prompts: .*with {name} it has a part of the model"):
            refuse_split(split_by(**changed), questions)


def test_a_resumed_run_keeps_the_samples_behind_its_checkpoint_and_goes_on(tmp_path):
    trainer_of(tmp_path, max_steps=6, sample_prompts=["say 1"]).train()
    whole = samples(tmp_path)
    assert [one["step"] for one in whole] == [2, 4, 6]
    again = trainer_of(tmp_path, max_steps=6, sample_prompts=["say 1"])
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert samples(tmp_path) == whole


def test_other_prompts_are_no_reason_not_to_resume(tmp_path):
    trainer_of(tmp_path, max_steps=2, sample_prompts=["say 1"]).train()
    again = trainer_of(tmp_path, max_steps=4, sample_prompts=["say 2"], sample_max_new_tokens=2)
    again.train(resume_from_checkpoint=True)
    assert [(one["step"], one["prompt"]) for one in samples(tmp_path)] == [(2, "say 1"), (4, "say 2")]


def test_a_new_run_in_the_folder_keeps_no_samples_of_another(tmp_path):
    trainer_of(tmp_path, sample_prompts=["say 1"]).train()
    trainer_of(tmp_path, max_steps=1, overwrite_output_dir=True).train()
    assert samples(tmp_path) == []


def test_hostile_text_is_shown_as_text(tmp_path, capsys):
    trainer_of(tmp_path, max_steps=1, save_strategy="no", evaluated=None, sample_prompts=[f"say {HOSTILE}"]).train()
    said = capsys.readouterr().err
    assert "\x1b[31m" not in said
    assert "\u202e" not in said
    assert "asked     say \\x1b[31mred</script><b>\\u202e" in said
    assert samples(tmp_path)[0]["prompt"] == f"say {HOSTILE}"


def test_a_generation_that_fails_does_not_stop_the_training(tmp_path):
    trainer = trainer_of(tmp_path, sample_prompts=["say 1"])

    def fails(*args, **kwargs):
        raise ZeroDivisionError("inside")

    trainer.model.generate = fails
    with pytest.warns(UserWarning, match="step 2: no more samples are made: ZeroDivisionError: inside"):
        trainer.train()
    assert trainer.state.global_step == 4
    assert samples(tmp_path) == []


def test_what_rows_hold_is_not_written_where_the_run_goes_to_the_hub(tmp_path, monkeypatch):
    for name, prompts, count in (("rows", 1, 0), ("own", ["say 1"], 2)):
        trainer = trainer_of(tmp_path / name, sample_prompts=prompts)
        trainer.args.push_to_hub = True
        monkeypatch.setattr(SFTTrainer, "_push_from_checkpoint", lambda *args: None)
        monkeypatch.setattr(SFTTrainer, "_finish_current_push", lambda *args: None)
        trainer.train()
        assert len(samples(tmp_path / name)) == count


def test_an_evaluation_by_itself_asks_nothing(tmp_path):
    trainer = trainer_of(tmp_path, sample_prompts=["say 1"])
    trainer.evaluate()
    assert samples(tmp_path) == []
