"""What would stop a run at its first step, its first evaluation or its last save is found before weights are read."""

from __future__ import annotations

import importlib.util
import inspect
import json
import logging
import re

import pytest
from datasets import Dataset
from peft import LoraConfig, prepare_model_for_kbit_training
from torch.optim import SGD
from transformers import DataCollatorWithPadding, EarlyStoppingCallback, TrainerCallback

from sftcore import CheckError, ConflictError, DataError, RecipeError, SFTConfig, SFTCoreError, SFTTrainer
from sftcore.config.recipe import load_recipe
from sftcore.config.settings.declared import preparation_arguments
from sftcore.core.errors import OptionTypeError
from sftcore.train.run import check_recipe
from tests.conftest import alpaca_rows

EVALUATED = {"eval_strategy": "steps", "eval_steps": 1}
ROWS = Dataset.from_list([{"text": f"hello, world {i}"} for i in range(6)])


@pytest.fixture
def make(tmp_path, tokenizer, llama):
    """A trainer of six rows with these fields; `given` are arguments of the trainer."""

    def trainer(fields=None, **given):
        own = {"use_cpu": True, "max_steps": 1, "per_device_train_batch_size": 2, "save_strategy": "no"}
        args = SFTConfig(str(tmp_path), **{**own, **(fields or {})})
        return SFTTrainer(llama, args, **{"train_dataset": ROWS, "processing_class": tokenizer, **given})

    return trainer


@pytest.mark.parametrize(
    ("fields", "given", "said"),
    [
        ({"metric_for_best_model": "f1", **EVALUATED}, {"eval_dataset": ROWS}, 'no evaluation measures "f1"'),
        ({"metric_for_best_model": "eval_los", **EVALUATED}, {"eval_dataset": ROWS}, 'Did you mean "loss"'),
        ({"metric_for_best_model": "loss", **EVALUATED}, {"eval_dataset": {"a": ROWS, "b": ROWS}}, "a_loss, b_loss"),
        (
            {"metric_for_best_model": "f1", **EVALUATED},
            {"eval_dataset": {"a": ROWS, "b": ROWS}, "compute_metrics": lambda _: {"f1": 1.0}},
            "a_f1 or b_f1",
        ),
        (EVALUATED, {"eval_dataset": ROWS, "callbacks": [EarlyStoppingCallback()]}, "needs to know what is best"),
        ({"metric_for_best_model": "loss"}, {"callbacks": [EarlyStoppingCallback]}, 'eval_strategy is "no"'),
        ({"max_steps": -1}, {"train_dataset": ROWS.to_iterable_dataset()}, "Set max_steps"),
        (EVALUATED, {}, "there is no eval_dataset"),
        (EVALUATED, {"eval_dataset": {}}, "there is no eval_dataset"),
        ({"prepare_in_int8_kwargs": {"foo": True}}, {}, 'prepare_in_int8_kwargs: there is no argument "foo"'),
        ({"eval_on_start": True}, {}, "there is no eval_dataset"),
        ({"dataloader_drop_last": True, "per_device_train_batch_size": 7}, {}, "6 rows, and a batch of all processes"),
        (
            {"dataloader_drop_last": True, "per_device_eval_batch_size": 7, **EVALUATED},
            {"eval_dataset": ROWS},
            "eval_dataset: dataloader_drop_last leaves no batch",
        ),
        ({}, {"peft_config": LoraConfig(task_type="SEQ_CLS")}, 'task_type is "SEQ_CLS"'),
        ({"plugins": {"adapter": {"lora": {"task_type": "SEQ_2_SEQ_LM"}}}}, {}, 'task_type is "SEQ_2_SEQ_LM"'),
        ({"gradient_checkpointing_kwargs": {"use_reentrnt": True}}, {}, 'Did you mean "use_reentrant"'),
        ({"optim": "sgd", "optim_args": "momentum=much"}, {}, "the training cannot begin: ValueError: could not"),
        ({}, {"callbacks": EarlyStoppingCallback()}, "callbacks is a list of callbacks"),
        ({}, {"callbacks": ["EarlyStoppingCallback"]}, "Pass names in SFTConfig(callbacks="),
        ({}, {"callbacks": [EarlyStoppingCallback, 3]}, "callbacks are TrainerCallbacks, got int 3."),
        ({}, {"optimizers": 3}, "optimizers is an optimizer and a schedule"),
        ({}, {"optimizer_cls_and_kwargs": (SGD, None)}, "optimizer_cls_and_kwargs is a class and a mapping, got tuple"),
        ({}, {"optimizer_cls_and_kwargs": (SGD, {"momentun": 1})}, 'unknown key "momentun". Did you mean "momentum"'),
        ({}, {"odler": 3}, 'unknown key "odler".'),
        ({}, {"compute_metrics": 3}, "compute_metrics is something that is called, got int 3"),
        ({}, {"processing_class": "gpt2"}, "processing_class is"),
        ({}, {"data_collator": ROWS}, "data_collator is something that is called, got Dataset. Pass it by its name: "
         "train_dataset=…"),
        ({}, {"callbacks": SFTConfig("out")}, "callbacks is a list of callbacks, got SFTConfig. Pass it by its name: "
         "args=…"),
        ({}, {"data_collator": DataCollatorWithPadding}, "is the class DataCollatorWithPadding. Pass an object: "
         "DataCollatorWithPadding(…)"),
        ({}, {"preprocess_logits_for_metrics": lambda logits: logits}, "called with logits, labels, and <lambda> can"),
        ({}, {"compute_metrics": lambda predictions, labels: {}}, "Write it with these parameters: (prediction)"),
        ({}, {"compute_loss_func": lambda outputs, labels: 0}, "(outputs, labels, num_items_in_batch)"),
        ({}, {"peft_config": LoraConfig}, "got the class LoraConfig. Make one: peft_config=LoraConfig(…)"),
        ({}, {"peft_config": {"r": 8}}, "got dict. Make one: peft_config=LoraConfig(…)"),
        ({}, {"peft_config": LoraConfig(inference_mode=True)}, "inference_mode is true"),
        ({}, {"train_dataset": "rows.jsonl"}, 'Read it first: load_dataset("json", data_files="rows.jsonl", split='),
        ({}, {"lora_r": 8}, 'unknown key "lora_r". Did you mean "peft_config"'),
        ({}, {"trian_dataset": ROWS}, 'unknown key "trian_dataset". Did you mean "train_dataset"'),
    ],
)  # fmt: skip
def test_it_is_one_error_of_ours_before_the_first_step(make, fields, given, said):
    with pytest.raises(SFTCoreError) as caught:
        make(fields, **given).train()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("metrics", "said"), [(0.5, "returned float 0.5."), (None, "returned None."), ([], "list [].")]
)
def test_what_compute_metrics_returns_is_a_mapping(make, metrics, said):
    trainer = make(eval_dataset=ROWS, compute_metrics=lambda _: metrics)
    with pytest.raises(OptionTypeError, match=re.escape(said) + " Return a mapping of names to numbers"):
        trainer.evaluate()


