"""Values that other tools write for settings: taken, or answered with the value that means the same here."""

from __future__ import annotations

import pytest

from sftcore.config.recipe import load_recipe, parse_recipe
from sftcore.config.setup import set_up_recipe
from sftcore.config.sft_config import SFTConfig
from sftcore.core.errors import SFTCoreError

REFUSED = [
    ({"gradient_checkpointing": "unsloth"}, "Use true. With activation_offloading: true"),
    ({"gradient_checkpointing": "offload"}, "Use true. With activation_offloading: true"),
    ({"attention": "flash_attention_2"}, 'Did you mean "flash-2"?'),
    ({"attention": "fa2"}, 'Did you mean "flash-2"?'),
    ({"attention": "flash_attn"}, 'Did you mean "flash-2"?'),
    ({"attention": "flash_attention_3"}, 'Did you mean "flash-3"?'),
    ({"format": "completion"}, 'Did you mean "text"?'),
    ({"format": "chatml"}, 'Did you mean "chat"?'),
    ({"loss": "cut_cross_entropy"}, 'Did you mean "cce"?'),
    ({"model": {"name": "m", "dtype": "bf16"}}, 'Did you mean "bfloat16"?'),
    ({"model": {"name": "m", "dtype": "half"}}, 'Did you mean "float16"?'),
    ({"optim": "torch.optim.AdamW"}, 'Did you mean "adamw_torch"?'),
    ({"optim": "adamw_hf"}, 'Did you mean "adamw_torch"?'),
    ({"lr_scheduler_type": "cosine_with_warmup"}, 'Did you mean "cosine"?'),
    ({"adapter": {"lora": {"lora_target": "all"}}}, 'Did you mean "target_modules"?'),
    ({"adapter": {"lora": {"target": "all"}}}, 'Did you mean "target_modules"?'),
    ({"adapter": {"lora": {"rank": 8}}}, 'Did you mean "r"?'),
    ({"adapter": {"lora": {"bias": "none"}}}, "Write arguments: {bias: none}."),
    ({"learning_rate": "2e-4"}, "Write 0.0002 without quotes."),
]


def refused(raw):
    with pytest.raises(SFTCoreError) as caught:
        set_up_recipe(parse_recipe({"model": "m", "data": "d.jsonl", **raw}))
    return str(caught.value)


@pytest.mark.parametrize(("raw", "said"), REFUSED)
def test_a_value_of_another_tool_is_answered_with_ours(raw, said):
    answer = refused(raw)
    assert said in answer
    assert answer.count("Did you mean") <= 1


@pytest.mark.parametrize(
    "raw", [{"report_to": "nonsense"}, {"lr_scheduler_type": "rex"}, {"optim": "soap"}, {"attention": "s2_attention"}]
)
def test_a_value_that_is_near_to_nothing_gets_no_hint(raw):
    assert "Did you mean" not in refused(raw)


@pytest.mark.parametrize("auto", ["auto", "Auto"])
def test_bf16_auto_is_what_no_bf16_is(auto, tmp_path):
    assert parse_recipe({"model": "m", "data": "d", "bf16": auto}).training == {"bf16": None}
    assert load_recipe(None, ["model=m", "data=d", f"bf16={auto}", "fp16=true"]).training["bf16"] is None
    made, plain = SFTConfig(str(tmp_path), bf16=auto, use_cpu=True), SFTConfig(str(tmp_path), use_cpu=True)
    assert made.bf16 is plain.bf16 is False
    made.bf16 = auto
    made.settle()
    assert made.bf16 is False
    with pytest.raises(SFTCoreError, match="bf16 takes"):
        SFTConfig(str(tmp_path), bf16="automatic")


def test_fsdp_is_taken_as_a_list_of_words(tmp_path):
    assert SFTConfig(str(tmp_path), fsdp=["full_shard", "auto_wrap"], use_cpu=True).fsdp
    assert parse_recipe({"model": "m", "data": "d", "fsdp": ["full_shard", "auto_wrap"]}).training["fsdp"]
    with pytest.raises(SFTCoreError, match=r'fsdp "full_shrad" is not known\. Did you mean "full_shard"'):
        SFTConfig(str(tmp_path), fsdp=["full_shrad"])


def test_from_python_the_attention_is_answered_too(tmp_path):
    made = SFTConfig(str(tmp_path), use_cpu=True, plugins={"attention": "flash_attention_2"})
    assert made.plugins == {"attention": "flash_attention_2"}
    with pytest.raises(SFTCoreError, match=r"gradient_checkpointing takes bool .* Use true"):
        SFTConfig(str(tmp_path), gradient_checkpointing="unsloth")


def test_a_warm_up_share_says_how_it_is_written_today(tmp_path):
    with pytest.warns(FutureWarning, match="warmup_ratio is now warmup_steps, where a value below 1 is a share of all"):
        made = SFTConfig(str(tmp_path), warmup_ratio=0.05, use_cpu=True)
    assert made.warmup_steps == 0.05
