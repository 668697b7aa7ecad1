"""The outputs that a subclass is given in training are those of transformers: loss first, with gradients."""

from __future__ import annotations

import pytest
from transformers import MixtralConfig, MixtralForCausalLM

from tests.train.overrides import subclasses
from tests.train.overrides.test_overrides import made_of
from tests.train.overrides.twins import assert_same, twins


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("with_outputs", {}),
        ("distilled", {}),
        pytest.param("with_outputs", {"label_smoothing_factor": 0.1}, marks=pytest.mark.slow),
        pytest.param("distilled", {"gradient_accumulation_steps": 2, "packing": True, "max_length": 64},
                     marks=pytest.mark.slow),
        pytest.param("with_outputs", {"gradient_checkpointing": True}, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_terms_on_outputs_train_as_on_transformers_trainer(tmp_path, tokenizer, name, fields):
    own, other = twins(tmp_path, tokenizer, subclass=subclasses.made_of(name), **fields)
    assert_same(own, other)
    assert own.losses == pytest.approx(other.losses, abs=1e-5)


def test_the_loss_among_the_outputs_has_the_experts_term(tmp_path, tokenizer):
    def compute_loss(base, seen):
        def of_outputs(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            _, outputs = base.compute_loss(self, model, inputs, True, num_items_in_batch)
            return (outputs.loss, outputs) if return_outputs else outputs[0]

        return of_outputs

    config = MixtralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, output_router_logits=True, router_aux_loss_coef=0.5,
        max_position_embeddings=128,
    )  # fmt: skip
    own, other = twins(
        tmp_path, tokenizer, model=MixtralForCausalLM(config), subclass=made_of(compute_loss=compute_loss)
    )
    assert_same(own, other)
