"""Losses of chunks, whose gradients are taken in the forward pass, equal the same losses on all logits at once."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from sftcore_plugins.losses.dft import DFT
from sftcore_plugins.losses.nll import NLL
from torch.nn.functional import cross_entropy

from sftcore import ConflictError, LossOutput, Plan, SFTTrainer, TokenLoss
from sftcore.losses import head_gradient
from sftcore.model.bound_loss import bind_loss
from tests.asking import ask
from tests.conftest import alpaca_rows
from tests.model.test_bound_loss import SMALL, batch, build, gradients
from tests.train.test_trainer import config, losses

LOSSES = {
    "nll": (NLL(chunk=5), lambda log_probs: -log_probs),
    "dft": (DFT(chunk=5), lambda log_probs: -log_probs * log_probs.detach().exp()),
}


def by_hand(model, inputs, per_token, weights=None):
    """The sum over supervised positions, from all logits and plain autograd."""
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1].float()
    targets = inputs["labels"][:, 1:]
    log_probs = -cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=-100)
    losses = per_token(log_probs) * (targets.flatten() != -100)
    return losses.sum() if weights is None else (losses * weights[:, 1:].flatten()).sum()


def assert_equal_to_by_hand(model, plugin, per_token, weights=None, causal=None):
    """Loss and the gradient of everything that trains, to 1e-4 of its size."""
    inputs = batch()
    expected = by_hand(model, inputs, per_token, weights) / 7
    expected.backward()
    wanted = gradients(model)
    bound = bind_loss(causal or model, plugin.make_loss(loaded=None, plan=Plan(())))
    assert bound.gathers, bound.reason
    found = ask(model, 7.0, weights, **inputs, use_cache=False)["loss"]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    (found * 3).backward()
    got = gradients(model)
    assert got.keys() == wanted.keys()
    for key, gradient in wanted.items():
        torch.testing.assert_close(got[key], 3 * gradient, atol=1e-4 * float(gradient.abs().max()), rtol=1e-4, msg=key)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Gemma2", "Gemma3", "Cohere", "Granite", "Phi"])
def test_loss_and_gradients_equal_those_of_all_logits(name, loss):
    assert_equal_to_by_hand(build(name), *LOSSES[loss])


@pytest.mark.parametrize("loss", LOSSES)
def test_weights_scale_tokens(loss):
    weights = torch.rand(batch()["labels"].shape, generator=torch.Generator().manual_seed(2)) + 0.1
    assert_equal_to_by_hand(build("Llama"), *LOSSES[loss], weights=weights)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "where",
    [{"target_modules": ["lm_head", "q_proj"]}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
     {"target_modules": ["q_proj"]}, {"target_modules": ["lm_head"]}],
    ids=["lora-on-head", "head-saved", "frozen-head", "head-alone"],
)  # fmt: skip
def test_an_adapter_on_the_head_gets_its_gradient(loss, tied, where):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    causal = LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=tied))
    model = get_peft_model(causal, LoraConfig(r=2, task_type="CAUSAL_LM", init_lora_weights=False, **where))
    assert_equal_to_by_hand(model, *LOSSES[loss], causal=causal)


def test_dft_is_the_papers_loss_written_out():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.5, 0.0]], requires_grad=True)
    labels = torch.tensor([0, 2])
    loss = DFT().make_loss(loaded=None, plan=Plan(()))
    output: LossOutput = loss(logits, torch.nn.Identity(), labels, None, torch.tensor(2))
    p = torch.softmax(logits.detach().double(), -1)
    own = p[[0, 1], labels]
    assert output.loss.item() == pytest.approx(float(-(own * own.log()).sum() / 2), rel=1e-6)
    output.loss.backward()
    onehot = torch.nn.functional.one_hot(labels, 3)
    torch.testing.assert_close(logits.grad.double(), own[:, None] * (p - onehot) / 2, rtol=1e-5, atol=1e-8)


def test_accuracy_counts_the_first_of_equally_likely_tokens_alone():
    output = TokenLoss(lambda log_probs: -log_probs)(
        torch.zeros(3, 4), torch.nn.Identity(), torch.tensor([0, 1, 3]), None, torch.tensor(3)
    )
    assert output.correct == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_logits_of_more_than_a_chunk_exist_and_the_head_runs_once(dtype):
    head = torch.nn.Linear(8, 16, dtype=dtype)
    seen = []
    head.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    hidden = torch.randn(20, 8, dtype=dtype, requires_grad=True)
    loss = TokenLoss(lambda log_probs: -log_probs, chunk=6)
    loss(hidden, head, torch.arange(20) % 16, None, torch.tensor(20)).loss.backward()
    assert seen == [0, 6, 6, 6, 2]  # without rows: to see what trains in it
    assert hidden.grad.dtype == head.weight.grad.dtype == dtype


def test_where_nobody_says_how_long_chunks_are_none_is_much_shorter_than_the_others(monkeypatch):
    monkeypatch.setattr(head_gradient, "positions_at_once", lambda *_: 256)
    head, seen = torch.nn.Linear(8, 16), []
    head.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    hidden = torch.randn(300, 8, requires_grad=True)
    TokenLoss(lambda log_probs: -log_probs)(hidden, head, torch.arange(300) % 16, None, torch.tensor(300))
    assert [one for one in seen if one] == [160, 140]


def test_a_second_backward_pass_is_refused():
    hidden = torch.randn(4, 8, requires_grad=True)
    loss = TokenLoss(lambda log_probs: -log_probs)(
        hidden, torch.nn.Linear(8, 16), torch.arange(4), None, torch.tensor(4)
    ).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="the backward pass of this loss has already run"):
        loss.backward()


def test_autocast_gives_float32_gradients_to_float32_weights_in_every_chunk():
    torch.manual_seed(0)
    head, hidden = torch.nn.Linear(8, 16), torch.randn(20, 8, requires_grad=True)
    labels = torch.arange(20) % 16
    with torch.autocast("cpu", torch.bfloat16):
        expected = cross_entropy(head(hidden).float(), labels)
    wanted = torch.autograd.grad(expected, [hidden, head.weight, head.bias])
    with torch.autocast("cpu", torch.bfloat16):
        loss = TokenLoss(lambda log_probs: -log_probs, chunk=6)(hidden, head, labels, None, torch.tensor(20)).loss
    torch.testing.assert_close(loss, expected)
    for got, one in zip(torch.autograd.grad(loss, [hidden, head.weight, head.bias]), wanted, strict=True):
        torch.testing.assert_close(got, one, rtol=2e-2, atol=1e-3)


def test_weights_held_in_shards_are_recomputed_instead(monkeypatch):
    class FSDPModule(torch.nn.Linear):
        """Named as the class that FSDP puts under a sharded module."""

    torch.manual_seed(0)
    head, hidden = FSDPModule(8, 16), torch.randn(20, 8, requires_grad=True)
    called = []
    head.register_forward_hook(lambda module, args, output: called.append(len(output)))

    class Bound:
        module = head

        def __call__(self, states):
            return head(states)

    labels = torch.arange(20) % 16
    loss = TokenLoss(lambda log_probs: -log_probs, chunk=12)(hidden, Bound(), labels, None, torch.tensor(20)).loss
    found = torch.autograd.grad(loss, [hidden, head.weight])
    assert called == [12, 8, 8, 12]
    expected = cross_entropy(head(hidden), labels)
    for got, one in zip(found, torch.autograd.grad(expected, [hidden, head.weight]), strict=True):
        torch.testing.assert_close(got, one, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["Mixtral", "Qwen2Moe", "Olmoe"])
def test_experts_are_balanced_without_all_logits(name):
    model, inputs = build(name, output_router_logits=True), batch()
    plain = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    whole = model(**plain)
    expected = by_hand(model, inputs, lambda log_probs: -log_probs) / 7 + 0.5 * whole.aux_loss
    expected.backward()
    wanted = gradients(model)
    bound = bind_loss(model, NLL(chunk=4).make_loss(loaded=None, plan=Plan(())))
    assert bound.gathers, bound.reason
    found = ask(model, torch.tensor(7.0), **inputs, use_cache=False, output_router_logits=True)
    torch.testing.assert_close(found["aux_loss"], whole.aux_loss, rtol=1e-5, atol=0)
    (found["loss"] + 0.5 * found["aux_loss"]).backward()
    got = gradients(model)
    assert got.keys() == wanted.keys()
    for key, gradient in wanted.items():
        torch.testing.assert_close(got[key], gradient, atol=1e-5 * float(gradient.abs().max()), rtol=1e-4)


def test_an_auxiliary_loss_that_is_not_that_of_the_routers_keeps_the_models_own_forward(monkeypatch):
    import sys

    model = build("Mixtral", output_router_logits=True)
    module = sys.modules[type(model).__module__]
    original = module.load_balancing_loss_func
    monkeypatch.setattr(model, "num_experts_per_tok", 2)
    monkeypatch.setattr(module, "load_balancing_loss_func", lambda logits, experts, top, mask: original(logits, 2, 1))
    forward = type(model).forward

    def doubled(*args, **kwargs):
        outputs = forward(model, *args, **kwargs)
        outputs.aux_loss = 2 * outputs.aux_loss
        return outputs

    model.forward = doubled
    bound = bind_loss(model, NLL().make_loss(loaded=None, plan=Plan(())))
    assert not bound.gathers
    assert "its experts' auxiliary loss is" in bound.reason
    assert ask(model, torch.tensor(1.0), **batch())["aux_loss"] > 0


def test_loss_type_dft_trains_and_its_loss_is_below_that_of_nll(tmp_path, tokenizer, llama):
    from datasets import Dataset

    rows = Dataset.from_list(alpaca_rows(16))
    trainer = SFTTrainer(llama, config(tmp_path, loss_type="dft"), train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    first = trainer.state.log_history[0]
    assert 0 < losses(trainer)[0] < 0.1 < first["entropy"]


def test_a_loss_plugin_and_a_users_loss_function_exclude_each_other(tmp_path, tokenizer, llama):
    from datasets import Dataset

    with pytest.raises(ConflictError, match='compute_loss_func would replace loss "dft"'):
        SFTTrainer(
            llama, config(tmp_path, loss_type="dft"), train_dataset=Dataset.from_list(alpaca_rows(4)),
            processing_class=tokenizer, compute_loss_func=lambda outputs, labels, num_items_in_batch=None: 0,
        )  # fmt: skip
