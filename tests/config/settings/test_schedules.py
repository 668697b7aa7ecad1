"""Values in `lr_scheduler_kwargs`: what a schedule cannot use is refused with its name, what it can use is taken."""

from __future__ import annotations

import inspect

import pytest
import torch
from transformers import get_scheduler

from sftcore import SFTConfig, SFTCoreError, SFTTrainer
from sftcore.config.settings.declared import choices, schedule_arguments
from sftcore.config.settings.schedules import NAMES, NUMBERS, OF_PLATEAU
from tests.train.test_before_the_first_step import ROWS

WRONG = [
    ("inverse_sqrt", {"timescale": 0}, "timescale is 0. It must be a number, above 0."),
    ("inverse_sqrt", {"timescale": -5}, "timescale is -5."),
    ("cosine", {"num_cycles": "a"}, "num_cycles is 'a'."),
    ("cosine_with_restarts", {"num_cycles": -1}, "num_cycles is -1."),
    ("warmup_stable_decay", {"num_decay_steps": 2, "decay_type": "cos"}, 'Did you mean "cosine"?'),
    ("warmup_stable_decay", {"num_decay_steps": 2.5}, "It must be a whole number"),
    ("polynomial", {"lr_end": 0.1}, "lr_end is 0.1, and learning_rate is 2e-05."),
    ("polynomial", {"power": True}, "power is True."),
    ("cosine_with_min_lr", {"min_lr": 1.0}, "min_lr is 1.0, and learning_rate is 2e-05."),
    ("cosine_with_min_lr", {"min_lr_rate": 1.5}, "min_lr_rate is 1.5."),
    ("reduce_lr_on_plateau", {"factr": 0.5}, 'Did you mean "factor"?'),
    ("reduce_lr_on_plateau", {"factor": 1.0}, "factor is 1.0."),
    ("reduce_lr_on_plateau", {"mode": "least"}, "mode is 'least'."),
]
RIGHT = [
    ("inverse_sqrt", {"timescale": 10}),
    ("inverse_sqrt", {"timescale": None}),
    ("cosine", {"num_cycles": 1}),
    ("cosine_with_restarts", {"num_cycles": 3}),
    ("polynomial", {"lr_end": 0.0, "power": 2}),
    ("cosine_with_min_lr", {"min_lr": 1e-6}),
    ("cosine_with_min_lr", {"min_lr": 2e-5}),
    ("cosine_with_min_lr", {"min_lr_rate": 0.0, "min_lr": None}),
    ("warmup_stable_decay", {"num_decay_steps": 0, "warmup_type": "1-sqrt", "decay_type": "linear"}),
    ("reduce_lr_on_plateau", {"mode": "min", "factor": 0.5, "patience": 0, "min_lr": [1e-6]}),
]


def made(folder, name, given, **fields) -> SFTConfig:
    evaluated = {"eval_strategy": "epoch"} if name == "reduce_lr_on_plateau" else {}
    return SFTConfig(str(folder), lr_scheduler_type=name, lr_scheduler_kwargs=given, **evaluated, **fields)


@pytest.mark.parametrize(("name", "given", "said"), WRONG, ids=[f"{name} {[*given][-1]}" for name, given, _ in WRONG])
def test_a_value_that_a_schedule_cannot_use_is_refused_with_its_name(tmp_path, name, given, said):
    with pytest.raises(SFTCoreError) as caught:
        made(tmp_path, name, given)
    assert said in str(caught.value)
    assert "lr_scheduler_kwargs" in str(caught.value)


@pytest.mark.parametrize(("name", "given"), RIGHT, ids=[f"{name} {[*given][-1]}" for name, given in RIGHT])
def test_what_transformers_takes_is_taken(tmp_path, name, given):
    made(tmp_path, name, given)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=2e-5)
    assert get_scheduler(name, optimizer, 1, 10, scheduler_specific_kwargs=given) is not None


def test_a_rate_below_the_end_of_a_polynomial_is_refused(tmp_path):
    with pytest.raises(SFTCoreError, match="lr_end is 1e-07, and learning_rate is 1e-08"):
        made(tmp_path, "polynomial", None, learning_rate=1e-8)


def test_each_argument_of_each_schedule_has_its_values():
    arguments = {one for name in choices("lr_scheduler_type") for one in schedule_arguments(name) or ()}
    assert arguments | set(OF_PLATEAU) == set(NUMBERS) | set(NAMES) | {"min_lr"}


def test_the_arguments_of_a_plateau_are_torchs():
    parameters = inspect.signature(torch.optim.lr_scheduler.ReduceLROnPlateau).parameters
    assert set(OF_PLATEAU) == set(parameters) - {"optimizer", "verbose"}


def test_an_argument_that_an_optimizer_does_not_have_is_refused(tmp_path, tokenizer, llama):
    with pytest.raises(SFTCoreError, match=r'optimizer_cls_and_kwargs: .* Did you mean "momentum"'):
        SFTTrainer(
            llama, SFTConfig(str(tmp_path), use_cpu=True), train_dataset=ROWS, processing_class=tokenizer,
            optimizer_cls_and_kwargs=(torch.optim.SGD, {"momntum": 0.9}),
        )  # fmt: skip
