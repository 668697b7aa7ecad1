"""The loss of every step equals a loop written by hand in plain torch, on the same batches."""

from __future__ import annotations

import copy

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy

from sftcore import SFTConfig, SFTTrainer
from tests.conftest import alpaca_rows, make_llama

STEPS = 6


def train(tmp_path, tokenizer, model, **config):
    args = SFTConfig(
        str(tmp_path), max_steps=STEPS, logging_steps=1, per_device_train_batch_size=2, learning_rate=1e-2,
        save_strategy="no", lr_scheduler_type="constant", max_grad_norm=0.0, use_cpu=True, **config,
    )  # fmt: skip
    trainer = SFTTrainer(model, args, train_dataset=Dataset.from_list(alpaca_rows(40)), processing_class=tokenizer)
    batches = []
    collate = trainer.data_collator
    trainer.data_collator = lambda rows: batches.append(collate(rows)) or batches[-1]
    trainer.train()
    return trainer, batches, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def by_hand(model, batches, accumulation):
    """AdamW on the mean over all supervised tokens of the accumulated batch."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    losses = []
    for at in range(0, len(batches), accumulation):
        group = batches[at : at + accumulation]
        tokens = sum((batch["labels"][:, 1:] != -100).sum() for batch in group)
        total = 0.0
        for batch in group:
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
            loss = cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum") / tokens
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_of_every_step_equals_the_loop_by_hand(tmp_path, tokenizer, accumulation, checkpointing):
    model = make_llama(tokenizer)
    reference = copy.deepcopy(model)
    trainer, batches, losses = train(
        tmp_path, tokenizer, model, gradient_accumulation_steps=accumulation, gradient_checkpointing=checkpointing
    )
    assert len(losses) == STEPS
    used = batches[: STEPS * accumulation]
    assert losses == pytest.approx(by_hand(reference, used, accumulation), abs=1e-5)
    for (name, ours), theirs in zip(trainer.model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3, msg=name)


def test_the_same_seed_gives_the_same_curve_twice(tmp_path, tokenizer):
    curves = [train(tmp_path, tokenizer, make_llama(tokenizer, attention_dropout=0.1), seed=3)[2] for _ in range(2)]
    assert curves[0] == curves[1]
    assert train(tmp_path, tokenizer, make_llama(tokenizer, attention_dropout=0.1), seed=4)[2] != curves[0]


def test_mean_token_accuracy_and_num_tokens_count_real_tokens(tmp_path, tokenizer):
    trainer, batches, _ = train(tmp_path, tokenizer, make_llama(tokenizer))
    last = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
    used = batches[:STEPS]
    assert last["num_tokens"] == sum(batch["attention_mask"].sum() for batch in used)
    assert last["num_supervised_tokens"] == sum((batch["labels"][:, 1:] != -100).sum() for batch in used)
    assert 0 <= last["mean_token_accuracy"] <= 1
    assert last["entropy"] > 0
