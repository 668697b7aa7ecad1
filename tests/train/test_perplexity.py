"""Perplexity of evaluations: the exponential of the mean negative log-likelihood of each set, by another route."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import MixtralConfig, MixtralForCausalLM

from sftcore import LossOutput, SFTConfig, SFTTrainer
from sftcore.core.errors import CheckError, ConflictError
from sftcore.trials.likelihood import not_a_likelihood
from tests.conftest import make_llama, make_tokenizer

SETS = {
    "test": Dataset.from_list([{"text": f"the first set, row {i}, of its own length {'x ' * i}"} for i in range(5)]),
    "hard": Dataset.from_list(
        [{"prompt": f"a question {i}?", "completion": f" an answer {'y ' * i}"} for i in range(3)]
    ),
}
TRAIN = Dataset.from_list([{"text": f"rows to train on, {i}"} for i in range(6)])


def make(folder, model=None, *, evaluated=None, given=None, **fields):
    """A trainer on six rows whose evaluations are of two sets with masks and lengths of their own."""
    tokenizer = make_tokenizer()
    own = {"max_steps": 1, "use_cpu": True, "save_strategy": "no", "eval_strategy": "steps", "eval_steps": 1,
           "per_device_eval_batch_size": 2, "report_to": "none", "row_losses": False, "report_html": False}  # fmt: skip
    args = SFTConfig(str(folder), **{**own, **fields})
    evaluated = SETS if evaluated is None else evaluated
    return SFTTrainer(
        make_llama(tokenizer, initializer_range=0.1) if model is None else model, args, train_dataset=TRAIN,
        eval_dataset=evaluated, processing_class=tokenizer, **(given or {}),
    )  # fmt: skip


def plain_mean(trainer, name) -> float:
    """The mean negative log-likelihood of a set, row by row from the model's own logits."""
    total, count = 0.0, 0
    trainer.model.eval()
    for row in trainer.eval_dataset[name]:
        if "seq_lengths" in row:
            ends = [sum(row["seq_lengths"][: i + 1]) for i in range(len(row["seq_lengths"]))]
            parts = [slice(end - size, end) for end, size in zip(ends, row["seq_lengths"], strict=True)]
        else:
            parts = [slice(None)]
        for part in parts:
            ids, labels = (torch.tensor(row[key][part]) for key in ("input_ids", "labels"))
            with torch.no_grad():
                logits = trainer.model(input_ids=ids[None]).logits[0, :-1].float()
            total += F.cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum").item()
            count += int((labels[1:] != -100).sum())
    return total / count


def evaluations(trainer) -> dict[str, float]:
    return {key: value for entry in trainer.state.log_history for key, value in entry.items() if "perplexity" in key}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"packing": True, "max_length": 64},
        {"label_smoothing_factor": 0.2},
        {"loss_type": "model"},
        {"given": {"compute_metrics": lambda _: {"mine": 1.0}}},
        {"given": {"compute_loss_func": lambda outputs, labels, num_items_in_batch=None: outputs.logits.sum() * 0 + 7}},
    ],
    ids=["padded", "packed", "smoothed", "model's own", "with metrics", "own loss"],
)
def test_each_set_has_the_perplexity_that_plain_logits_give(tmp_path, fields):
    trainer = make(tmp_path, learning_rate=0.0, **fields)
    trainer.train()
    found = evaluations(trainer)
    assert set(found) == {"eval_test_perplexity", "eval_hard_perplexity"}
    for name in SETS:
        assert found[f"eval_{name}_perplexity"] == pytest.approx(math.exp(plain_mean(trainer, name)), rel=1e-4)
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {**written[-3], **written[-2], **written[-1]}.items() >= found.items()


def test_one_set_is_named_eval_and_agrees_with_its_loss(tmp_path):
    found = make(tmp_path, evaluated=SETS["test"]).evaluate()
    assert found["eval_perplexity"] == pytest.approx(math.exp(found["eval_loss"]), rel=1e-6)
    predicted = make(tmp_path, evaluated=SETS["test"]).predict(SETS["test"]).metrics
    assert predicted["test_perplexity"] == pytest.approx(found["eval_perplexity"], rel=1e-5)


def test_the_loss_that_balances_experts_is_left_out(tmp_path):
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MixtralConfig(
        vocab_size=len(make_tokenizer()), num_key_value_heads=1, num_local_experts=2, max_position_embeddings=64,
        router_aux_loss_coef=0.5, output_router_logits=True, **size,
    )  # fmt: skip
    trainer = make(tmp_path, MixtralForCausalLM(config), router_aux_loss_coef=0.5)
    found = trainer.evaluate()
    wanted = plain_mean(trainer, "test")
    assert found["eval_test_loss"] > wanted + 0.1
    assert found["eval_test_perplexity"] == pytest.approx(math.exp(wanted), rel=1e-4)


# --- Losses that are no likelihood ------------------------------------------------------------------------------------
def test_a_loss_that_is_not_a_likelihood_has_none_and_the_run_says_so_once(tmp_path, capsys):
    trainer = make(tmp_path, loss_type="dft", max_steps=3)
    trainer.train()
    assert not evaluations(trainer)
    assert sum("eval_test_loss" in entry for entry in trainer.state.log_history) == 3
    said = [one for one in trainer.loaded.notes if "perplexity" in one]
    assert len(said) == 1
    assert said[0].startswith('loss "dft" is not a negative log-likelihood')
    assert capsys.readouterr().err.count("have no perplexity") == 1


