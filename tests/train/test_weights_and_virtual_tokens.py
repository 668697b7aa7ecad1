"""Weights reach every loss or are refused with it, and virtual tokens reach nothing that is the user's."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig
from torch.nn.functional import cross_entropy

from sftcore import ConflictError, SFTConfig, SFTTrainer
from tests.conftest import make_llama

IDS = [[5, 6, 7, 8, 9, 10], [11, 12, 13, 14], [6, 5, 9, 12, 8], [7, 8, 6, 10]]
WEIGHTS = [[1.0, 1.0, 0.0, 0.0, 0.0, 0.5], [1.0, 0.25, 0.75, 1.0], [1.0, 0.0, 1.0, 0.5, 1.0], [1.0, 1.0, 1.0, 0.0]]
ROWS = Dataset.from_list(
    [{"input_ids": ids, "labels": [-100, *ids[1:]], "weights": own} for ids, own in zip(IDS, WEIGHTS, strict=True)]
)
SMOOTHING = 0.3


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_llama(tokenizer, num_hidden_layers=1, tie_word_embeddings=True)


@pytest.fixture
def make(tmp_path, tokenizer):
    def trainer(model, rows=ROWS, peft_config=None, given=None, cls=SFTTrainer, **fields):
        own = {
            "use_cpu": True, "max_steps": 1, "per_device_train_batch_size": 4, "save_strategy": "no", "report_to": [],
            "disable_tqdm": True, "gradient_checkpointing": False, "learning_rate": 0.0, "max_grad_norm": 0.0,
            "per_device_eval_batch_size": 2, "logging_steps": 1,
        }  # fmt: skip
        args = SFTConfig(str(tmp_path), **{**own, **fields})
        data = {"train_dataset": rows, "eval_dataset": rows, "processing_class": tokenizer}
        return cls(model, args, peft_config=peft_config, **data, **(given or {}))

    return trainer


def by_hand(model, smoothing=0.0):
    """The loss of all rows, each by itself, and the gradients of the model: sum of w * loss / sum of w."""
    total, items = 0.0, 0.0
    for ids, weights in zip(IDS, WEIGHTS, strict=True):
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        losses = cross_entropy(logits, torch.tensor(ids[1:]), reduction="none", label_smoothing=smoothing)
        total = total + (losses * torch.tensor(weights[1:])).sum()
        items += sum(weights[1:])
    gradients = torch.autograd.grad(total / items, list(model.parameters()))
    return float(total) / items, gradients


def weighted_sum(outputs, labels, num_items_in_batch, weights):
    """A loss of the user's that takes weights: as they come, each beside its label."""
    losses = cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
    return (losses * weights[:, 1:].flatten()).sum() / num_items_in_batch


def unweighted(outputs, labels, num_items_in_batch):
    losses = cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    return losses / num_items_in_batch


# --- Weights ----------------------------------------------------------------------------------------------------------
LOSSES = {
    "the run's own": ({}, {}, 0.0),
    "smoothed by next to nothing": ({"label_smoothing_factor": 1e-9}, {}, 0.0),
    "smoothed": ({"label_smoothing_factor": SMOOTHING}, {}, SMOOTHING),
    "the user's": ({}, {"compute_loss_func": weighted_sum}, 0.0),
}
LAYOUTS = {
    "padded": {},
    "accumulated": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
    "packed": {"packing": True, "max_length": 16, "per_device_train_batch_size": 2},
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LOSSES)
def test_a_token_counts_by_its_weight(make, model, name, layout):
    fields, given, smoothing = LOSSES[name]
    wanted, gradients = by_hand(model, smoothing)
    found = {}

    class Keeps(SFTTrainer):
        def _get_grad_norm(self, *args, **kwargs):
            found.update({name: one.grad.clone() for name, one in self.model.named_parameters()})
            return super()._get_grad_norm(*args, **kwargs)

    trainer = make(model, given=given, cls=Keeps, **fields, **LAYOUTS[layout])
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(wanted, rel=1e-5)
    for got, expected in zip(found.values(), gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(wanted, rel=1e-5)


def test_a_loss_function_without_weights_is_refused_with_them(make, model):
    with pytest.raises(ConflictError, match=r"compute_loss_func takes no weights.*argument `weights`"):
        make(model, given={"compute_loss_func": unweighted})


def test_so_it_is_where_only_the_rows_of_a_stream_tell(make, model):
    trainer = make(model, ROWS.to_iterable_dataset(), given={"compute_loss_func": unweighted})
    with pytest.raises(ConflictError, match="compute_loss_func takes no weights"):
        trainer.train()


def test_rows_without_weights_go_to_either(make, model):
    rows = ROWS.remove_columns("weights")
    plain = make(model, rows, given={"compute_loss_func": unweighted}).evaluate()["eval_loss"]

    def both(outputs, labels, num_items_in_batch, weights):
        assert weights is None
        return unweighted(outputs, labels, num_items_in_batch)

    assert make(model, rows, given={"compute_loss_func": both}).evaluate()["eval_loss"] == plain
    assert plain == pytest.approx(make(model, rows).evaluate()["eval_loss"], rel=1e-6)


# --- Virtual tokens ---------------------------------------------------------------------------------------------------
METHODS = {
    "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "p-tuning": PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8),
    "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("method", METHODS)
def test_virtual_tokens_are_cut_from_all_that_is_shown(make, tokenizer, method):
    """Three passes of the same weights: the run's own loss, smoothed by nothing, and a function of the user's."""
    shapes = []
    rows = ROWS.remove_columns("weights")

    def loss(outputs, labels, num_items_in_batch):
        shapes.append((outputs.logits.shape[:2], labels.shape))
        return unweighted(outputs, labels, num_items_in_batch)

    def metrics(found):
        shapes.append((found.predictions.shape[:2], found.label_ids.shape))
        return {"found": 1.0}

    def preprocess(logits, labels):
        shapes.append((logits.shape[:2], labels.shape))
        return logits

    def measured(given=None, **fields):
        torch.manual_seed(3)
        adapted = make_llama(tokenizer, num_hidden_layers=1)
        trainer = make(adapted, rows, METHODS[method], given, **fields)
        trainer.train()
        return trainer.state.log_history[0]["loss"], trainer.evaluate()["eval_loss"]

    wanted = measured()
    shown = {"compute_metrics": metrics, "preprocess_logits_for_metrics": preprocess}
    assert measured(label_smoothing_factor=1e-9) == pytest.approx(wanted, rel=1e-5)
    assert measured({"compute_loss_func": loss, **shown}) == pytest.approx(wanted, rel=1e-5)
    assert measured(shown) == pytest.approx(wanted, rel=1e-5)
    assert len(shapes) > 6
    assert all(logits == labels for logits, labels in shapes)
