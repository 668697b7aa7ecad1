"""Fields that are set after the configuration was made count as if its constructor had been given them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainingArguments

from sftcore import ConflictError, RecipeError, SFTConfig, SFTCoreError, SFTTrainer


@pytest.fixture
def trainer(tmp_path, model_folder, prompt_rows):
    """Makes a trainer whose arguments are changed before it gets them."""

    def make(change, *, first=None, **others):
        args = SFTConfig(str(tmp_path), use_cpu=True, max_steps=1, per_device_train_batch_size=2, **(first or {}))
        for name, value in change.items():
            setattr(args, name, value)
        return SFTTrainer(str(model_folder), args, **{"train_dataset": prompt_rows, **others})

    return make


@pytest.fixture
def prompt_rows() -> Dataset:
    return Dataset.from_list([{"prompt": f"say {i}", "completion": f" The answer is {i}"} for i in range(4)])


@pytest.mark.parametrize("value", [{"torch_dtype": "bfloat16"}, {"dtype": torch.bfloat16}, '{"dtype": "bfloat16"}'])
@pytest.mark.filterwarnings("ignore:torch_dtype is now dtype")
def test_arguments_of_from_pretrained(trainer, value):
    assert trainer({"model_init_kwargs": value}).model.dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:load_in_8bit is now")
def test_a_quantised_base(trainer):
    made = trainer({"model_init_kwargs": {"load_in_8bit": True}}, peft_config=LoraConfig())
    assert made.model.base_model.model.is_loaded_in_8bit


def test_a_mapping_that_is_changed_in_place(trainer, tmp_path, model_folder, prompt_rows):
    args = SFTConfig(str(tmp_path), use_cpu=True, model_init_kwargs={"dtype": "float32"})
    args.model_init_kwargs["dtype"] = "bfloat16"
    assert SFTTrainer(str(model_folder), args, train_dataset=prompt_rows).model.dtype == torch.bfloat16
    args.model_init_kwargs["dtype"] = "bfloat61"
    with pytest.raises(RecipeError, match='Did you mean "bfloat16"'):
        SFTTrainer(str(model_folder), args, train_dataset=prompt_rows)


def test_rows_that_are_not_prepared(trainer):
    ready = Dataset.from_list([{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}] * 2)
    made = trainer({"dataset_kwargs": {"skip_prepare_dataset": True}}, train_dataset=ready)
    assert made.train_dataset is ready


def test_a_value_that_others_were_derived_from(trainer):
    made = trainer({"bf16": True})
    assert (made.args.mixed_precision, made.accelerator.mixed_precision) == ("bf16", "bf16")
    assert trainer({"fp16": False, "bf16": False}, first={"bf16": True}).accelerator.mixed_precision == "no"
    made = trainer({"gradient_checkpointing": False})
    assert not getattr(made.args, "activation_checkpointing", made.args.gradient_checkpointing)
    evaluated = trainer({"eval_strategy": "steps"}, eval_dataset=Dataset.from_list([{"text": "hello, world"}]))
    assert evaluated.args.eval_steps == evaluated.args.logging_steps == 10
    assert trainer({"metric_for_best_model": "mean_token_accuracy"}).args.greater_is_better is True


def test_texts_and_older_names(trainer):
    assert trainer({"pad_to_multiple_of": "8"}).args.pad_to_multiple_of == 8
    with pytest.warns(FutureWarning, match="max_seq_length is now max_length"):
        assert trainer({"max_seq_length": 9}).args.max_length == 9
    with pytest.warns(UserWarning, match='nothing reads the attribute packng. Did you mean "packing"'):
        trainer({"packng": True})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lr_scheduler_type": "cosin"}, 'Did you mean "cosine"'),
        ({"learning_rate": "2e-5"}, "Write 2e-05 without quotes"),
        ({"max_length": "512"}, "max_length takes int"),
        ({"logging_steps": 0}, "logging_steps is 0"),
        ({"model_init_kwargs": {"dtype": "bf16"}}, 'Did you mean "bfloat16"'),
        ({"model_init_kwargs": "bfloat16"}, "model_init_kwargs is a mapping"),
        ({"dataset_kwargs": {"add_special_tokens": False}}, "dataset_kwargs knows only skip_prepare_dataset"),
        ({"eval_strategy": "steps"}, "there is no eval_dataset"),
        ({"fp16": True, "bf16": True}, "contradict each other"),
        ({"plugins": {"los": "nll"}}, 'Did you mean "loss"'),
    ],
)
def test_a_mistake_is_found(trainer, change, said):
    with pytest.raises(SFTCoreError, match=said):
        trainer(change)


def test_arguments_that_nobody_changed_are_the_same_object(trainer, tmp_path, model_folder, prompt_rows):
    args = SFTConfig(str(tmp_path), use_cpu=True)
    before = dict(vars(args))
    args.settle()
    assert vars(args) == before
    assert SFTTrainer(str(model_folder), args, train_dataset=prompt_rows).args is args


def test_plain_arguments_of_transformers_are_converted_with_what_was_set_later(tmp_path, model_folder, prompt_rows):
    args = TrainingArguments(str(tmp_path), use_cpu=True)
    args.learning_rate = 3e-4
    assert SFTTrainer(str(model_folder), args, train_dataset=prompt_rows).args.learning_rate == 3e-4


@pytest.mark.parametrize(
    ("name", "meant"),
    [("max_len", "max_length"), ("batch_size", "per_device_train_batch_size"), ("lr", "learning_rate"), ("zebra", "")],
)
def test_an_attribute_that_nothing_reads_is_said(tmp_path, model_folder, prompt_rows, name, meant):
    args = SFTConfig(str(tmp_path), use_cpu=True)
    setattr(args, name, 3)
    with pytest.warns(UserWarning, match=f"nothing reads the attribute {name}") as caught:
        SFTTrainer(str(model_folder), args, train_dataset=prompt_rows)
    said = " ".join(str(one.message) for one in caught)
    assert f'Did you mean "{meant}"?' in said or not meant


@dataclass
class WithMore(SFTConfig):
    """A configuration of a user's, with a field and an attribute of its own."""

    temperature: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        self.half_temperature = self.temperature / 2


