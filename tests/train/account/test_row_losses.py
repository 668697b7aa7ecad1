"""The loss of every row, however rows are laid out, mixed, streamed or resumed, is that of plain transformers."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq

from sftcore import DataSource, LossOutput, Mixture, SFTConfig, SFTTrainer, hookimpl, plugin
from sftcore.data.account.table import read_table
from sftcore.testing.isolated import isolated
from sftcore.testing.tiny import make_llama, make_tokenizer

TOKENIZER = make_tokenizer()
ROWS = [{"prompt": f"say {i}:", "completion": " hello world" * (1 + i % 5)} for i in range(14)]
VARLEN = {"plugins": {"attention": "varlen"}}
LAYOUTS = {
    "padded": {"padding_free": False},
    "padding-free": {"padding_free": True, **VARLEN},
    "packed": {"packing": True, **VARLEN},
    "packed in pieces": {"packing": True, "packing_strategy": "wrapped", "shuffle_dataset": True, "max_length": 64},
    "accumulated": {"gradient_accumulation_steps": 3, "padding_free": False},
    "shuffled, by length": {"shuffle_dataset": True, "train_sampling_strategy": "group_by_length"},
    "all logits": {"label_smoothing_factor": 0.1, "padding_free": False},
    "workers": {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "spawn", "padding_free": False},
}


@pytest.fixture(scope="module")
def model():
    return make_llama(TOKENIZER, num_hidden_layers=1)


@pytest.fixture
def run(model, tmp_path):
    """A run without a learning rate, whose losses are those of the model as it is; the trainer, and the list's rows."""

    def train(data, resume=None, folder="out", **fields):
        collator = fields.pop("data_collator", None)
        given = {
            "use_cpu": True, "report_to": "none", "save_strategy": "no", "learning_rate": 0.0, "num_train_epochs": 2,
            "per_device_train_batch_size": 3, "max_length": 32, "logging_steps": 2, "disable_tqdm": True,
            "gradient_checkpointing": False, "dataset_cache": False, "max_grad_norm": 0.0,
        }  # fmt: skip
        config = SFTConfig(str(tmp_path / folder), **{**given, **fields})
        trainer = SFTTrainer(
            copy.deepcopy(model), config, train_dataset=data, processing_class=TOKENIZER, data_collator=collator
        )
        trainer.train(resume_from_checkpoint=resume)
        table, facts = read_table(tmp_path / folder)
        return trainer, table.to_pylist(), facts

    return train


@pytest.fixture(scope="module")
def wanted(model):
    """The loss of each row alone and its supervised tokens, from the model's own forward."""
    found = []
    for row in ROWS:
        prompt = TOKENIZER(row["prompt"])["input_ids"]
        ids = TOKENIZER(row["prompt"] + row["completion"])["input_ids"] + [TOKENIZER.eos_token_id]
        labels = [-100] * len(prompt) + ids[len(prompt) :]
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
        found.append((float(loss), len(ids) - len(prompt)))
    return found


def losses_of(rows, wanted):
    assert [row["row"] for row in rows] == list(range(len(rows)))
    assert [row["epochs"] for row in rows] == [[1, 2]] * len(rows)
    for row, (loss, tokens) in zip(rows, wanted, strict=True):
        assert row["loss"] == pytest.approx([loss, loss], abs=1e-4), row
        assert row["loss_tokens"] == [tokens, tokens]


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in ("packed in pieces", "workers")])
def test_each_row_has_the_loss_that_the_model_gives_it_alone(run, wanted, layout):
    _, rows, facts = run(Dataset.from_list(ROWS), **LAYOUTS[layout])
    losses_of(rows, wanted)
    assert (facts["loss"], facts["epochs"]) == ("nll", [1, 2])


def test_a_row_that_is_split_over_blocks_is_added_up_again(run, wanted):
    _, rows, _ = run(Dataset.from_list(ROWS), **LAYOUTS["packed in pieces"])
    # the first token of a piece has nothing before it to be predicted from
    assert sum(row["loss_tokens"][0] < tokens for row, (_, tokens) in zip(rows, wanted, strict=True)) <= 3
    assert sum(abs(row["loss"][0] - loss) < 1e-4 for row, (loss, _) in zip(rows, wanted, strict=True)) >= 8
    assert all(row["epochs"] == [1, 2] for row in rows)


@pytest.mark.slow
def test_rows_that_workers_read_have_their_losses(run, wanted):
    _, rows, _ = run(Dataset.from_list(ROWS), **LAYOUTS["workers"])
    losses_of(rows, wanted)


@pytest.mark.parametrize("packing", [False, True])
def test_rows_of_a_stream_are_listed_as_they_are_met(run, wanted, packing):
    more = VARLEN if packing else {}
    _, rows, _ = run(Dataset.from_list(ROWS).to_iterable_dataset(), max_steps=10, packing=packing, **more)
    assert sorted(row["row"] for row in rows) == list(range(len(ROWS)))
    for row in rows:
        loss, tokens = wanted[row["row"]]
        assert row["loss"] == pytest.approx([loss] * len(row["epochs"]), abs=1e-4)
        assert (row["supervised"], row["outcome"]) == (tokens, "kept")


