"""The table of what other tools call settings: each name once, and values that say here what they say there."""

from __future__ import annotations

import pytest

from sftcore.config.fields import config_fields
from sftcore.config.foreign.entry import PEERS
from sftcore.config.foreign.table import ENTRIES, lookup
from sftcore.config.recipe import SECTIONS
from sftcore.core.errors import RecipeError


def test_each_name_stands_once_for_a_tool_and_is_no_key_of_ours():
    seen = set()
    for entry in ENTRIES:
        assert set(entry.peers) <= set(PEERS)
        for name in entry.names:
            for peer in entry.peers or ("",):
                assert (name, peer) not in seen
                seen.add((name, peer))
    ours = {*SECTIONS, *config_fields()}
    assert [name for name, peer in seen if not peer and name in ours] == []


def test_an_entry_without_a_key_says_why():
    assert [entry.names[0] for entry in ENTRIES if not entry.ours and not entry.note] == []


@pytest.mark.parametrize(
    ("peer", "name", "value", "settings"),
    [
        ("axolotl", "lora_r", 8, {"adapter.lora.r": 8}),
        ("axolotl", "lora_target_linear", True, {"adapter.lora.target_modules": "all-linear"}),
        ("llamafactory", "lora_target", "all", {"adapter.lora.target_modules": "all-linear"}),
        ("llamafactory", "lora_target", "q_proj,v_proj", {"adapter.lora.target_modules": "q_proj,v_proj"}),
        ("llamafactory", "val_size", 0.1, {"data.eval_fraction": 0.1}),
        ("llamafactory", "val_size", 200, {"data.eval_rows": 200}),
        ("axolotl", "val_set_size", 0, {}),
        ("axolotl", "val_set_size", "0.05", {"data.eval_fraction": 0.05}),
        ("axolotl", "bf16", "auto", {"bf16": True, "model.dtype": "bfloat16"}),
        ("axolotl", "bf16", False, {}),
        ("axolotl", "load_in_4bit", True, {"adapter.qlora.bits": 4}),
        ("axolotl", "load_in_4bit", False, {}),
        ("llamafactory", "quantization_bit", 8, {"adapter.qlora.bits": 8}),
        ("axolotl", "flash_attention", True, {"attention": "flash-2"}),
        ("axolotl", "flash_attention", False, {}),
        ("swift", "attn_impl", "flash_attn", {"attention": "flash-2"}),
        ("llamafactory", "flash_attn", "fa2", {"attention": "flash-2"}),
        ("trl", "attn_implementation", "flash_attention_2", {"attention": "flash-2"}),
        ("swift", "torch_dtype", "bfloat16", {"model.dtype": "bfloat16"}),
        ("swift", "truncation_strategy", "delete", {"long_rows": "drop"}),
        ("swift", "truncation_strategy", "left", {"long_rows": "cut", "truncation_mode": "keep_end"}),
        ("axolotl", "gradient_checkpointing", "unsloth",
         {"gradient_checkpointing": True, "activation_offloading": True}),
        ("axolotl", "train_on_inputs", False, {"completion_only_loss": True}),
        ("llamafactory", "train_on_prompt", True, {"completion_only_loss": False}),
        ("llamafactory", "plot_loss", True, {}),
        ("torchtune", "optimizer._component_", "torch.optim.AdamW", {"optim": "adamw_torch"}),
        ("llamafactory", "finetuning_type", "full", {}),
        ("swift", "train_type", "lora", {"adapter": "lora"}),
        ("trl", "warmup_ratio", 0.05, {"warmup_steps": 0.05}),
        ("axolotl", "group_by_length", "true", {"train_sampling_strategy": "group_by_length"}),
        ("axolotl", "wandb_project", "p", {"tracker.project": "p"}),
    ],
)  # fmt: skip
def test_a_value_of_another_tool_becomes_settings(peer, name, value, settings):
    assert lookup(name, peer).translated(value) == settings


def test_what_has_no_equivalent_is_refused_where_it_is_on():
    with pytest.raises(RecipeError, match=r"shift_attn has no equivalent|s2_attention has no equivalent"):
        lookup("shift_attn").translated(True)
    assert lookup("shift_attn").translated(False) == {}
    with pytest.raises(RecipeError, match="3 bits"):
        lookup("quantization_bit").translated(3)
    with pytest.raises(RecipeError, match="'dpo' has no equivalent"):
        lookup("stage", "llamafactory").translated("dpo")


def test_one_name_may_mean_different_things_to_different_tools():
    assert lookup("batch_size", "torchtune").ours == "per_device_train_batch_size"
    assert lookup("batch_size", "axolotl").ours == "gradient_accumulation_steps"
    assert lookup("model_name", "unsloth").ours == "model"
    assert lookup("model_name", "swift").ours == ""
