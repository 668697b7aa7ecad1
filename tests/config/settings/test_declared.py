"""What is read from the source of libraries is what their classes say."""

from __future__ import annotations

import dataclasses
import enum
import importlib.metadata
import inspect
import typing

import pytest
import torch.utils.checkpoint
from accelerate.utils.dataclasses import DynamoBackend
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.trainer_utils import FSDPOption

from sftcore import SFTConfig
from sftcore.config.settings import combined, declared
from sftcore.config.settings.values import RANGES, names_of


@pytest.mark.parametrize("field", dataclasses.fields(TrainingArguments), ids=lambda field: field.name)
def test_the_names_of_a_field_are_those_that_transformers_declares(field):
    hint = typing.get_type_hints(TrainingArguments)[field.name]
    arms = [inner for arm in (typing.get_args(hint) or (hint,)) for inner in (typing.get_args(arm) or (arm,))]
    enums = [arm for arm in arms if isinstance(arm, type) and issubclass(arm, enum.Enum)]
    wanted = [one.value for arm in enums for one in arm] or list(field.metadata.get("choices") or ())
    assert list(declared.choices(field.name)) == wanted


def test_lists_that_no_field_declares_are_those_of_the_libraries():
    assert set(declared.trackers()) == set(INTEGRATION_TO_CALLBACK)
    assert set(names_of("fsdp")) == {one.value for one in FSDPOption}
    assert set(names_of("torch_compile_backend")) == {one.value.lower() for one in DynamoBackend}


@pytest.mark.parametrize("kind", TYPE_TO_SCHEDULER_FUNCTION, ids=lambda kind: kind.value)
def test_the_arguments_of_a_schedule_are_those_of_its_function(kind):
    given = inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[kind]).parameters
    own = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")
    wanted = {name: one.default is one.empty for name, one in given.items() if name not in own}
    is_open = any(one.kind is one.VAR_KEYWORD for one in given.values())
    assert declared.schedule_arguments(kind.value) == (None if is_open else wanted)


def test_every_number_has_a_range():
    hints = typing.get_type_hints(SFTConfig)
    numbers = {
        one.name
        for one in dataclasses.fields(SFTConfig)
        if one.init and {int, float} & set(typing.get_args(hints[one.name]) or (hints[one.name],))
    }
    assert numbers == set(RANGES)


def test_every_tracker_is_known_with_its_package():
    assert set(combined.PACKAGES_OF_TRACKERS) == set(declared.trackers())


def test_packages_of_optimizers_are_those_that_transformers_asks_for():
    source = declared.source("transformers.trainer_optimizer")
    missing = {
        name: module
        for name, (module, _) in combined.PACKAGES_OF_OPTIMIZERS.items()
        if module not in source and module.replace("_torch", "") not in source
    }
    assert missing == {}
    needing = {name for name in names_of("optim") if any(part in name for part in combined.PACKAGES_OF_OPTIMIZERS)}
    assert set(names_of("optim")) - needing == {
        "adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop",
    }  # fmt: skip


def test_options_of_checkpointing_are_those_of_torch():
    parameters = inspect.signature(torch.utils.checkpoint.checkpoint).parameters
    named = {name for name, one in parameters.items() if one.kind is one.KEYWORD_ONLY}
    assert set(declared.checkpointing_arguments()) == named | {"preserve_rng_state"}


def test_a_library_that_is_not_installed_is_named():
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.distribution("no_such_library")
    with pytest.raises(ValueError, match="no_such_library is not installed"):
        declared.source("no_such_library.module")