def test_a_hub_that_cannot_be_reached_is_said_of_push_to_hub(make, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = "push_to_hub: the repository on the hub cannot be made: OfflineModeIsEnabled: .* Log in"
    with pytest.raises(ConflictError, match=said):
        make({"push_to_hub": True, "hub_model_id": "me/mine"})
    with pytest.raises(ConflictError, match=said):
        make().push_to_hub()


def test_compute_metrics_that_is_called_for_each_batch_returns_a_mapping_at_the_last(make):
    seen = []

    def compute_metrics(prediction, compute_result):
        seen.append(compute_result)
        return {"batches": len(seen)} if compute_result else None

    fields = {"batch_eval_metrics": True, "per_device_eval_batch_size": 2}
    assert make(fields, eval_dataset=ROWS, compute_metrics=compute_metrics).evaluate()["eval_batches"] == 3
    assert seen == [False, False, True]


class Adds(TrainerCallback):
    def on_evaluate(self, args, state, control, metrics, **kwargs):
        metrics["eval_mine"] = 1.0


class Own(SFTTrainer):
    def evaluate(self, *args, **kwargs):
        return {**super().evaluate(*args, **kwargs), "eval_mine": 1.0}


@pytest.mark.parametrize(
    ("fields", "given"),
    [
        ({"metric_for_best_model": "mean_token_accuracy"}, {}),
        ({"metric_for_best_model": "eval_entropy"}, {}),
        ({"metric_for_best_model": "mine"}, {"compute_metrics": lambda _: {"mine": 1.0}}),
        ({"metric_for_best_model": "mine"}, {"callbacks": [Adds()]}),
        ({"metric_for_best_model": "b_loss"}, {"eval_dataset": {"a": ROWS, "b": ROWS}}),
        ({"metric_for_best_model": "loss"}, {"callbacks": [EarlyStoppingCallback()]}),
        ({"dataloader_drop_last": True, "per_device_train_batch_size": 6, "per_device_eval_batch_size": 6}, {}),
        ({"gradient_checkpointing_kwargs": {"use_reentrant": False, "early_stop": True}}, {}),
        ({}, {"optimizers": [None, None]}),
        ({}, {"optimizer_cls_and_kwargs": [SGD, {"lr": 0.1}]}),
        ({"max_grad_norm": float("inf"), "report_to": None, "dataset_text_field": None}, {}),
    ],
)
def test_what_is_right_trains(make, fields, given):
    make({**EVALUATED, **fields}, **{"eval_dataset": ROWS, **given}).train()


def test_a_trainer_of_ones_own_may_measure_more(tmp_path, tokenizer, llama):
    args = SFTConfig(str(tmp_path), use_cpu=True, max_steps=1, metric_for_best_model="mine", **EVALUATED)
    Own(llama, args, train_dataset=ROWS, eval_dataset=ROWS, processing_class=tokenizer).train()


def test_a_callback_that_is_added_later_is_looked_at_too(make):
    trainer = make(EVALUATED, eval_dataset=ROWS)
    trainer.add_callback(EarlyStoppingCallback())
    with pytest.raises(CheckError, match="early stopping needs to know what is best"):
        trainer.train()


def test_a_generation_configuration_that_could_not_be_saved(make, llama, tmp_path):
    llama.generation_config.temperature = 0.5
    with pytest.raises(SFTCoreError, match=r"generation_config: .* could not be saved with it: .*temperature"):
        make()
    llama.generation_config.do_sample = True
    trainer = make()
    trainer.train()
    trainer.save_model()
    assert json.loads((tmp_path / "generation_config.json").read_text())["temperature"] == 0.5


def test_an_error_in_a_users_own_code_is_theirs(make):
    class Fails(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        make(callbacks=[Fails()]).train()


# --- Arguments that are elsewhere today -------------------------------------------------------------------------------
def test_arguments_that_older_trainers_took_work_and_name_their_place(tmp_path, model_folder):
    args = SFTConfig(str(tmp_path), use_cpu=True)
    with pytest.warns(FutureWarning) as seen:
        trainer = SFTTrainer(
            str(model_folder), args, train_dataset=ROWS, load_in_8bit=True, peft_config=LoraConfig(), max_seq_length=9,
            prepare_in_int8_kwargs={"use_gradient_checkpointing": False}, packing=True,
        )  # fmt: skip
    said = " ".join(str(one.message) for one in seen)
    for name in ("model_init_kwargs={'load_in_8bit'", "prepare_in_int8_kwargs=", "packing=", "max_length"):
        assert name in said
    assert trainer.model.base_model.model.is_loaded_in_8bit
    assert "prepare_model_for_kbit_training" in " ".join(trainer.loaded.notes)
    assert (trainer.args.packing, trainer.args.max_length) == (True, 9)


@pytest.mark.filterwarnings("ignore:.*is now max_length", "ignore:.*max_length goes in args")
def test_what_one_trainer_is_given_in_an_older_place_is_not_another_ones(tmp_path, tokenizer, llama):
    args = SFTConfig(str(tmp_path), use_cpu=True)
    given = {"train_dataset": ROWS, "processing_class": tokenizer}
    lengths = [SFTTrainer(llama, args, max_seq_length=length, **given).args.max_length for length in (9, 7)]
    assert lengths == [9, 7]
    assert (args.max_length, SFTTrainer(llama, args, **given).args.max_length) == (1024, 1024)


def test_two_values_of_one_argument_are_refused(make):
    with pytest.raises(ConflictError, match="max_length is 9 here, and 7 in args"):
        make({"max_length": 7}, max_seq_length=9)


def test_an_argument_of_loading_beside_a_ready_model_is_refused(make):
    with pytest.raises(ConflictError, match="would do nothing: quantization_config"):
        make(load_in_8bit=True)


# --- From a recipe, before torch is imported ------------------------------------------------------------------------
@pytest.fixture
def recipe(write, model_folder, tmp_path):
    rows = write("train.jsonl", "".join(json.dumps(row) + "\n" for row in alpaca_rows(8)))
    return ["use_cpu=true", f"model={model_folder}", f"data.train={rows}", f"output_dir={tmp_path / 'out'}"]


HELD_BACK = "data.eval_fraction=0.5"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["metric_for_best_model=accuracy", HELD_BACK], 'no evaluation measures "accuracy"'),
        (["load_best_model_at_end=true"], 'eval_strategy is "no"'),
        (["load_best_model_at_end=true", HELD_BACK, "save_strategy=steps"], 'eval_strategy is "epoch"'),
        (
            ["load_best_model_at_end=true", HELD_BACK, "eval_strategy=steps", "eval_steps=3", "save_steps=4"],
            "save_steps to be a multiple of eval_steps, and they are 4 and 3",
        ),
        (["save_strategy=best"], "Set metric_for_best_model"),
        (["lr_scheduler_type=warmup_stable_decay"], "needs num_decay_steps"),
        (["lr_scheduler_type=cosine_with_min_lr"], "needs min_lr_rate"),
        (["lr_scheduler_type=cosine", "lr_scheduler_kwargs.num_cycle=2"], 'Did you mean "num_cycles"'),
        (["lr_scheduler_type=reduce_lr_on_plateau"], "follows evaluations"),
        (["dataloader_prefetch_factor=2"], "dataloader_num_workers is 0"),
        (["dataloader_persistent_workers=true"], "dataloader_num_workers is 0"),
        (["logging_steps=2.5"], "whole number"),
        (["learning_rate=inf"], "learning_rate takes float, got str 'inf'. Give a number."),
        (["learning_rate=.inf"], "learning_rate is inf. It must be a finite number, at least 0."),
        (["max_grad_norm=inf"], "max_grad_norm takes float, got str 'inf'. Write .inf without quotes."),
        (["optim=galore_adamw"], "optim_target_modules"),
        (["optim_args=momentum"], "Write key=value"),
        (["optim=sgd", "optim_args=momentun=0.9"], 'optim "sgd" has no argument "momentun". Did you mean "momentum"?'),
        (["accelerator_config.split_batch=true"], 'Did you mean "split_batches"'),
        (["fp16_full_eval=true", "bf16_full_eval=true"], "contradict each other"),
        (["adapter.lora.task_type=SEQ_CLS"], 'task_type is "SEQ_CLS"'),
        (["model.dtype=bf16"], 'Did you mean "bfloat16"'),
        (["chat_template_path=nowhere.jinja"], "chat_template_path nowhere.jinja: no such file"),
        (["hub_model_id=a/b/c"], "hub_model_id is 'a/b/c'. Write name, or owner/name."),
        (["model.init_kwargs.dtype=fp16"], 'Did you mean "float16"'),
    ],
)
def test_a_recipe_is_told_before_torch_is_imported(recipe, words, said):
    with pytest.raises(SFTCoreError) as caught:
        check_recipe(load_recipe(None, [*recipe, *words]))
    assert said in str(caught.value)


