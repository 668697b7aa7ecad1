"""Names that fields had: they work where the meaning is the same, or the error says what to write."""

from __future__ import annotations

import pytest
from transformers import TrainingArguments

from sftcore import ConflictError, RecipeError, SFTConfig
from sftcore.config.fields import config_fields
from sftcore.config.recipe import load_recipe
from sftcore.config.settings.older_names import OLDER

SAME = [
    ({"evaluation_strategy": "steps"}, {"eval_strategy": "steps"}),
    ({"warmup_ratio": 0.1}, {"warmup_steps": 0.1}),
    ({"warmup_ratio": 0.1, "warmup_steps": 0}, {"warmup_steps": 0.1}),
    ({"warmup_ratio": 0.1, "warmup_steps": 20}, {"warmup_steps": 20}),
    ({"warmup_ratio": 0}, {"warmup_steps": 0}),
    ({"max_seq_length": 77}, {"max_length": 77}),
    ({"group_by_length": True}, {"train_sampling_strategy": "group_by_length"}),
    ({"group_by_length": False}, {"train_sampling_strategy": "random"}),
    ({"no_cuda": True}, {"use_cpu": True}),
    ({"per_gpu_train_batch_size": 3}, {"per_device_train_batch_size": 3}),
    ({"adafactor": True}, {"optim": "adafactor"}),
    ({"include_inputs_for_metrics": True}, {"include_for_metrics": ["inputs"]}),
    ({"save_safetensors": True}, {}),
    ({"half_precision_backend": "auto"}, {}),
    ({"push_to_hub_token": "abc"}, {"hub_token": "abc"}),
]


@pytest.mark.parametrize(("given", "now"), SAME)
def test_an_older_name_means_the_same_from_python(given, now, tmp_path):
    older = next(iter(given))
    with pytest.warns(FutureWarning, match=f"SFTConfig: {older} is"):
        made = SFTConfig(str(tmp_path), **given)
    assert {name: getattr(made, name) for name in now} == now


@pytest.mark.parametrize(("given", "now"), SAME)
def test_an_older_name_means_the_same_in_a_recipe(given, now):
    older = next(iter(given))
    with pytest.warns(FutureWarning, match=f"{older} is"):
        recipe = load_recipe(None, ["model=m", "data=d", *(f"{name}={value}" for name, value in given.items())])
    assert {name: recipe.training.get(name, value) for name, value in now.items()} == now


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"logging_dir": "logs"}, "TENSORBOARD_LOGGING_DIR"),
        ({"tokenizer": None}, "belongs to SFTTrainer, as processing_class"),
        ({"dispatch_batches": True}, "accelerator_config"),
        ({"save_safetensors": False}, "models are always saved as safetensors"),
        ({"warmup_ratio": 3}, "share of all steps, from 0 to below 1, got 3"),
        ({"warmup_ratio": "0.1"}, "got '0.1'"),
        ({"group_by_length": "yes"}, "train_sampling_strategy"),
        ({"fp16_opt_level": "O1"}, "has no levels"),
    ],
)
def test_a_name_without_a_meaning_of_today_says_what_to_write(given, said, tmp_path):
    with pytest.raises(RecipeError, match=said):
        SFTConfig(str(tmp_path), **given)


def test_two_names_of_one_setting_exclude_each_other(tmp_path):
    with pytest.raises(ConflictError, match="evaluation_strategy and eval_strategy are the same setting"):
        SFTConfig(str(tmp_path), evaluation_strategy="steps", eval_strategy="epoch")
    with pytest.warns(FutureWarning):
        assert SFTConfig(str(tmp_path), max_seq_length=9, max_length=9).max_length == 9


def test_no_older_name_is_a_field_of_today():
    assert OLDER & set(config_fields()) == set()


def test_an_unknown_name_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(RecipeError, match=r'unknown key "lerning_rate"\. Did you mean "learning_rate"\?'):
        SFTConfig(str(tmp_path), lerning_rate=1e-4)


def test_what_is_read_as_a_share_is_one_for_transformers(tmp_path):
    """The translation of `warmup_ratio` rests on it."""
    assert TrainingArguments(str(tmp_path), warmup_steps=0.25, use_cpu=True).get_warmup_steps(200) == 50
