"""What a subclass or a hook changes in a batch counts, as it does where the host knows nothing of the batch."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset

from sftcore import SFTConfig, SFTTrainer
from sftcore.train import trainer as trainer_module
from tests.conftest import alpaca_rows, make_llama

FIELDS = {
    "max_steps": 1, "logging_steps": 1, "use_cpu": True, "report_to": "none", "save_strategy": "no",
    "gradient_checkpointing": False, "dataset_cache": False, "padding_free": False,
}  # fmt: skip


class Unmasking(SFTTrainer):
    """Trains on prompts too."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        everything = torch.where(inputs["attention_mask"] == 1, inputs["input_ids"], -100)
        inputs["labels"].copy_(everything)
        return super().compute_loss(model, inputs, *args, **kwargs)


class Weighting(SFTTrainer):
    """Gives half of the tokens no weight."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        weights = torch.ones(inputs["labels"].shape)
        weights[:, ::2] = 0
        return super().compute_loss(model, {**inputs, "weights": weights}, *args, **kwargs)


class Hiding(SFTTrainer):
    """Hides the second token of each row."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        mask = inputs["attention_mask"].clone()
        mask[:, 1] = 0
        return super().compute_loss(model, {**inputs, "attention_mask": mask}, *args, **kwargs)


class HidingLate(SFTTrainer):
    """Hides it in a hook of the model."""

    def __init__(self, model, *args, **kwargs):
        def hide(module, args, kwargs):
            mask = kwargs["attention_mask"].clone() if kwargs.get("attention_mask") is not None else None
            if mask is not None:
                mask[:, 1] = 0
            return args, {**kwargs, "attention_mask": mask}

        model.register_forward_pre_hook(hide, with_kwargs=True)
        super().__init__(model, *args, **kwargs)


def first_loss(kind, folder, tokenizer, batch_size):
    trainer = kind(
        make_llama(tokenizer),
        SFTConfig(str(folder), per_device_train_batch_size=batch_size, **FIELDS),
        train_dataset=Dataset.from_list(alpaca_rows(8)),
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer.state.log_history[0]["loss"]


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("kind", [Unmasking, Weighting, Hiding, HidingLate])
def test_the_loss_is_that_of_the_batch_as_it_was_changed(tmp_path, tokenizer, monkeypatch, kind, batch_size):
    found = first_loss(kind, tmp_path / "known", tokenizer, batch_size)
    unchanged = first_loss(SFTTrainer, tmp_path / "unchanged", tokenizer, batch_size)
    monkeypatch.setattr(trainer_module, "facts_of", lambda batch: None)
    wanted = first_loss(kind, tmp_path / "unknown", tokenizer, batch_size)
    assert found == pytest.approx(wanted, abs=1e-6)
    assert found != pytest.approx(unchanged, abs=1e-4)


class Own(SFTTrainer):
    """Computes the loss from the model's own outputs, as recipes for transformers' Trainer do."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = torch.nn.functional.cross_entropy(
            outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
        )
        return loss / num_items_in_batch


@pytest.mark.parametrize(
    "layout", [{"padding_free": False}, {"padding_free": True}, {"packing": True, "max_length": 128}]
)
def test_a_loss_of_a_subclass_from_the_models_outputs_keeps_documents_apart(tmp_path, tokenizer, layout):
    make_llama(tokenizer).save_pretrained(tmp_path / "model")

    def losses(kind):
        args = SFTConfig(
            tmp_path / kind.__name__,
            **{**FIELDS, **layout, "max_steps": 2},
            per_device_train_batch_size=4,
            plugins={"attention": "varlen"},
            bf16=False,
        )
        rows = Dataset.from_list(alpaca_rows(40))
        trainer = kind(str(tmp_path / "model"), args, train_dataset=rows, processing_class=tokenizer)
        trainer.train()
        batch = next(iter(trainer.get_train_dataloader()))
        assert trainer.model(**batch).logits.shape[:2] == batch["input_ids"].shape
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    assert losses(Own) == pytest.approx(losses(SFTTrainer), abs=1e-5)
