"""The loss bound inside the model's forward equals cross-entropy on the model's own logits, for many architectures."""

from __future__ import annotations

import pytest
import torch
from sftcore_plugins.losses.nll import NLL
from torch.nn.functional import cross_entropy

from sftcore import Plan
from sftcore.model.bound_loss import bind_loss
from tests.asking import ask
from tests.conftest import make_llama

SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 96, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
ARCHITECTURES = {
    "Llama": {},
    "Qwen3": {},
    "Mistral": {"sliding_window": 4},
    "Gemma2": {"final_logit_softcapping": 5.0, "query_pre_attn_scalar": 8},
    "Gemma3": {"final_logit_softcapping": 5.0, "query_pre_attn_scalar": 8, "sliding_window": 8},
    "Cohere": {"logit_scale": 0.25},
    "Granite": {"logits_scaling": 4.0},
    "Phi": {},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "GPTNeoX": {},
    "OPT": {"ffn_dim": 64, "word_embed_proj_dim": 16},
    "Bloom": {"n_layer": 2, "n_head": 4},
    "Mixtral": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "Qwen2Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
                 "shared_expert_intermediate_size": 16},
    "Olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
}  # fmt: skip


def build(name: str, **fields):
    import transformers

    keys = (
        set(SMALL) - {"head_dim"}
        if name in ("Phi", "Bloom", "OPT", "GPT2", "GPTNeoX", "Cohere", "Granite", "Qwen2Moe", "Olmoe")
        else SMALL
    )
    config = getattr(transformers, {"Gemma3": "Gemma3TextConfig"}.get(name, f"{name}Config"))(
        **{key: SMALL[key] for key in keys}, **ARCHITECTURES[name], **fields
    )
    torch.manual_seed(0)
    head = {"GPT2": "GPT2LMHeadModel"}.get(name, f"{name}ForCausalLM")
    return getattr(transformers, head)(config).eval()


def batch(vocabulary: int = 96):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, vocabulary, (3, 12), generator=generator)
    labels = ids.clone()
    labels[0, :5] = -100
    labels[1] = -100
    mask = torch.ones_like(ids)
    mask[2, 9:] = 0
    labels[2, 9:] = -100
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def reference(model, inputs, weights=None):
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1].float()
    targets = inputs["labels"][:, 1:]
    losses = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=-100)
    return losses.sum() if weights is None else (losses * weights[:, 1:].flatten()).sum()


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_loss_and_gradients_equal_those_of_the_models_own_logits(name):
    model, inputs = build(name), batch()
    expected = reference(model, inputs) / 7
    expected.backward()
    wanted = gradients(model)
    bound = bind_loss(model, NLL(chunk=5).make_loss(loaded=None, plan=Plan(())))
    assert bound.gathers, bound.reason
    found = ask(model, torch.tensor(7.0), **inputs, use_cache=False)
    torch.testing.assert_close(found["loss"], expected, atol=1e-5, rtol=1e-5)
    found["loss"].backward()
    got = gradients(model)
    assert got.keys() == wanted.keys()
    for key, gradient in wanted.items():
        torch.testing.assert_close(got[key], gradient, atol=1e-5, rtol=1e-4)


def test_metrics_equal_those_of_the_full_distribution():
    model, inputs = build("Llama"), batch()
    logits = model(**{key: value for key, value in inputs.items() if key != "labels"}).logits[:, :-1]
    counts = inputs["labels"][:, 1:] != -100
    distribution = torch.distributions.Categorical(logits=logits[counts])
    bind_loss(model, NLL(chunk=4).make_loss(loaded=None, plan=Plan(())))
    found = ask(model, torch.tensor(1.0), **inputs)
    torch.testing.assert_close(found["entropy"], distribution.entropy().sum(), atol=1e-4, rtol=1e-5)
    assert found["correct"] == (logits.argmax(-1) == inputs["labels"][:, 1:])[counts].sum()
    assert found["supervised"] == counts.sum()


def test_weights_scale_each_token_and_zero_leaves_it_out():
    model, inputs = build("Llama"), batch()
    weights = torch.rand(inputs["labels"].shape, generator=torch.Generator().manual_seed(2))
    weights[0, 6:8] = 0
    expected = reference(model, inputs, weights)
    bind_loss(model, NLL().make_loss(loaded=None, plan=Plan(())))
    found = ask(model, torch.tensor(1.0), weights, **inputs)
    torch.testing.assert_close(found["loss"], expected)
    assert found["supervised"] == ((inputs["labels"][:, 1:] != -100) & (weights[:, 1:] > 0)).sum()


def test_a_batch_without_supervised_tokens_gives_a_zero_that_reaches_every_parameter():
    model, inputs = build("Llama"), batch()
    bind_loss(model, NLL().make_loss(loaded=None, plan=Plan(())))
    loss = ask(model, torch.tensor(0.0), **{**inputs, "labels": torch.full_like(inputs["labels"], -100)})["loss"]
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_the_head_sees_supervised_positions_only():
    model, inputs = build("Llama"), batch()
    bind_loss(model, NLL(chunk=4).make_loss(loaded=None, plan=Plan(())))
    rows = []
    model.lm_head.register_forward_hook(lambda module, args, output: rows.append(output.shape[0]))
    with torch.no_grad():
        ask(model, torch.tensor(1.0), **inputs)
    assert max(rows) <= 4
    assert sum(rows) == (inputs["labels"][:, 1:] != -100).sum()


def test_other_calls_reach_the_models_own_forward():
    model, inputs = build("Llama"), batch()
    before = model(**inputs).logits
    bind_loss(model, NLL().make_loss(loaded=None, plan=Plan(())))
    torch.testing.assert_close(model(**inputs).logits, before)
    assert model.generate(inputs["input_ids"][:1], max_new_tokens=3, do_sample=False).shape == (1, 15)


def test_a_model_whose_head_cannot_be_told_apart_builds_its_own_logits(tokenizer):
    model, inputs = make_llama(tokenizer).eval(), batch()

    class Shifted(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, *args, **kwargs):
            outputs = self.inner(*args, **kwargs)
            outputs.logits = outputs.logits + torch.arange(outputs.logits.shape[-1]) / 10
            return outputs

    shifted = Shifted(model.forward)
    model.forward = shifted.forward
    shifted.inner = type(model).forward.__get__(model)
    expected = reference(model, inputs)
    bound = bind_loss(model, NLL().make_loss(loaded=None, plan=Plan(())))
    assert not bound.gathers
    assert "do not give the model's own logits" in bound.reason
    torch.testing.assert_close(ask(model, torch.tensor(1.0), **inputs)["loss"], expected)


def test_the_bound_forward_keeps_the_signature_that_libraries_inspect():
    import inspect

    model = build("Llama")
    before = list(inspect.signature(model.forward).parameters)
    bind_loss(model, NLL().make_loss(loaded=None, plan=Plan(())))
    assert list(inspect.signature(model.forward).parameters) == before
    assert not hasattr(model.forward, "__wrapped__")
