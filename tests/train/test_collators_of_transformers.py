"""transformers' own collators as `data_collator`: the labels that are trained on stay those of the rows."""

from __future__ import annotations

import pytest
from datasets import Dataset
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
)

from sftcore import ConflictError, SFTConfig, SFTTrainer
from tests.conftest import make_llama, make_tokenizer

TEXTS = [{"text": "say hello " * (i + 1)} for i in range(4)]
PAIRS = [{"prompt": f"say {i}:", "completion": " hello" * (i + 1)} for i in range(4)]
COLLATORS = {
    "language modelling": lambda tokenizer: DataCollatorForLanguageModeling(tokenizer, mlm=False),
    "padding": DataCollatorWithPadding,
    "padding to a multiple": lambda tokenizer: DataCollatorWithPadding(tokenizer, pad_to_multiple_of=16),
    "sequence to sequence": DataCollatorForSeq2Seq,
    "token classification": DataCollatorForTokenClassification,
    "flattening": lambda _: DataCollatorWithFlattening(),
}


def trainer_with(folder, collator, rows, **given):
    args = SFTConfig(
        str(folder), use_cpu=True, max_steps=1, per_device_train_batch_size=4, save_strategy="no", report_to="none",
        padding_free=None if collator else False, shuffle_dataset=False,
    )  # fmt: skip
    tokenizer = given.pop("tokenizer", None) or make_tokenizer()
    return SFTTrainer(
        make_llama(tokenizer), args, data_collator=collator, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, **given,
    )  # fmt: skip


@pytest.mark.parametrize("rows", [TEXTS, PAIRS], ids=["texts", "pairs"])
@pytest.mark.parametrize("name", COLLATORS)
def test_a_run_with_it_has_the_loss_of_the_runs_own(tmp_path, name, rows):
    tokenizer = make_tokenizer()
    found = trainer_with(tmp_path, COLLATORS[name](tokenizer), rows, tokenizer=tokenizer).train().training_loss
    assert found == pytest.approx(trainer_with(tmp_path, None, rows).train().training_loss, rel=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_labels_and_weights_stand_where_their_tokens_do(tmp_path, side):
    tokenizer = make_tokenizer()
    tokenizer.padding_side = side
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "weights": [0.0, 0.5, 2.0]}, {"input_ids": [8, 9]}]
    trainer = trainer_with(tmp_path, DataCollatorWithPadding(tokenizer), TEXTS, tokenizer=tokenizer)
    batch = {name: value.tolist() for name, value in trainer.data_collator(rows).items()}
    filler = tokenizer.pad_token_id
    left = side == "left"
    assert batch == {
        "input_ids": [[5, 6, 7], [filler, 8, 9] if left else [8, 9, filler]],
        "attention_mask": [[1, 1, 1], [0, 1, 1] if left else [1, 1, 0]],
        "labels": [[-100, 6, 7], [-100, -100, 9] if left else [-100, 9, -100]],
        "weights": [[0.0, 0.5, 2.0], [0.0, 1.0, 1.0] if left else [1.0, 1.0, 0.0]],
    }


def test_masked_language_modelling_is_refused(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<s>"})
    with pytest.raises(ConflictError, match=r"data_collator: .*masks tokens.* Pass mlm=False"):
        trainer_with(tmp_path, DataCollatorForLanguageModeling(tokenizer), TEXTS, tokenizer=tokenizer)
