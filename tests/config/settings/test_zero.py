"""DeepSpeed by name: the configuration that transformers gets, and names that there are not."""

from __future__ import annotations

import pytest

from sftcore import ConflictError, RecipeError, SFTConfig
from sftcore.config.fields import config_fields
from sftcore.config.settings.values import wrong_value
from sftcore.config.settings.zero import NAMES, by_name

WANTED = config_fields()["deepspeed"]


@pytest.mark.parametrize(
    ("name", "stage", "offloaded"),
    [("zero1", 1, []), ("zero2", 2, []), ("zero2-offload", 2, ["offload_optimizer"]), ("zero3", 3, []),
     ("zero3-offload", 3, ["offload_optimizer", "offload_param"]),
     ("ZERO3_OFFLOAD", 3, ["offload_optimizer", "offload_param"])],
)  # fmt: skip
def test_a_name_is_a_stage_with_all_else_left_to_the_run(name, stage, offloaded):
    made = by_name(name)
    zero = made.pop("zero_optimization")
    assert zero.pop("stage") == stage
    assert zero == {one: {"device": "cpu", "pin_memory": True} for one in offloaded}
    flat = [value.get("enabled") if isinstance(value, dict) else value for value in made.values()]
    assert set(flat) == {"auto"}
    assert wrong_value("deepspeed", name, WANTED, "here") is None


def test_a_name_is_made_anew_for_each_run():
    by_name("zero2")["zero_optimization"]["stage"] = 9
    assert by_name("zero2")["zero_optimization"] == {"stage": 2}


def test_other_values_are_what_they_were(tmp_path):
    file = tmp_path / "zero3"
    file.write_text("{}")
    assert by_name(str(file)) == str(file)
    assert by_name({"zero_optimization": {}}) == {"zero_optimization": {}}
    assert by_name(None) is None


def test_a_wrong_name_is_answered_with_the_names(tmp_path):
    with pytest.raises(RecipeError) as caught:
        SFTConfig(str(tmp_path), deepspeed="zero4")
    assert all(name in str(caught.value) for name in NAMES)


def test_a_name_needs_deepspeed_and_its_launcher(tmp_path):
    with pytest.raises(ConflictError, match=r"deepspeed is not installed|needs a launcher"):
        SFTConfig(str(tmp_path), deepspeed="zero2", use_cpu=True)
