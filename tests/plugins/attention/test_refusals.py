"""What an attention does not support is refused before weights are read, as far as files and settings tell it."""

from __future__ import annotations

import json

import attrs
import pytest
from datasets import Dataset

from sftcore import AttentionBackend, CheckError, ModelError, Plan, Probe, SFTTrainer
from sftcore.config import attention as support
from sftcore.core.types import ModelRequest, Selection
from tests.conftest import alpaca_rows, make_llama
from tests.train.test_trainer import config

CPU = {"use_cpu": True}
UNPADDED = {"padding_free": True, "max_length": None}


def trainer(tmp_path, folder, attention, **fields):
    args = config(tmp_path, plugins={"attention": attention}, **fields)
    return SFTTrainer(str(folder), args, train_dataset=Dataset.from_list(alpaca_rows(4)))


def without_weights(tmp_path, model_folder, **changes):
    """The folder of a model with a changed config.json and weights that nobody could read."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in model_folder.iterdir():
        (folder / file.name).write_bytes(b"not read" if file.suffix == ".safetensors" else file.read_bytes())
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


REFUSED = [
    ("flash-1", {"padding_free": False}, {}, "flash-1\": it does not accept padding.* Set padding_free: true"),
    ("flash-1", {"packing": True, "eval_packing": False, "plugins": {"collator": "padded"}}, {}, "accept padding"),
    ("flash-1", UNPADDED, {"attention_dropout": 0.1}, r"has no attention dropout on the device cpu.*is 0\.1"),
    ("flash-1", UNPADDED, {"attn_logit_softcapping": 30.0}, "it does not support a soft-cap"),
    ("flash-2", {"bf16": True}, {}, "flash-2\": it does not support the device cpu. It supports: cuda, xpu"),
    ("flash-2", {}, {}, "it does not support the dtype float32. It supports: float16, bfloat16"),
    ("flex", {}, {}, "flex\": it has no backward pass on the device cpu, so it cannot be trained with"),
    ("flex", {}, {"attention_dropout": 0.1}, "it has no attention dropout, but the model's attention_dropout"),
]  # fmt: skip


@pytest.mark.parametrize(("attention", "fields", "changes", "said"), REFUSED)
def test_check_refuses_it_before_weights_are_read(
    tmp_path, model_folder, monkeypatch, attention, fields, changes, said
):
    monkeypatch.setattr("sftcore.core.discovery._missing", lambda *args: ())  # flash-attn counts as installed
    folder = without_weights(tmp_path, model_folder, **changes)
    plugins = {"attention": attention, **fields.get("plugins", {})}
    args = config(tmp_path, **{**fields, "plugins": plugins})
    with pytest.raises(CheckError, match=said):
        SFTTrainer(str(folder), args, train_dataset=Dataset.from_list(alpaca_rows(4)))


@pytest.mark.parametrize(("attention", "said"), [
    ("flash-1", r"attention_dropout is 0\.1"), ("flex", "no backward pass on the device cpu"),
])  # fmt: skip
def test_a_ready_model_is_refused_too(tmp_path, tokenizer, attention, said):
    model = make_llama(tokenizer, attention_dropout=0.1)
    args = config(tmp_path, plugins={"attention": attention}, **UNPADDED)
    with pytest.raises((CheckError, ModelError), match=said):
        SFTTrainer(model, args, train_dataset=Dataset.from_list(alpaca_rows(4)), processing_class=tokenizer)


def test_the_extra_of_flash_attn_is_named(tmp_path, model_folder):
    with pytest.raises(Exception, match=r'needs flash-attn>=2\.8.*pip install "sftcore\[flash-2\]"'):
        trainer(tmp_path, model_folder, "flash-2")


HALF = {"bf16": False, "model_init_kwargs": {"dtype": "bfloat16"}}


@pytest.mark.parametrize("precision", [{"bf16": True}, HALF], ids=["autocast", "weights"])
def test_flash_2_trains_with_a_double_of_flash_attn(tmp_path, model_folder, flash_attn, precision):
    common = {**precision, "max_steps": 2, "logging_steps": 1}
    rows = Dataset.from_list(alpaca_rows(8))
    plain = config(tmp_path, **common, padding_free=False, plugins={"attention": "sdpa"})
    wanted = SFTTrainer(str(model_folder), plain, train_dataset=rows)
    wanted.train()
    for fields in ({}, {"padding_free": False}, UNPADDED, {"packing": True, "max_length": 64}):
        args = config(tmp_path, **{**common, **fields}, plugins={"attention": "flash-2"})
        got = SFTTrainer(str(model_folder), args, train_dataset=rows)
        assert got.model.config._attn_implementation == "flash_attention_2"
        before = sum(flash_attn.calls.values())
        got.train()
        assert sum(flash_attn.calls.values()) > before
        assert got.bound_loss.gathers
        assert got.padding_free == ("padding_free" not in fields or bool(fields["padding_free"]))
        if not fields.get("packing"):
            for one, other in zip(got.state.log_history[:2], wanted.state.log_history[:2], strict=True):
                assert one["loss"] == pytest.approx(other["loss"], rel=2e-2)


# --- What can be known without torch --------------------------------------------------------------------------------
def plan(settings=None, dtype="float32", collator="padded") -> Plan:
    return Plan((Selection("collator", collator),), settings or {}, ModelRequest("m", dtype=dtype))


@pytest.mark.parametrize(
    ("settings", "build", "visible", "device"),
    [
        (CPU, "2.13.0", None, "cpu"),
        ({}, "2.13.0+cpu", None, "cpu"),
        ({}, "2.13.0", "", "cpu"),
        ({}, "2.13.0+cu128", "-1", "cpu"),
        ({}, "2.13.0", "0", None),
        ({}, "2.13.0+xpu", "", None),
        ({}, "2.13.0", None, None),
    ],
)
def test_the_device_is_known_where_it_can_only_be_the_cpu(monkeypatch, settings, build, visible, device):
    monkeypatch.setattr(support.importlib.metadata, "version", lambda name: build)
    monkeypatch.setattr(support.sys, "platform", "linux")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert support.planned_device(plan(settings)) == device


@pytest.mark.parametrize(
    ("settings", "dtype", "config", "device", "wanted"),
    [
        ({"bf16": True}, "float32", {}, None, "bfloat16"),
        ({"fp16": True}, "float32", {}, None, "float16"),
        ({}, "bfloat16", {}, "cpu", "bfloat16"),
        ({}, "float32", {}, None, None),
        ({"bf16": False}, "float32", {}, None, "float32"),
        ({}, "auto", {"torch_dtype": "float16"}, "cpu", "float16"),
        ({}, "auto", {}, "cpu", None),
    ],
)
def test_the_dtype_is_that_of_autocast_or_of_the_weights(settings, dtype, config, device, wanted):
    assert support.planned_dtype(plan(settings, dtype), Probe(config), device) == wanted


def test_dtypes_may_depend_on_the_device():
    backend = AttentionBackend("x", dtypes={"cuda": ("bfloat16",), "cpu": ("float32",)})
    assert not list(support.shortcomings(backend, "cpu", "float32", {}, padded=False))
    assert not list(support.shortcomings(backend, None, "float32", {}, padded=False))
    ((what, fix),) = support.shortcomings(backend, "cuda", "float32", {}, padded=False)
    assert (what, fix.partition(".")[0]) == ("does not support the dtype float32", "It supports: bfloat16")


def test_a_window_that_a_gpu_would_refuse_is_warned_of(monkeypatch):
    from sftcore_plugins.attention.flash1 import Flash1

    monkeypatch.setattr("sftcore_plugins.attention.flash1.planned_device", lambda plan: None)
    config = {"sliding_window": 512, "layer_types": ["sliding_attention", "full_attention"]}
    unpadded = attrs.evolve(plan({"max_length": 1024}), selections=())
    (found,) = Flash1().check(unpadded, Probe(config))
    assert (found.severity, "512 tokens" in found.what) == ("warning", True)
    assert not Flash1().check(attrs.evolve(unpadded, settings={"max_length": 512}), Probe(config))
    assert not Flash1().check(unpadded, Probe({**config, "layer_types": ["full_attention"]}))
