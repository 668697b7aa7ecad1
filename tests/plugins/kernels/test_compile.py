"""torch.compile on each decoder layer: the same loss and gradients, one graph for all layers and lengths."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from sftcore_plugins.kernels.compile import Compile

from sftcore import CheckError, LoadedModel, ModelError, ModelRequest, Plan, Selection
from sftcore.config.setup import check, set_up
from sftcore.plugin_api import decoder_layers
from tests.conftest import alpaca_rows, make_llama
from tests.model.test_bound_loss import build

BACKEND = "aot_eager" if shutil.which("g++") is None else "inductor"
"""Inductor needs a C++ compiler; it takes the graphs that the other one takes."""
PACKED = [[5, 7], [3, 9, 4], [20, 6], [11, 2, 30, 4], [13, 13, 13, 13, 13], [50], [1, 2, 3]]
"""Lengths of the documents in one row, step by step: no two rows are of one length or shape."""


def compiled(model, **options):
    report = Compile(**{"backend": "aot_eager", **options}).patch_kernels(LoadedModel(model, None), Plan(()))
    return copy.copy(report)


def packed_row(lengths, seed):
    ids = torch.randint(3, 96, (1, sum(lengths)), generator=torch.Generator().manual_seed(seed))
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    return {"input_ids": ids, "position_ids": positions, "labels": ids, "use_cache": False}


def train_step(model, row):
    model.train()
    model.zero_grad()
    loss = model(**row).loss
    loss.backward()
    return loss.detach(), {name: one.grad.clone() for name, one in model.named_parameters()}


@pytest.fixture
def counters():
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    yield counters
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Gemma2"])
def test_packed_rows_have_the_same_loss_and_gradients_without_a_graph_break(name, counters):
    plain = build(name)
    fast = copy.deepcopy(plain)
    compiled(fast, backend=BACKEND)
    for seed, lengths in enumerate(PACKED):
        row = packed_row(lengths, seed)
        (loss, expected), (found, got) = train_step(plain, row), train_step(fast, row)
        torch.testing.assert_close(found, loss, rtol=1e-5, atol=0)
        for key, gradient in expected.items():
            torch.testing.assert_close(got[key], gradient, rtol=1e-4, atol=1e-4 * gradient.abs().max().item())
    assert not counters["graph_break"]
    # with documents side by side, and of a single one; Gemma-2 has two kinds of layers
    assert counters["stats"]["unique_graphs"] <= (4 if name == "Gemma2" else 2)


@pytest.mark.slow
def test_layers_are_compiled_under_gradient_checkpointing(counters):
    plain = build("Llama")
    fast = copy.deepcopy(plain)
    compiled(fast)
    for model in (plain, fast):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    row = packed_row([5, 7], 0)
    (loss, expected), (found, got) = train_step(plain, row), train_step(fast, row)
    assert counters["stats"]["unique_graphs"] == 1
    torch.testing.assert_close(found, loss)
    for key, gradient in expected.items():
        torch.testing.assert_close(got[key], gradient)


def test_evaluation_and_generation_compile_nothing(counters):
    model = build("Llama").eval()
    expected = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False)
    compiled(model)
    found = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False)
    assert found.equal(expected)
    assert counters["stats"]["unique_graphs"] == 0


def test_every_layer_is_reported_and_given_back():
    model = build("Llama")
    report = compiled(model)
    assert report.replaced == ("the forward of 2 layers (aot_eager)",)
    assert all("forward" in vars(layer) for layer in model.model.layers)
    report.undo()
    assert not any("forward" in vars(module) for module in model.modules())


def test_layers_are_found_behind_an_adapter():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(build("Llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    assert decoder_layers(model) == list(model.get_base_model().model.layers)


def test_a_model_without_such_layers_is_left_alone():
    report = compiled(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    assert report.replaced == ()
    assert report.skipped == {"layers": "Sequential has none that transformers marks"}


def checked(settings, **options):
    setup = set_up([Selection("kernel", "compile", options)], settings, ModelRequest(), where="SFTConfig")
    check(setup)


def test_torch_compile_beside_it_is_refused():
    with pytest.raises(CheckError, match="torch_compile compiles the whole model"):
        checked({"torch_compile": True})


def test_a_mode_that_the_backend_does_not_have_is_refused():
    with pytest.raises(CheckError, match='mode "max-autotune" is one of inductor'):
        checked({}, backend="aot_eager", mode="max-autotune")


def test_without_a_compiler_inductor_is_refused_on_a_cpu(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(CheckError, match="no C\\+\\+ compiler is installed"):
        checked({"use_cpu": True})
    checked({"use_cpu": True}, backend="aot_eager")
    if not torch.accelerator.is_available():
        with pytest.raises(ModelError, match="no C\\+\\+ compiler is installed"):
            compiled(build("Llama"), backend="inductor")


def test_an_attention_that_cannot_be_compiled_is_refused():
    chosen = [Selection("kernel", "compile"), Selection("attention", "varlen")]
    with pytest.raises(CheckError, match='attention "varlen" cannot be compiled: it declares'):
        check(set_up(chosen, {}, ModelRequest(), where="SFTConfig"))


@pytest.mark.slow
@pytest.mark.parametrize("selective", [None, "attention"])
def test_a_packed_run_under_checkpointing_has_the_losses_of_one_without(selective, tokenizer, tmp_path, counters):
    from datasets import Dataset
    from peft import LoraConfig

    from sftcore import SFTConfig, SFTTrainer

    def losses(plugins):
        model = make_llama(tokenizer)
        args = SFTConfig(
            str(tmp_path / "run"), max_steps=3, per_device_train_batch_size=2, logging_steps=1, report_to="none",
            learning_rate=1e-2, use_cpu=True, packing=True, max_length=64, plugins=plugins,
            gradient_checkpointing_kwargs={"selective": selective} if selective else None,
        )  # fmt: skip
        trainer = SFTTrainer(
            model, args, train_dataset=Dataset.from_list(alpaca_rows(24)), processing_class=tokenizer,
            peft_config=LoraConfig(r=2, target_modules=["q_proj", "up_proj"]),
        )  # fmt: skip
        trainer.train()
        assert not any("forward" in vars(layer) for layer in model.model.layers)
        return trainer, [row["loss"] for row in trainer.state.log_history[:-1]]

    _, plain = losses({})
    assert counters["stats"]["unique_graphs"] == 0
    trainer, fast = losses({"kernel": {"compile": {"backend": "aot_eager"}}})
    assert counters["stats"]["unique_graphs"] > 0
    assert any('kernel "compile" replaced the forward of 2 layers' in note for note in trainer.loaded.notes)
    torch.testing.assert_close(torch.tensor(fast), torch.tensor(plain), rtol=1e-5, atol=0)
    assert not counters["graph_break"]