def test_an_evaluation_alone_says_it_too(tmp_path):
    with pytest.warns(UserWarning, match="not a negative log-likelihood") as caught:
        found = make(tmp_path, loss_type="dft").evaluate()
    assert not [key for key in found if "perplexity" in key]
    assert sum("perplexity" in str(one.message) for one in caught) == 1


def test_the_best_perplexity_of_such_a_loss_is_refused_before_the_first_step(tmp_path):
    trainer = make(tmp_path, loss_type="dft", metric_for_best_model="eval_test_perplexity")
    with pytest.raises(ConflictError, match=r"metric_for_best_model: .*dft.*no perplexity.*Use eval_test_loss"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_perplexity_of_the_users_own_stays_and_may_be_the_metric(tmp_path):
    own = {"compute_metrics": lambda _: {"perplexity": 3.5}}
    trainer = make(tmp_path, loss_type="dft", metric_for_best_model="hard_perplexity", given=own)
    trainer.train()
    assert evaluations(trainer) == {"eval_test_perplexity": 3.5, "eval_hard_perplexity": 3.5}


class Other:
    """Losses that resemble the negative log-likelihood."""

    def __init__(self, name):
        self.name = name

    def __call__(self, hidden, head, labels, weights, num_items):
        logits = head(hidden).float()
        nll = F.cross_entropy(logits, labels, reduction="none")
        p = (-nll).exp()
        each = {
            "same": nll,
            "focal": (1 - p.detach()) ** 2 * nll,
            "smoothed": F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.05),
            "clipped": nll.clamp(max=4.0),
            "z": nll + 0.01 * logits.logsumexp(-1) ** 2,
            "half": nll / 2,
            "bits": nll / 0.6931471805599453,
            "hot": F.cross_entropy(logits / 2, labels, reduction="none"),
        }[self.name]  # fmt: skip
        each = each if weights is None else each * weights
        return LossOutput(each.sum() / num_items, None, (logits.argmax(-1) == labels).sum())


@pytest.mark.parametrize("name", ["same", "focal", "smoothed", "clipped", "z", "half", "bits", "hot"])
@pytest.mark.parametrize("scale", [0.02, 1.0])
def test_other_losses_are_told_from_a_likelihood_whatever_the_model_knows(name, scale, tokenizer):
    model = make_llama(tokenizer, initializer_range=scale)
    for gathers in (True, False):
        fault = not_a_likelihood(Other(name), model, model, torch.device("cpu"), gathers=gathers)
        assert (fault == "") == (name == "same"), fault


def test_a_loss_that_cannot_be_asked_alone_gives_no_perplexity(tokenizer):
    def broken(*_):
        raise ZeroDivisionError("no teacher")

    model = make_llama(tokenizer)
    state = torch.get_rng_state()
    fault = not_a_likelihood(broken, model.train(), model, torch.device("cpu"), gathers=True)
    assert "ZeroDivisionError: no teacher" in fault
    assert model.training
    assert torch.equal(state, torch.get_rng_state())


# --- Stopping early and the best model, by a set's perplexity ---------------------------------------------------------
def test_the_lowest_perplexity_of_a_set_is_the_best_model(tmp_path):
    """A learning rate that ruins the model makes the first evaluation the best one."""
    trainer = make(
        tmp_path, max_steps=4, learning_rate=0.5, save_strategy="steps", save_steps=1, load_best_model_at_end=True,
        metric_for_best_model="eval_test_perplexity", early_stopping_patience=2,
    )  # fmt: skip
    assert trainer.args.greater_is_better is False
    trainer.train()
    found = [entry["eval_test_perplexity"] for entry in trainer.state.log_history if "eval_test_perplexity" in entry]
    best = found.index(min(found))
    assert trainer.state.best_metric == min(found)
    assert Path(trainer.state.best_model_checkpoint).name == f"checkpoint-{best + 1}"
    assert len(found) == min(best + 3, 4)
    assert math.exp(plain_mean(trainer, "test")) == pytest.approx(min(found), rel=1e-3)


@pytest.mark.parametrize(
    ("metric", "said"),
    [("perplexity", "test_loss, hard_loss"), ("eval_tset_perplexity", 'Did you mean "test_perplexity"')],
)
def test_a_perplexity_of_no_set_is_refused_before_the_data(tmp_path, metric, said):
    with pytest.raises(CheckError, match=said):
        make(tmp_path, metric_for_best_model=metric)


def test_whoever_wants_the_highest_gets_it(tmp_path):
    args = SFTConfig(str(tmp_path), use_cpu=True, metric_for_best_model="perplexity", greater_is_better=True)
    assert args.greater_is_better is True
    args.metric_for_best_model = "accuracy"
    args.settle()
    assert args.greater_is_better is True
    other = SFTConfig(str(tmp_path), use_cpu=True, metric_for_best_model="perplexity")
    other.metric_for_best_model = "accuracy"
    other.settle()
    assert other.greater_is_better is True
