"""A loss of the model's own is used where it is chosen, and refused or said where the run's would replace it."""

from __future__ import annotations

import copy

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.nn.functional import cross_entropy
from transformers import BartConfig, BartForCausalLM, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.loss.loss_utils import ForCausalLMLoss

from sftcore import CheckError, ConflictError, SFTConfig, SFTTrainer
from tests.conftest import make_llama

IDS = [[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16], [6, 5, 9, 12, 8, 7], [7, 8, 6, 10, 20, 9]]
ROWS = Dataset.from_list([{"input_ids": ids, "labels": [-100, -100, *ids[2:]]} for ids in IDS])


def summed(logits, labels, num_items):
    losses = cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), reduction="sum")
    return losses / num_items


def focal(logits, labels, vocab_size, num_items_in_batch=None, **_):
    log_probs = logits[:, :-1].float().log_softmax(-1)
    counted = labels[:, 1:] != -100
    own = log_probs.gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    losses = -own * (1 - own.exp()) ** 2 * counted
    return losses.sum() / (counted.sum() if num_items_in_batch is None else num_items_in_batch)


class WithTerm(LlamaForCausalLM):
    """Adds a term to the loss, as models of routing, of distillation or of regularisation do."""

    scale = 5.0

    def forward(self, *args, labels=None, num_items_in_batch=None, **kwargs):
        outputs = super().forward(*args, **kwargs)
        if labels is not None:
            term = self.scale * (outputs.logits**2).mean()
            outputs.loss = summed(outputs.logits, labels, num_items_in_batch) + term
        return outputs


class OnlyInTraining(WithTerm):
    scale = property(lambda self: 5.0 * self.training)


class MeanAlone(LlamaForCausalLM):
    """Takes no `num_items_in_batch`: its loss is the mean over a batch."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, labels=None, use_cache=None):
        given = {"attention_mask": attention_mask, "position_ids": position_ids, "use_cache": use_cache}
        outputs = super().forward(input_ids, **given)
        if labels is not None:
            outputs.loss = 2 * summed(outputs.logits, labels, (labels[:, 1:] != -100).sum())
        return outputs


def model_of(tokenizer, kind, **fields):
    model = make_llama(tokenizer, num_hidden_layers=1, **fields)
    if isinstance(kind, type):
        model.__class__ = kind
    elif kind is not None:
        model.loss_function = kind
    return model


@pytest.fixture
def make(tmp_path, tokenizer):
    def trainer(model, rows=ROWS, given=None, cls=SFTTrainer, **fields):
        own = {
            "use_cpu": True, "max_steps": 2, "per_device_train_batch_size": 2, "save_strategy": "no", "report_to": [],
            "disable_tqdm": True, "gradient_checkpointing": False, "learning_rate": 1e-2, "logging_steps": 1,
            "train_sampling_strategy": "sequential",
        }  # fmt: skip
        args = SFTConfig(str(tmp_path), **{**own, **fields})
        data = {"train_dataset": rows, "eval_dataset": rows, "processing_class": tokenizer}
        return cls(model, args, **data, **(given or {}))

    return trainer


def curve(trainer) -> list[float]:
    trainer.train()
    return [entry[name] for entry in trainer.state.log_history for name in ("loss", "grad_norm") if name in entry]


def of_transformers(tmp_path, model, **fields) -> list[float]:
    """Losses and norms of transformers' own Trainer on the same batches."""
    own = {
        "use_cpu": True, "max_steps": 2, "per_device_train_batch_size": 2, "save_strategy": "no", "report_to": [],
        "disable_tqdm": True, "learning_rate": 1e-2, "logging_steps": 1, "train_sampling_strategy": "sequential",
        "weight_decay": 0.0, "remove_unused_columns": False,
    }  # fmt: skip
    rows = ROWS.map(lambda row: {"attention_mask": [1] * 6})
    return curve(Trainer(model, TrainingArguments(str(tmp_path / "other"), **{**own, **fields}), train_dataset=rows))


# --- Chosen -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [focal, WithTerm])
@pytest.mark.parametrize(("tied", "accumulated"), [(True, 1), (False, 1), (False, 2)])
def test_the_loss_of_the_model_trains_as_by_transformers_own_trainer(
    make, tmp_path, tokenizer, kind, accumulated, tied
):
    fields = {"per_device_train_batch_size": 4 // (2 * accumulated), "gradient_accumulation_steps": accumulated}
    fields["max_steps"] = 1 if accumulated == 2 else 2
    model = model_of(tokenizer, kind, tie_word_embeddings=tied)
    wanted = of_transformers(tmp_path, copy.deepcopy(model), **fields)
    assert curve(make(model, loss_type="model", **fields)) == pytest.approx(wanted, rel=1e-5)


def test_one_that_is_a_mean_counts_by_tokens(make, tokenizer):
    """Two micro-batches of unlike length: the mean over all tokens, twice."""
    rows = Dataset.from_list([{"input_ids": ids[: 6 - n], "labels": ids[: 6 - n]} for n, ids in enumerate(IDS)])
    model = model_of(tokenizer, MeanAlone)
    total = items = 0.0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        total += 2 * float(summed(LlamaForCausalLM.forward(model, ids).logits, ids, 1).detach())
        items += ids.shape[1] - 1
    fields = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "max_steps": 1}
    trainer = make(model, rows, loss_type="model", learning_rate=0.0, **fields)
    assert curve(trainer)[0] == pytest.approx(total / items, rel=1e-5)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(total / items, rel=1e-5)


