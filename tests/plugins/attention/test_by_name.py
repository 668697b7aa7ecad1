"""Attentions that users ask for by transformers' name for them: flash-2, flash-3, flex, kernels from the hub."""

from __future__ import annotations

import pytest
from datasets import Dataset

from sftcore import CheckError, ModelError, RecipeError, SFTTrainer
from sftcore.config.recipe import parse_recipe
from sftcore.config.setup import set_up_recipe
from tests.conftest import alpaca_rows
from tests.train.test_trainer import config, losses

KERNEL = "kernels-community/flash-attn3"
PADDED = {"padding_free": False, "plugins": {"attention": "sdpa"}}
LAYOUTS = [{}, {"padding_free": False}, {"padding_free": True}, {"packing": True, "max_length": 64}]


def trained(tmp_path, folder, **fields) -> SFTTrainer:
    args = config(tmp_path, **{"bf16": True, "max_steps": 2, "logging_steps": 1, **fields})
    trainer = SFTTrainer(str(folder), args, train_dataset=Dataset.from_list(alpaca_rows(8)))
    trainer.train()
    return trainer


def named(name: str) -> dict[str, dict[str, str]]:
    return {"model_init_kwargs": {"attn_implementation": name}}


def chosen(setup) -> tuple[str, dict]:
    (selection,) = setup.plan.selected("attention")
    return selection.name, dict(selection.options)


@pytest.fixture
def with_packages(monkeypatch):
    monkeypatch.setattr("sftcore.core.discovery._missing", lambda *args: ())  # what plugins need counts as installed


def set_up(**keys):
    return set_up_recipe(parse_recipe({"model": "some/model", "data": "rows.jsonl", **keys}, place="recipe.yaml"))


@pytest.mark.parametrize(
    ("name", "plugin", "options"),
    [
        ("flash_attention_2", "flash-2", {}),
        ("flash_attention_3", "flash-3", {}),
        ("flex_attention", "flex", {}),
        ("sdpa", "sdpa", {}),
        (KERNEL, "hub", {"kernel": KERNEL}),
        ("owner/name@main:attend", "hub", {"kernel": "owner/name@main:attend"}),
    ],
)
def test_transformers_names_choose_our_plugins(with_packages, name, plugin, options):
    setup = set_up(model={"name": "m", "init_kwargs": {"attn_implementation": name}})
    assert chosen(setup) == (plugin, options)
    assert setup.plan.attention.implementation == name


@pytest.mark.parametrize("name", ["owner/name/more", "owner/", "flash_attention_5", "a b/c"])
def test_other_names_are_refused(with_packages, name):
    with pytest.raises(Exception, match=f'there is no attention named "{name.partition("@")[0]}"'):
        set_up(model={"name": "m", "init_kwargs": {"attn_implementation": name}})


def test_a_kernel_is_owner_and_name(with_packages):
    assert chosen(set_up(attention={"hub": {"kernel": KERNEL}})) == ("hub", {"kernel": KERNEL})
    with pytest.raises(RecipeError, match=r'kernel is owner/name, .* got "flash-attn3"'):
        set_up(attention={"hub": {"kernel": "flash-attn3"}})


# --- With doubles ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", ["flash_attention_3", KERNEL])
def test_it_trains_as_sdpa_does(tmp_path, model_folder, request, name, layout):
    if name == KERNEL:
        module, asked = request.getfixturevalue("kernel_from_hub")
    else:
        module, asked = request.getfixturevalue("flash_attn_3"), [(KERNEL, None)]
    before = dict(module.calls)
    got = trained(tmp_path, model_folder, **named(name), **layout)
    assert got.model.config._attn_implementation == name
    assert asked[0] == (KERNEL, None)
    end_to_end = layout.get("padding_free", True)
    assert got.padding_free is end_to_end
    assert module.calls["flash_attn_varlen_func"] > before["flash_attn_varlen_func"] or not end_to_end
    assert sum(module.calls.values()) > sum(before.values())
    assert got.bound_loss.gathers
    wanted = trained(tmp_path, model_folder, **(PADDED if not layout.get("packing") else layout))
    assert losses(got) == pytest.approx(losses(wanted), rel=2e-2)


