"""The programs of the page on distillation run, and train what their formulas say."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy, kl_div

from sftcore import SFTConfig, SFTTrainer
from tests.conftest import alpaca_rows, make_llama
from tests.core.conftest import write_distribution  # noqa: F401
from tests.docs.test_docs import blocks
from tests.train.overrides.twins import FIELDS, Seen, _Gradients, _kept

TEMPERATURE, SHARE = 2.0, 0.5


def programs():
    return blocks("how-to/distillation.md", "python")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("teacher")
    make_llama(tokenizer, seed=7).save_pretrained(folder)
    return folder


def by_hand(student, teacher, batches, hidden):
    """The gradients of one step over these micro-batches, token by token."""
    student.train()
    items = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
    for batch in batches:
        known = {key: batch[key] for key in ("input_ids", "attention_mask", "position_ids") if key in batch}
        ours = student(**known, output_hidden_states=True, use_cache=False)
        theirs = teacher(**known, output_hidden_states=True, use_cache=False)
        for row, place in (batch["labels"][:, 1:] != -100).nonzero().tolist():
            own, other = ours.logits[row, place], theirs.logits[row, place].detach()
            loss = (1 - SHARE) * cross_entropy(own, batch["labels"][row, place + 1])
            distributions = (own / TEMPERATURE).log_softmax(-1), (other / TEMPERATURE).softmax(-1)
            loss = loss + SHARE * TEMPERATURE**2 * kl_div(*distributions, reduction="sum")
            gap = ours.hidden_states[-1][row, place] - theirs.hidden_states[-1][row, place].detach()
            ((loss + SHARE * hidden * (gap**2).mean()) / items).backward(retain_graph=True)
    return {name: one.grad for name, one in student.named_parameters()}


def trained(kind, folder, tokenizer, more, **fields):
    args = SFTConfig(str(folder), **{**FIELDS, "max_steps": 1, "dataset_cache": False, **fields})
    seen, batches = Seen(), []
    rows = Dataset.from_list(alpaca_rows(8))
    trainer = kind(
        make_llama(tokenizer),
        args,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[_Gradients(seen)],
        **more,
    )
    loader = trainer.get_train_dataloader
    trainer.get_train_dataloader = lambda: _kept(loader(), batches)
    trainer.train()
    return trainer, seen.gradients[0], batches[: args.gradient_accumulation_steps]


def same(found, wanted):
    for name, one in wanted.items():
        torch.testing.assert_close(found[name], one, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    "fields",
    [{"gradient_accumulation_steps": 2}, pytest.param({"packing": True, "max_length": 64}, marks=pytest.mark.slow)],
)
def test_the_subclass_trains_on_logits_and_hidden_states(tmp_path, tokenizer, teacher, fields, capsys):
    names = {}
    exec(programs()[0], names)
    master = type(make_llama(tokenizer)).from_pretrained(teacher)
    more = {"teacher": master, "hidden": 3.0}
    _, found, batches = trained(names["Distillation"], tmp_path, tokenizer, more, **fields)
    same(found, by_hand(make_llama(tokenizer), master, batches, hidden=3.0))
    said = capsys.readouterr().err
    assert said.count("compute_loss is asked for outputs: the forward pass builds all logits") == 1


@pytest.mark.parametrize("fields", [{}, pytest.param({"packing": True, "max_length": 64}, marks=pytest.mark.slow)])
def test_the_plugin_trains_on_the_teachers_distribution(tmp_path, tokenizer, teacher, request, fields):
    write = request.getfixturevalue("write_distribution")
    points = b"[sftcore.loss]\nteacher = sftcore_teacher:Teacher\n"
    write("sftcore_teacher", programs()[1], entry_points=points)
    fields = {**fields, "plugins": {"loss": {"teacher": {"model": str(teacher)}}}}
    trainer, found, batches = trained(SFTTrainer, tmp_path, tokenizer, {}, **fields)
    master = type(make_llama(tokenizer)).from_pretrained(teacher)
    same(found, by_hand(make_llama(tokenizer), master, batches, hidden=0.0))
    assert trainer.bound_loss.gathers
    assert {"entropy", "mean_token_accuracy"} <= trainer.state.log_history[0].keys()
