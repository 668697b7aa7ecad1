"""`skip_prepare_dataset`: rows go to the collator as they are, which reads token ids."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset, IterableDataset

from sftcore import DataError, SFTConfig, SFTTrainer

TOKENS = [{"input_ids": [4, 5, 6, 7]}] * 4
PAIRS = [{"prompt": "say:", "completion": " hello"}] * 4
SAID = r"have no input_ids, only completion, prompt, .* Drop skip_prepare_dataset"


class TorchRows(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return TOKENS[index]


def stream(rows):
    return IterableDataset.from_generator(lambda: iter(rows))


@pytest.fixture
def make(tmp_path, tokenizer, llama):
    def trainer(train_dataset, eval_dataset=None, **fields):
        args = SFTConfig(
            str(tmp_path), use_cpu=True, max_steps=1, save_strategy="no", report_to="none",
            dataset_kwargs={"skip_prepare_dataset": True}, **fields,
        )  # fmt: skip
        given = {"train_dataset": train_dataset, "eval_dataset": eval_dataset, "processing_class": tokenizer}
        return SFTTrainer(llama, args, **given)

    return trainer


@pytest.mark.parametrize(
    "fields", [{}, {"remove_unused_columns": False}, {"padding_free": False}], ids=["plain", "all-columns", "padded"]
)
@pytest.mark.parametrize("read", [Dataset.from_list, lambda rows: Dataset.from_list(rows).to_iterable_dataset()],
                         ids=["map-style", "stream"])  # fmt: skip
def test_rows_without_token_ids_are_refused_by_the_constructor(make, read, fields):
    with pytest.raises(DataError, match=f"^train_dataset: .*{SAID}"):
        make(read(PAIRS), **fields)
    with pytest.raises(DataError, match=rf"^eval_dataset\['b'\]: .*{SAID}"):
        make(Dataset.from_list(TOKENS), {"a": Dataset.from_list(TOKENS), "b": read(PAIRS)}, **fields)


def test_so_are_those_of_a_later_evaluation(make):
    trainer = make(Dataset.from_list(TOKENS))
    for call in (trainer.evaluate, trainer.predict):
        with pytest.raises(DataError, match=SAID):
            call(Dataset.from_list(PAIRS))


def test_where_the_columns_are_known_from_the_rows_alone_the_batch_says_it(make):
    with pytest.raises(DataError, match=r"^a batch: the rows have no input_ids, so they are not prepared"):
        make(stream(PAIRS)).train()
    with pytest.raises(DataError, match=r"^a batch: the rows have no input_ids, only prompt, completion"):
        make(stream(PAIRS), padding_free=True, remove_unused_columns=False).train()


@pytest.mark.parametrize(
    "rows",
    [
        lambda: Dataset.from_list(TOKENS),
        lambda: stream(TOKENS),
        lambda: list(TOKENS),
        TorchRows,
        lambda: Dataset.from_list(PAIRS).with_transform(lambda batch: {"input_ids": [[4, 5]] * len(batch["prompt"])}),
    ],
    ids=["map-style", "stream", "list", "torch", "transform"],
)
def test_rows_of_token_ids_are_trained_on_whatever_they_stand_in(make, rows):
    assert make(rows(), remove_unused_columns=False).train().global_step == 1