def test_flash_3_is_what_a_gpu_takes_first(tmp_path, flash_attn_3, monkeypatch):
    monkeypatch.setattr("sftcore.config.automatic.device_of", lambda settings: "cuda")
    setup = set_up(model={"name": "m", "dtype": "bfloat16"}, bf16=True)
    assert [one.name for one, _ in setup.plan.candidates] == ["flash-3", "varlen", "sdpa", "eager"]
    assert setup.plan.reasons["attention"] == "the fastest of flash-3, varlen, sdpa, eager on cuda"


def test_flash_2_comes_after_it_and_before_varlen(tmp_path, flash_attn, monkeypatch):
    monkeypatch.setattr("sftcore.config.automatic.device_of", lambda settings: "cuda")
    setup = set_up(model={"name": "m", "dtype": "bfloat16"}, bf16=True)
    assert [one.name for one, _ in setup.plan.candidates] == ["flash-2", "varlen", "sdpa", "eager"]
    padded = set_up(model={"name": "m", "dtype": "bfloat16"}, bf16=True, padding_free=False)
    assert [one.name for one, _ in padded.plan.candidates] == ["flash-2", "sdpa", "eager"]
    in_float32 = set_up(model={"name": "m", "dtype": "float32"}, bf16=False)
    assert [one.name for one, _ in in_float32.plan.candidates] == ["varlen", "sdpa", "eager"]


def test_what_is_not_installed_is_no_candidate(monkeypatch):
    monkeypatch.setattr("sftcore.config.automatic.device_of", lambda settings: "cuda")
    assert [one.name for one, _ in set_up(bf16=True).plan.candidates] == ["varlen", "sdpa", "eager"]


def test_auto_takes_flash_2_and_trains_as_sdpa_does(tmp_path, model_folder, flash_attn):
    got = trained(tmp_path, model_folder)
    assert (got.model.config._attn_implementation, got.padding_free) == ("flash_attention_2", True)
    assert got.bound_loss.gathers
    assert "attention flash-2: the fastest of flash-2, varlen, sdpa, eager on cpu" in got.loaded.notes
    assert losses(got) == pytest.approx(losses(trained(tmp_path, model_folder, **PADDED)), rel=2e-2)


# --- Refusals -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("flash_attention_3", r'attention "flash-3" needs flash-attn-3>=3\.0\.0b1'),
        (KERNEL, r'attention "hub" needs kernels>=0\.16.*pip install "sftcore\[hub\]"'),
    ],
)
def test_a_missing_package_is_named(tmp_path, model_folder, name, said):
    with pytest.raises(Exception, match=said):
        trained(tmp_path, model_folder, **named(name))


@pytest.mark.parametrize("name", ["flash_attention_3", KERNEL])
def test_a_cpu_is_refused(tmp_path, model_folder, with_packages, name):
    with pytest.raises(CheckError, match=r"it does not support the device cpu\. It supports: cuda"):
        trained(tmp_path, model_folder, **named(name))


def test_a_publisher_that_is_not_trusted_is_refused_by_transformers(tmp_path, model_folder, kernel_from_hub):
    with pytest.raises(ModelError, match="somebody/kernel is not of a trusted publisher"):
        trained(tmp_path, model_folder, **named("somebody/kernel"))


def test_flash_3_refuses_a_model_with_attention_dropout(tmp_path, tokenizer, flash_attn_3):
    from tests.conftest import make_llama

    make_llama(tokenizer, attention_dropout=0.1).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    with pytest.raises(CheckError, match=r"has no attention dropout, but the model's attention_dropout is 0\.1"):
        trained(tmp_path, tmp_path / "m", **named("flash_attention_3"))
