"""Cut cross-entropy: its place in a run, with a double of the package that is as strict as the real one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from sftcore_plugins.losses.cce import CutCrossEntropy, CutCrossEntropyLoss

from sftcore import CheckError, ModelError, Plan, SFTTrainer
from sftcore.model.bound_loss import bind_loss
from tests.asking import ask
from tests.conftest import alpaca_rows, make_llama
from tests.model.test_bound_loss import batch, build, gradients, reference
from tests.train.test_trainer import config

SHAPES = ["Llama", "Qwen3", "Gemma2", "Cohere", "Granite"]


@pytest.fixture
def package(monkeypatch):
    """The double, importable under the package's name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "doubles"))
    import cut_cross_entropy

    cut_cross_entropy.calls.clear()
    yield cut_cross_entropy
    del sys.modules["cut_cross_entropy"]


@pytest.fixture
def counts_as_installed(monkeypatch):
    monkeypatch.setattr("sftcore.core.discovery._missing", lambda *args: ())


def trainer(tmp_path, model, tokenizer, **fields):
    args = config(tmp_path, loss_type="cce", **fields)
    rows = Dataset.from_list(alpaca_rows(4))
    return SFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("weighted", [True, False])
def test_loss_and_gradients_are_those_of_the_models_own_logits(package, name, weighted):
    model, inputs = build(name), batch()
    weights = torch.rand(inputs["labels"].shape, generator=torch.Generator().manual_seed(2)) if weighted else None
    wanted = reference(model, inputs, weights) / 7
    wanted.backward()
    expected = gradients(model)
    bound = bind_loss(model, CutCrossEntropyLoss())
    assert bound.gathers, bound.reason
    with torch.autocast("cpu", torch.bfloat16):
        found = ask(model, torch.tensor(7.0), weights, **inputs, use_cache=False)
    found["loss"].backward()
    assert package.calls == ["none" if weighted else "sum"]
    assert found["loss"].dtype == torch.float32
    torch.testing.assert_close(found["loss"], wanted, atol=0, rtol=1e-2)
    got = gradients(model)
    assert got.keys() == expected.keys()
    for key, gradient in expected.items():
        assert (got[key] - gradient).norm() <= 0.1 * gradient.norm() + 1e-4, key


def test_accuracy_is_counted_and_entropy_is_left_out(package):
    model, inputs = build("Llama"), batch()
    bind_loss(model, CutCrossEntropyLoss())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
        found = ask(model, torch.tensor(7.0), **inputs, use_cache=False)
    targets = inputs["labels"][:, 1:]
    assert "entropy" not in found
    assert found["correct"] == ((logits.argmax(-1) == targets) & (targets != -100)).sum()


def test_a_batch_without_supervised_tokens_reaches_every_parameter(package):
    model, inputs = build("Llama"), batch()
    bind_loss(model, CutCrossEntropyLoss())
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    found = ask(model, torch.tensor(7.0), **inputs, use_cache=False)
    found["loss"].backward()
    assert found["loss"] == 0
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: build("Phi"), "the head has a bias, which the kernel does not add"),
        (lambda: build("Llama"), r"computes in half precision, and the hidden states are torch\.float32"),
    ],
)
def test_what_the_kernel_cannot_do_is_refused(package, make, said):
    model, inputs = make(), batch()
    bind_loss(model, CutCrossEntropyLoss())
    with pytest.raises(ModelError, match=said):
        ask(model, torch.tensor(7.0), **inputs, use_cache=False)


def test_a_head_with_an_adapter_is_refused(package):
    from peft import LoraConfig, get_peft_model

    model = build("Llama")
    get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM"))
    bind_loss(model, CutCrossEntropyLoss())
    with pytest.raises(ModelError, match='loss "cce": the head is a peft'), torch.autocast("cpu", torch.bfloat16):
        ask(model, torch.tensor(7.0), **batch(), use_cache=False)


def test_all_logits_are_no_input_for_it(package):
    with pytest.raises(ModelError, match="reads the weight of the head, and the run builds all logits"):
        CutCrossEntropyLoss()(torch.zeros(2, 4), lambda logits: logits, torch.tensor([0, 3]), None, torch.tensor(2.0))


def test_a_cpu_is_refused_before_weights_are_read(tmp_path, tokenizer, counts_as_installed):
    with pytest.raises(CheckError, match=r"cut cross-entropy needs a GPU, and the run asks for the CPU \(use_cpu\)"):
        trainer(tmp_path, make_llama(tokenizer), tokenizer)


def test_a_machine_without_a_gpu_is_refused_with_the_model(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match='loss "cce" needs an NVIDIA GPU, and there is none'):
        CutCrossEntropy().make_loss(loaded=None, plan=Plan(()))


@pytest.mark.skipif(importlib.util.find_spec("cut_cross_entropy") is not None, reason="it is installed")
def test_the_package_is_named_where_it_is_missing(tmp_path, tokenizer):
    with pytest.raises(Exception, match=r'loss "cce" needs cut-cross-entropy.*pip install "sftcore\[cce\]"'):
        trainer(tmp_path, make_llama(tokenizer), tokenizer)


def test_float32_and_an_adapter_on_the_head_are_found_by_check():
    from sftcore import ModelRequest, Probe, Selection

    lora = Selection("adapter", "lora", {"target_modules": ["lm_head"]})
    plan = Plan((lora,), {"bf16": False}, ModelRequest("m", dtype="float32"))
    said = [problem.what for problem in CutCrossEntropy().check(plan, Probe())]
    assert len(said) == 2
    assert "in half precision, and the run in float32" in said[0]
    assert 'adapter "lora" puts an adapter on lm_head' in said[1]


def test_it_claims_the_loss():
    assert CutCrossEntropy().claims() == ["loss.cross_entropy"]