@pytest.mark.parametrize("kind", [SFTConfig, WithMore])
def test_what_libraries_and_subclasses_set_is_not_warned_of(tmp_path, model_folder, prompt_rows, recwarn, kind):
    args = kind(str(tmp_path), use_cpu=True, max_steps=1)
    for _ in range(2):
        SFTTrainer(str(model_folder), args, train_dataset=prompt_rows).train()
    assert [str(one.message) for one in recwarn if "nothing reads" in str(one.message)] == []


# --- In the trainer's own args ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("packing", True), ("max_length", 8), ("completion_only_loss", False), ("neftune_noise_alpha", 5.0),
        ("per_device_train_batch_size", 1), ("plugins", {"loss": "dft"}), ("chat_template", "chatml"), ("bf16", True),
    ],
)  # fmt: skip
def test_what_the_trainer_has_read_is_not_changed_in_its_args_in_silence(trainer, field, value):
    made = trainer({})
    setattr(made.args, field, value)
    with pytest.raises(ConflictError, match=f"SFTTrainer.args: {field} was set after the trainer was made"):
        made.train()


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("learning_rate", -1.0, r"learning_rate is -1\.0\. It must be"),
        ("learning_rate", "2e-4", "learning_rate takes float, got str '2e-4'"),
        ("lr_scheduler_type", "cosin", 'Did you mean "cosine"'),
        ("optim", "adamw_torch_fuse", 'Did you mean "adamw_torch_fused"'),
        ("eval_strategy", "epochs", 'Did you mean "epoch"'),
    ],
)
def test_a_wrong_value_in_the_trainers_args_is_told_as_the_configuration_tells_it(trainer, field, value, said):
    made = trainer({})
    setattr(made.args, field, value)
    with pytest.raises(RecipeError, match=said):
        made.train()


def test_what_the_loop_reads_can_be_changed_in_the_trainers_args(trainer, prompt_rows):
    made = trainer({"logging_steps": 1, "save_strategy": "no"}, eval_dataset=prompt_rows)
    made.args.learning_rate, made.args.lr_scheduler_type, made.args.max_steps = 0.25, "constant", 2
    made.args.eval_strategy, made.args.eval_steps = "steps", 2
    made.train()
    assert [log["learning_rate"] for log in made.state.log_history if "learning_rate" in log] == [0.25, 0.25]
    assert [log["step"] for log in made.state.log_history if "eval_loss" in log] == [2]
    made.args.max_steps = 1
    made.train()  # and again, whatever the loop itself has set
    assert made.state.global_step == 1