def test_everything_that_is_wrong_is_said_at_once(recipe):
    with pytest.raises(RecipeError) as caught:
        load_recipe(None, [*recipe, "optim=adamw8bit", "seed=-1", "max_steps=many"])
    assert str(caught.value).splitlines()[0].startswith("3 problems")
    for name in ("optim", "seed", "max_steps"):
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("word", "module", "install"),
    [("report_to=[wandb]", "wandb", "wandb"), ("optim=stable_adamw", "optimi", "torch-optimi")],
)
def test_a_missing_package_is_named_with_what_installs_it(recipe, monkeypatch, word, module, install):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == module else found(name, *rest))
    with pytest.raises(CheckError, match=f"Install: pip install {install}"):
        check_recipe(load_recipe(None, [*recipe, word]))


def test_a_recipe_that_is_right_passes(recipe):
    schedule = ["lr_scheduler_type=cosine_with_min_lr", "lr_scheduler_kwargs.min_lr_rate=0.1", "report_to=none"]
    best = ["load_best_model_at_end=true", HELD_BACK, "save_strategy=epoch"]
    check_recipe(load_recipe(None, [*recipe, *schedule, *best]))


def test_a_revision_of_a_model_on_this_machine_is_said_not_to_be_read(recipe, recwarn):
    check_recipe(load_recipe(None, [*recipe, "model.revision=main"]))
    assert not [one for one in recwarn if "revision" in str(one.message)]
    with pytest.warns(UserWarning, match=r'the revision "v2" is not read, because .* is on this machine'):
        check_recipe(load_recipe(None, [*recipe, "model.revision=v2"]))


