"""Every field of SFTConfig with a wrong type, a misspelt name and a number out of range: one error that names it.

The wrong values come from the real class: its annotations, the members of transformers' enumerations and what it
declares for argparse. None of them is taken from the tables that the checks themselves use.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any

import pytest
from accelerate.utils.dataclasses import DynamoBackend
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import FSDPOption

from sftcore import SFTConfig, SFTCoreError
from sftcore.cli import cli
from tests.conftest import alpaca_rows

FIELDS = [one for one in dataclasses.fields(SFTConfig) if one.init]
HINTS = typing.get_type_hints(SFTConfig)
VALUES: tuple[Any, ...] = ("perhaps", 3, 2.5, True, [1, 2], {"a": 1})
"""One value of each plain type."""
TAKES_MORE = {
    "fsdp": (bool, list), "accelerator_config": (dict,), "debug": (list,), "callbacks": (list,),
    "sample_prompts": (dict,),
}  # fmt: skip
"""Types that are taken although they are not declared."""
IN_PROSE = {
    "report_to": list(INTEGRATION_TO_CALLBACK), "fsdp": [one.value for one in FSDPOption],
    "torch_compile_backend": [one.value.lower() for one in DynamoBackend],
    "torch_compile_mode": ["default", "reduce-overhead", "max-autotune"],
    "include_num_input_tokens_seen": ["all", "non_padding", "no"], "include_for_metrics": ["inputs", "loss"],
    "adapter_dtype": ["float32", "bfloat16"], "on_nonfinite": ["stop", "skip", "continue"],
    "packing_strategy": ["bfd", "bfd_split", "wrapped"], "truncation_mode": ["keep_start", "keep_end"],
    "long_rows": ["cut", "drop", "split", "refuse"],
    "mask_style": ["turn", "trl"], "pad_to_multiple_of": ["auto", "none"],
}  # fmt: skip
"""Names that no annotation declares."""


def arms(name: str) -> set[Any]:
    hint = HINTS[name]
    united = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return {typing.get_origin(one) or one for one in united} | set(TAKES_MORE.get(name, ()))


def of_wrong_type() -> Iterator[tuple[str, Any]]:
    for field in FIELDS:
        known = arms(field.name)
        for value in VALUES:
            fits = type(value) in known or (type(value) is int and float in known)
            whole_lists = value == [1, 2] and list in known and field.name != "debug"
            if not fits or whole_lists:
                yield field.name, value


def names_of(field: Any) -> list[str]:
    declared = [arm for arm in arms(field.name) if isinstance(arm, type) and issubclass(arm, enum.Enum)]
    choices = [one.value for arm in declared for one in arm] or list(field.metadata.get("choices") or ())
    return IN_PROSE.get(field.name, choices)


def misspelt() -> Iterator[tuple[str, Any, str]]:
    for field in FIELDS:
        for right in names_of(field)[:4]:
            wrong = f"{right[:-1]}{right[-1] * 3}"
            yield field.name, [wrong] if field.name == "include_for_metrics" else wrong, right


def out_of_range() -> Iterator[tuple[str, Any]]:
    for field in FIELDS:
        if arms(field.name) & {int, float}:
            yield field.name, -7
            if float in arms(field.name):
                yield field.name, float("nan")
    for name in (
        "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "num_train_epochs",
        "max_steps", "logging_steps", "save_steps", "pad_to_multiple_of", "max_length", "dataset_num_proc",
        "eval_accumulation_steps", "torch_empty_cache_steps", "max_image_pixels",
    ):  # fmt: skip
        yield name, 0
    yield from [("adam_beta1", 1.0), ("label_smoothing_factor", 1.5), ("seed", 2**32), ("divergence_factor", 1.0)]


WRONG: dict[str, list[Any]] = {one.name: [] for one in FIELDS}
for _name, _value, *_ in (*of_wrong_type(), *misspelt(), *out_of_range()):
    WRONG[_name].append(_value)


def test_every_field_has_a_wrong_value():
    assert [name for name, values in WRONG.items() if not values] == []


@pytest.fixture
def tiny_recipe(tmp_path, write, model_folder) -> list[str]:
    """A run that is right: words of the command line."""
    rows = write("train.jsonl", "".join(json.dumps(row) + "\n" for row in alpaca_rows(4)))
    return [f"model={model_folder}", f"data={rows}", f"output_dir={tmp_path / 'out'}", "use_cpu=true"]


@pytest.mark.parametrize("name", sorted(WRONG))
def test_python_is_told_which_field_is_wrong(name, tmp_path):
    for value in WRONG[name]:
        with pytest.raises(SFTCoreError) as caught:
            SFTConfig(**{"output_dir": str(tmp_path), name: value})
        assert name in str(caught.value), value
        assert "\n" not in str(caught.value), value


@pytest.mark.parametrize("name", sorted(WRONG))
def test_the_command_line_is_told_which_field_is_wrong(name, tiny_recipe):
    for value in WRONG[name]:
        text = ".nan" if value != value else json.dumps(value)
        with pytest.raises(SFTCoreError) as caught:
            cli.main(["train", *tiny_recipe, f"{name}={text}"], standalone_mode=False)
        assert name in str(caught.value), value
        assert "\n" not in str(caught.value), value


@pytest.mark.parametrize("name", sorted({name for name, _, _ in misspelt()}))
def test_a_misspelt_name_is_offered_the_right_one(name, tmp_path):
    for _, wrong, right in filter(lambda one: one[0] == name and len(one[2]) > 3, misspelt()):
        with pytest.raises(SFTCoreError, match=f'Did you mean "{right}"'):
            SFTConfig(str(tmp_path), **{name: wrong})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"optim": "adamx"}, 'Did you mean "adamw_torch"?'),
        ({"optim": "Adam"}, 'Did you mean "adamw_torch"?'),
        ({"optim": "paged_adamw8bit"}, 'Did you mean "paged_adamw_8bit"?'),
        ({"eval_strategy": "nevr"}, 'Did you mean "no"?'),
        ({"label_smoothing_factor": 10}, "It must be at least 0 and below 1, such as 0.1 (0, the default, is off)."),
    ],
)
def test_what_other_tools_call_it_is_near_too(fields, said, tmp_path):
    with pytest.raises(SFTCoreError) as caught:
        SFTConfig(str(tmp_path), **fields)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "setting", ["lr_scheduler_type=cosin", "learning_rate='2e-5'", "logging_steps=0", "report_to=[wandbb]"]
)
def test_it_is_said_before_torch_is_imported(setting, tiny_recipe):
    """Which is what makes it take a quarter to three quarters of a second."""
    code = (
        "import sys\nfrom sftcore.cli import main\ntry:\n    main()\nfinally:\n"
        "    assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "train", *tiny_recipe, setting], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert setting.partition("=")[0] in done.stderr