def test_packed_rows_and_an_adapter_too(make, tokenizer):
    given = {"peft_config": LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"])}
    trainer = make(model_of(tokenizer, focal), given=given, loss_type="model", packing=True, max_length=16)
    wanted = total = 0.0
    with torch.no_grad():
        for ids in IDS:
            labels = torch.tensor([[-100, -100, *ids[2:]]])
            wanted += float(focal(trainer.model(torch.tensor([ids])).logits, labels, None, num_items_in_batch=1))
            total += 4
    assert trainer.evaluate()["eval_loss"] == pytest.approx(wanted / total, rel=1e-5)
    trainer.train()
    logged = trainer.state.log_history[-2]
    assert {"entropy", "mean_token_accuracy"} <= logged.keys()
    assert any(one.any() for name, one in trainer.model.named_parameters() if "lora_B" in name)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("fields", [{"label_smoothing_factor": 0.1}, {"router_aux_loss_coef": 0.1}])
def test_what_it_would_leave_out_is_refused_with_it(make, tokenizer, fields):
    with pytest.raises(CheckError, match="model"):
        make(model_of(tokenizer, focal), loss_type="model", **fields)


def test_so_are_weights(make, tokenizer):
    rows = ROWS.map(lambda row: {"weights": [1.0] * 3 + [0.5] * 3})
    with pytest.raises((CheckError, ConflictError), match="the rows have weights"):
        make(model_of(tokenizer, focal), rows, loss_type="model").train()


# --- Not chosen -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [focal, WithTerm, OnlyInTraining, MeanAlone])
def test_a_loss_of_the_models_own_is_not_replaced(make, tokenizer, kind):
    name = kind.__name__ if isinstance(kind, type) else "LlamaForCausalLM"
    trainer = make(model_of(tokenizer, kind))
    with pytest.raises(ConflictError, match=rf"{name} computes a loss of its own.*loss: model.*loss: nll"):
        trainer.train()


@pytest.mark.parametrize("loss", ["nll", "dft"])
def test_it_is_where_another_is_chosen_and_that_is_said(make, tokenizer, loss):
    trainer = make(model_of(tokenizer, WithTerm), plugins={"loss": loss})
    found = curve(trainer)
    assert f'loss "{loss}" replaces it' in "".join(trainer.loaded.notes)
    assert found == curve(make(model_of(tokenizer, None), plugins={"loss": loss}))


class AsksTheModel(SFTTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs, num_items_in_batch=num_items_in_batch)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


def test_a_trainer_that_asks_the_model_itself_goes_on(make, tmp_path, tokenizer):
    model = model_of(tokenizer, WithTerm)
    wanted = of_transformers(tmp_path, copy.deepcopy(model))
    assert curve(make(model, cls=AsksTheModel)) == pytest.approx(wanted, rel=1e-5)


def test_a_loss_function_of_the_users_and_the_models_plain_one_say_nothing(make, tokenizer):
    def of_user(outputs, labels, num_items_in_batch):
        return summed(outputs.logits, labels, num_items_in_batch)

    given = {"compute_loss_func": of_user}
    for trainer in (make(model_of(tokenizer, WithTerm), given=given), make(model_of(tokenizer, None))):
        trainer.train()
        assert "loss of its own" not in "".join(trainer.loaded.notes)


def test_a_function_that_is_equal_is_named(make, tokenizer):
    def equal(*args, **kwargs):
        return ForCausalLMLoss(*args, **kwargs)

    trainer = make(model_of(tokenizer, equal))
    trainer.train()
    assert "replaces the model's loss_function" in "".join(trainer.loaded.notes)


def test_a_class_of_transformers_that_takes_shifted_labels_trains_and_says_so(make, tokenizer):
    sizes = {"d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16}
    config = BartConfig(vocab_size=len(tokenizer), max_position_embeddings=64, pad_token_id=0, **sizes)
    trainer = make(BartForCausalLM(config), max_steps=1)
    trainer.train()
    assert "BartForCausalLM computes a loss of its own" in "".join(trainer.loaded.notes)