def test_an_evaluation_of_nothing_says_so(make):
    trainer = make()
    with pytest.raises(DataError, match=r"^evaluate: there is no eval_dataset\. Pass one"):
        trainer.evaluate()
    with pytest.raises(DataError, match=r'has no set named "a"\. Pass the data set itself'):
        trainer.evaluate("a")
    with pytest.raises(OptionTypeError, match=r"test_dataset: expected a datasets\.Dataset or Iterable.*got NoneType"):
        trainer.predict(None)
    several = make(eval_dataset={"chat": ROWS, "b": ROWS})
    with pytest.raises(DataError, match=r'has no set named "chta"\. Did you mean "chat"'):
        several.evaluate("chta")
    assert "eval_loss" in several.evaluate("chat")


@pytest.mark.parametrize(
    "fields", [{}, {"lr_scheduler_type": "reduce_lr_on_plateau"}], ids=["best-model", "learning-rate"]
)
def test_a_metric_that_compute_metrics_does_not_return_is_our_error_with_the_near_name(make, fields):
    own = {"metric_for_best_model": "accuracy", "load_best_model_at_end": not fields, "save_strategy": "steps"}
    trainer = make(
        {**EVALUATED, "save_steps": 1, **own, **fields}, eval_dataset=ROWS, compute_metrics=lambda _: {"accurcy": 1.0}
    )
    with pytest.raises(ConflictError, match=r'did not measure "accuracy"\. Did you mean "accurcy"') as caught:
        trainer.train()
    assert "It measured loss, accurcy, " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_early_stopping_on_one_of_several_sets_stops_and_is_not_said_to_be_disabled(make):
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    fields = {"metric_for_best_model": "a_loss", "early_stopping_patience": 2, "learning_rate": 1e-9, "max_steps": 9}
    trainer = make({**EVALUATED, **fields, "greater_is_better": True}, eval_dataset={"a": ROWS, "b": ROWS.select([0])})
    logger = logging.getLogger("transformers.trainer_callback")
    logger.addHandler(handler)
    try:
        trainer.train()
    finally:
        logger.removeHandler(handler)
    assert trainer.state.global_step < 9
    assert not [one for one in said if "disabled" in one]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"early_stopping_threshold": 0.1}, "early_stopping_threshold does nothing without early_stopping_patience"),
        ({"liger_kernel_config": {"rope": True}}, "liger_kernel_config does nothing without use_liger_kernel"),
        ({"fsdp_config": {"x": 1}}, "fsdp_config does nothing without fsdp"),
        ({"project": "p", "report_to": "none"}, "project is read by trackio alone"),
        ({"optim_args": "betas=3"}, 'optim_args does nothing with optim "adamw_torch'),
        (
            {"optim": "adafactor", "optim_args": "scale_parameter=True"},
            'optim_args does nothing with optim "adafactor"',
        ),
        ({"optim_target_modules": "all-linear"}, "optim_target_modules does nothing without a GaLore"),
        ({"eval_steps": 0, "eval_strategy": "steps"}, "as often as is logged"),
        ({"prepare_in_int8_kwargs": {}}, "prepare_in_int8_kwargs does nothing: the model is not quantised"),
    ],
    ids=lambda one: next(iter(one)) if isinstance(one, dict) else "",
)
def test_a_setting_that_does_nothing_is_said(make, fields, said):
    given = {"eval_dataset": ROWS} if "eval_steps" in fields else {}
    with pytest.warns(UserWarning, match=said):
        make(fields, **given)


def test_settings_with_what_they_belong_to_are_not_warned_of(make, recwarn):
    make({"early_stopping_patience": 2, "early_stopping_threshold": 0.1, **EVALUATED}, eval_dataset=ROWS)
    assert [str(one.message) for one in recwarn if "does nothing" in str(one.message)] == []


def test_what_prepares_a_quantised_base_is_what_peft_takes():
    parameters = [*inspect.signature(prepare_model_for_kbit_training).parameters]
    assert [*parameters[1:], "layer_norm_names"] == list(preparation_arguments())
