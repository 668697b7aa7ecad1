"""A loss or metrics on logits come from the forward pass that training makes anyway, with its gradients."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from peft import PromptTuningConfig

from sftcore import SFTConfig, SFTTrainer
from tests.conftest import alpaca_rows, make_llama

FIELDS = {
    "max_steps": 2, "logging_steps": 1, "use_cpu": True, "report_to": "none", "save_strategy": "no",
    "per_device_train_batch_size": 2, "gradient_checkpointing": False, "dataset_cache": False,
}  # fmt: skip


def make_trainer(folder, tokenizer, kind=SFTTrainer, *, fields=None, **more):
    rows = Dataset.from_list(alpaca_rows(8))
    args = SFTConfig(str(folder), **FIELDS, **(fields or {}))
    more = {"eval_dataset": rows.select(range(2)), **more}
    return kind(make_llama(tokenizer), args, train_dataset=rows, processing_class=tokenizer, **more)


def cross_entropy(outputs, labels, num_items_in_batch=None):
    """What transformers gives a `compute_loss_func` to compute."""
    logits, targets = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    total = torch.nn.functional.cross_entropy(logits, targets, reduction="sum", ignore_index=-100)
    return total / (num_items_in_batch if num_items_in_batch is not None else (targets != -100).sum())


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    ("fields", "more", "passes"),
    [({}, {}, 2), ({}, {"compute_loss_func": cross_entropy}, 2), ({"label_smoothing_factor": 0.1}, {}, 2)],
)
def test_each_micro_batch_is_one_forward_pass(tmp_path, tokenizer, fields, more, passes):
    trainer = make_trainer(tmp_path, tokenizer, fields=fields, **more)
    trainer.prove()
    calls = []
    trainer.model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    trainer.train()
    assert len(calls) == passes


def test_metrics_on_logits_are_computed_from_the_pass_that_gives_the_loss(tmp_path, tokenizer):
    seen = []
    plain = make_trainer(tmp_path, tokenizer).evaluate()
    trainer = make_trainer(tmp_path, tokenizer, compute_metrics=lambda found: seen.append(found) or {})
    trainer.prove()
    calls = []
    trainer.model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain["eval_loss"], abs=1e-5)
    assert len(calls) == 1
    assert seen[0].predictions.shape[:2] == seen[0].label_ids.shape


def test_a_users_loss_trains_as_the_plugins_own_where_both_are_cross_entropy(tmp_path, tokenizer):
    found, wanted = (
        make_trainer(tmp_path / str(number), tokenizer, **more)
        for number, more in enumerate(({"compute_loss_func": cross_entropy}, {}))
    )
    for trainer in (found, wanted):
        trainer.train()
    assert losses(found) == pytest.approx(losses(wanted), abs=1e-5)
    for name, weight in wanted.model.named_parameters():
        torch.testing.assert_close(found.model.get_parameter(name), weight, rtol=1e-4, atol=1e-6)
    assert {"entropy", "mean_token_accuracy"} <= set(found.state.log_history[0])


def test_outputs_in_training_carry_gradients(tmp_path, tokenizer):
    """As a subclass needs them that adds a term on the logits; transformers' own trainer gives them so."""
    norms = []

    class Penalised(SFTTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            term = (outputs.logits.float() ** 2).mean()
            if model.training:
                norms.append(torch.autograd.grad(term, model.lm_head.weight, retain_graph=True)[0].norm().item())
            return (loss + term, outputs) if return_outputs else loss + term

    trainer = make_trainer(tmp_path, tokenizer, Penalised)
    trainer.train()
    assert len(norms) == 2
    assert min(norms) > 0
    plain = make_trainer(tmp_path, tokenizer)
    plain.train()
    assert not torch.equal(trainer.model.lm_head.weight, plain.model.lm_head.weight)


def test_virtual_tokens_are_cut_from_what_a_loss_on_logits_sees(tmp_path, tokenizer):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    found = make_trainer(tmp_path, tokenizer, peft_config=config, compute_loss_func=cross_entropy)
    wanted = make_trainer(tmp_path, tokenizer, peft_config=config)
    for trainer in (found, wanted):
        torch.manual_seed(0)
        torch.nn.init.normal_(trainer.model.prompt_encoder["default"].embedding.weight)
        trainer.train()
    assert losses(found) == pytest.approx(losses(wanted), abs=1e-5)