def test_a_row_is_weighed_by_the_weights_of_its_tokens(run, model):
    ids = TOKENIZER("hello world hello world")["input_ids"]
    weights = [1.0, 0.5, 0.0, 0.75, *[0.25] * (len(ids) - 4)]
    data = [{"input_ids": ids, "labels": ids, "weights": weights}, {"input_ids": ids, "labels": ids}]
    _, rows, _ = run(Dataset.from_list(data), num_train_epochs=1, padding_free=False)
    with torch.no_grad():
        log_probs = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    losses = -log_probs.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
    own = torch.tensor(weights[1:])
    assert rows[0]["loss"] == pytest.approx([float((losses * own).sum() / own.sum())], abs=1e-4)
    assert rows[1]["loss"] == pytest.approx([float(losses.mean())], abs=1e-4)
    assert rows[0]["loss_tokens"] == [int((own > 0).sum())]


def test_the_list_says_which_loss_it_holds(run, wanted):
    _, rows, facts = run(Dataset.from_list(ROWS), loss_type="dft", num_train_epochs=1)
    assert facts["loss"] == "dft"
    assert all(row["loss"][0] < loss for row, (loss, _) in zip(rows, wanted, strict=True))


def test_a_resumed_run_lists_what_one_that_never_stopped_lists(run, tmp_path):
    fields = {
        "learning_rate": 0.01, "save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "constant",
        "packing": True, "max_length": 20, "per_device_train_batch_size": 2,
    }  # fmt: skip
    _, whole, facts = run(Dataset.from_list(ROWS), folder="whole", **fields)
    run(Dataset.from_list(ROWS), folder="part", **fields)
    checkpoint = str(tmp_path / "part" / "checkpoint-3")
    _, again, resumed = run(Dataset.from_list(ROWS), folder="part", resume=checkpoint, **fields)
    assert resumed == facts
    for one, other in zip(whole, again, strict=True):
        assert one["epochs"] == other["epochs"]
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-6)
        assert one["loss_tokens"] == other["loss_tokens"]


def test_loss_and_tokens_of_each_source_are_logged_apart(run, wanted):
    parts = [
        DataSource(Dataset.from_list(ROWS), "all", weight=2),
        DataSource(Dataset.from_list(ROWS[3:7]), "few", weight=1),
    ]
    trainer, rows, _ = run(Mixture(parts, stop="all"), logging_steps=1, packing=True, **VARLEN)
    logs = [log for log in trainer.state.log_history if "loss" in log]
    totals = {name: logs[-1][f"tokens/{name}"] for name in ("all", "few")}
    assert sum(totals.values()) == logs[-1]["num_tokens"]
    assert {row["source"] for row in rows} == {"all", "few"}
    of_few = [row for row in rows if row["source"] == "few"]
    assert [row["row"] for row in of_few] == [0, 1, 2, 3]
    assert [row["loss"][0] for row in of_few] == pytest.approx([loss for loss, _ in wanted[3:7]], abs=1e-4)
    # a row of the mixture that is there several times is measured in each of its places
    assert sum(sum(row["loss_tokens"]) for row in rows) == logs[-1]["num_supervised_tokens"]
    for log in logs:
        known = [log[f"loss/{name}"] for name in ("all", "few") if f"loss/{name}" in log]
        assert min(known) - 1e-4 <= log["loss"] <= max(known) + 1e-4


class Whole:
    """Cross-entropy that says nothing of single tokens."""

    def __call__(self, hidden, head, labels, weights, num_items):
        loss = torch.nn.functional.cross_entropy(head(hidden).float(), labels, reduction="sum") / num_items
        return LossOutput(loss, None, labels.new_zeros(()))


def test_a_loss_without_losses_of_tokens_is_said_once(run, capsys, recwarn):
    @plugin
    class Silent:
        "Says nothing of tokens."

        @hookimpl
        def make_loss(self, loaded, plan):
            return Whole()

    with isolated() as plugins:
        plugins(loss={"silent": Silent})
        trainer, rows, facts = run(Dataset.from_list(ROWS), loss_type="silent")
    said = capsys.readouterr().err + "".join(str(one.message) for one in recwarn)
    assert said.count("rows.parquet has no losses of rows: the loss gives none") == 1
    assert facts["loss"] is None
    assert len(rows) == len(ROWS)
    assert not any(row["loss"] for row in rows)
    assert math.isfinite(trainer.state.log_history[-1]["train_loss"])


class Reversed:
    """A collator that gives rows in another order than it gets them."""

    def __init__(self):
        self.collate = DataCollatorForSeq2Seq(TOKENIZER)

    def __call__(self, rows):
        return self.collate([{name: row[name] for name in ("input_ids", "labels")} for row in rows[::-1]])


def test_a_collator_that_changes_the_order_gives_no_losses_of_wrong_rows(run, capsys, recwarn):
    _, rows, _ = run(Dataset.from_list(ROWS), data_collator=Reversed(), train_sampling_strategy="sequential")
    said = capsys.readouterr().err + "".join(str(one.message) for one in recwarn)
    assert not any(row["loss"] for row in rows)
    assert said.count("batches do not show which rows they were made of") == 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_that_another_collator_pads_on_either_side_are_found(run, wanted, side):
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.padding_side = side
    _, rows, _ = run(Dataset.from_list(ROWS), data_collator=DataCollatorForSeq2Seq(tokenizer))
    losses_of(rows, wanted)


def test_without_row_losses_the_list_says_what_became_of_rows_alone(run):
    _, rows, facts = run(Dataset.from_list([*ROWS, {"prompt": "say", "completion": " x" * 90}]), row_losses=False)
    assert facts["epochs"] == []
    assert not any(row["loss"] for row in rows)
    assert rows[-1]["outcome"] == "cut"
    assert rows[-1]["tokens"] - rows[-1]["tokens_cut"] == 32
