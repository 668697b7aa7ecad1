"""`trainer.predict` and `trainer.evaluate` on rows as they are before a run prepares them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset

from sftcore import SFTConfig, SFTTrainer
from sftcore.core.errors import OptionTypeError

WORDS = ["a word", "hello", "hello hello hello", "0123456789 question", "instruction"]
ROWS = [{"prompt": f"say {i}:", "completion": f" {word}"} for i, word in enumerate(WORDS)]


@pytest.fixture
def make(tmp_path, model_folder):
    def made(**fields):
        args = SFTConfig(
            str(tmp_path / "out"), use_cpu=True, report_to="none", disable_tqdm=True, max_steps=1, save_strategy="no",
            gradient_checkpointing=False, per_device_eval_batch_size=2, **fields,
        )  # fmt: skip
        stream = IterableDataset.from_generator(lambda: iter(ROWS)) if args.eval_strategy != "no" else None
        train = Dataset.from_list([{"text": "say hello"}] * 4)
        return SFTTrainer(str(model_folder), args, train_dataset=train, eval_dataset=stream)

    return made


def expected(trainer, row):
    """The supervised ids of a row, and the model's own logits that predict them."""
    tokenizer = trainer.processing_class
    prompt = tokenizer(row["prompt"])["input_ids"]
    ids = tokenizer(row["prompt"] + row["completion"])["input_ids"] + [tokenizer.eos_token_id]
    with torch.no_grad():
        logits = trainer.model.eval()(torch.tensor([ids])).logits[0]
    return ids[len(prompt) :], logits[len(prompt) - 1 : -1].numpy()


@pytest.mark.parametrize(
    "fields",
    [{}, {"shuffle_dataset": True}, {"packing": True, "max_length": 64}, {"padding_free": False}],
    ids=["plain", "shuffled", "packed", "padded"],
)
def test_raw_rows_are_predicted_each_by_itself_and_in_their_order(make, fields):
    trainer = make(**fields)
    found = trainer.predict(Dataset.from_list(ROWS))
    assert len(found.predictions) == len(found.label_ids) == len(ROWS)
    for row, logits, labels in zip(ROWS, found.predictions, found.label_ids, strict=True):
        ids, wanted = expected(trainer, row)
        at = np.flatnonzero(labels != -100)
        assert labels[at].tolist() == ids
        np.testing.assert_allclose(logits[at - 1], wanted, atol=1e-4, rtol=1e-4)
    assert found.metrics["test_loss"] > 0


def test_prepared_rows_and_other_names_of_metrics_are_taken_as_before(make):
    trainer = make()
    found = trainer.predict(trainer.train_dataset, metric_key_prefix="own")
    assert found.label_ids.shape[0] == 4
    assert "own_loss" in found.metrics
    again = trainer.predict(trainer.train_dataset.select([1]))
    assert again.label_ids[0].tolist()[1:] == trainer.train_dataset[1]["labels"][1:]  # nothing predicts the first


def test_a_stream_is_predicted(make):
    found = make().predict(IterableDataset.from_generator(lambda: iter(ROWS)))
    assert found.predictions.shape[0] == len(ROWS)


@pytest.mark.parametrize("padding_free", [None, False], ids=["by-default", "padded"])
@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
def test_a_stream_is_evaluated_as_its_rows_are_one_by_one(make, padding_free, several):
    trainer = make(padding_free=padding_free)
    stream = IterableDataset.from_generator(lambda: iter(ROWS))
    found = trainer.evaluate({"a": stream} if several else stream)["eval_a_loss" if several else "eval_loss"]
    losses = []
    for row in ROWS:
        ids, logits = expected(trainer, row)
        losses += torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(ids), reduction="none").tolist()
    assert found == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_map_style_set_is_trained_on_and_a_stream_evaluated_within_training(make):
    trainer = make(eval_strategy="steps", eval_steps=1)
    trainer.train()
    assert "eval_loss" in trainer.state.log_history[-2]


def test_rows_that_are_left_out_are_named(make):
    trainer = make(max_length=8)
    rows = [*ROWS[:1], {"prompt": "say hello " * 8, "completion": " word"}, *ROWS[1:2]]
    with pytest.warns(UserWarning, match=r"predictions leave out 1 rows \(1\): no supervised token"):
        found = trainer.predict(Dataset.from_list(rows))
    assert len(found.predictions) == 2


@pytest.mark.parametrize("given", [ROWS, {"a": ROWS}])
def test_what_is_not_a_data_set_is_refused(make, given):
    with pytest.raises(OptionTypeError, match=r"test_dataset: expected a datasets\.Dataset"):
        make().predict(given)
