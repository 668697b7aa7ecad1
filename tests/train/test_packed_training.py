"""Packing and padding-free training give the loss and the step of padded rows, or are refused."""

from __future__ import annotations

import json

import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import BloomConfig, BloomForCausalLM, OPTConfig, OPTForCausalLM

from sftcore import ConflictError, ModelError, SFTTrainer
from tests.conftest import alpaca_rows, make_llama
from tests.train.test_trainer import config, losses

ROWS = [{"prompt": f"say {i}:", "completion": " hello" * (1 + i % 5)} for i in range(12)]
WEIGHTED = [
    {
        "messages": [
            {"role": "user", "content": "say"},
            {"role": "assistant", "content": "hello " * (1 + i % 4), "weight": w},
        ]
    }
    for i, w in enumerate([1.0, 0.5, 0.25, 1.0, 1.0, 0.75])
]
SHARED = [
    {"packing": True, "max_length": 64},
    {"packing": True, "max_length": 64, "packing_strategy": "bfd_split"},
    {"packing": True, "max_length": 64, "model_init_kwargs": {"attn_implementation": "sdpa"}},
    {"packing": True, "max_length": 64, "model_init_kwargs": {"attn_implementation": "eager"}},
    {"packing": True, "max_length": 64, "plugins": {"attention": "varlen"}},
    {"packing": True, "max_length": 64, "plugins": {"collator": "flattened"}},
    {"padding_free": True},
    {"padding_free": True, "plugins": {"attention": "varlen"}},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("model")
    make_llama(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def one_step(tmp_path, folder, rows, **fields) -> SFTTrainer:
    """All rows in one step of plain gradient descent."""
    fields = {"max_steps": 1, "logging_steps": 1, "learning_rate": 0.1, "optim": "sgd", "max_grad_norm": 0.0,
              "per_device_train_batch_size": 12, "lr_scheduler_type": "constant", **fields}  # fmt: skip
    trainer = SFTTrainer(folder, config(tmp_path, **fields), train_dataset=Dataset.from_list(rows))
    trainer.train()
    return trainer


@pytest.mark.parametrize("rows", [ROWS, WEIGHTED], ids=["completions", "weighted"])
@pytest.mark.parametrize("shared", SHARED, ids=lambda one: "-".join(map(str, one.values())))
def test_a_step_is_the_same_whether_rows_are_padded_or_share_one(tmp_path, folder, rows, shared):
    padded = one_step(tmp_path, folder, rows, padding_free=False, plugins={"attention": "sdpa"})
    assert padded.shared_rows.proof is None
    packed = one_step(tmp_path, folder, rows, **shared)
    assert losses(packed)[0] == pytest.approx(losses(padded)[0], rel=1e-5)
    assert packed.shared_rows.proof is not None
    assert packed.padding_free == ("model_init_kwargs" not in shared)  # sdpa and eager want blocks side by side
    for name, parameter in padded.model.named_parameters():
        torch.testing.assert_close(packed.model.get_parameter(name), parameter, rtol=1e-4, atol=1e-6)
    counts = [{key: trainer.state.log_history[0][key] for key in ("num_tokens", "num_supervised_tokens")}
              for trainer in (padded, packed)]  # fmt: skip
    assert counts[0] == counts[1]


def test_the_proof_and_every_row_stand_in_the_runs_folder(tmp_path, folder, capsys):
    rows = [*ROWS, {"prompt": "say " * 80, "completion": " hello"}]
    one_step(tmp_path, folder, rows, packing=True, max_length=64, plugins={"attention": "sdpa"})
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["documents"]["way"], manifest["documents"]["neighbours_gap"]) == ("positions", 0.0)
    (ledger,) = json.loads((tmp_path / "out" / "ledger.json").read_text())["ledgers"]
    assert ledger["dropped_rows"] == {"no supervised token left after truncation": [12]}
    assert ledger["tokens_in"] == ledger["tokens_kept"] + ledger["tokens_cut"] + ledger["tokens_dropped"]
    said = capsys.readouterr().err
    assert "documents  documents are kept apart by position ids that restart with each document" in said
    assert "packed into" in said


def test_evaluation_packs_as_told_and_gives_the_same_loss(tmp_path, folder):
    found = {}
    for eval_packing in (True, False):
        fields = {"packing": True, "max_length": 64, "eval_packing": eval_packing, "per_device_eval_batch_size": 16}
        trainer = SFTTrainer(
            folder, config(tmp_path, **fields), train_dataset=Dataset.from_list(ROWS),
            eval_dataset=Dataset.from_list(ROWS),
        )  # fmt: skip
        assert ("seq_lengths" in trainer.eval_dataset.column_names) is eval_packing
        found[eval_packing] = trainer.evaluate()["eval_loss"]
    assert found[True] == pytest.approx(found[False], rel=1e-5)


def test_a_stream_is_packed_and_trained_on(tmp_path, folder):
    stream = IterableDataset.from_generator(lambda: iter(alpaca_rows(500)))
    trainer = SFTTrainer(folder, config(tmp_path, packing=True, max_length=128), train_dataset=stream)
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]


def test_a_model_whose_positions_leak_takes_another_way(tmp_path, tokenizer):
    torch.manual_seed(0)
    model = OPTForCausalLM(
        OPTConfig(vocab_size=len(tokenizer), hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
                  word_embed_proj_dim=32, max_position_embeddings=256)
    )  # fmt: skip
    trainer = SFTTrainer(
        model, config(tmp_path, packing=True, max_length=64), train_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    assert trainer.shared_rows.proof.way.name == "mask"
    assert losses(trainer)[-1] < losses(trainer)[0]


@pytest.mark.parametrize("fields", [{"packing": True, "max_length": 64}, {"padding_free": True}])
def test_a_model_that_cannot_keep_documents_apart_is_refused(tmp_path, tokenizer, fields):
    model = BloomForCausalLM(BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=2, n_head=4))
    rows = Dataset.from_list(ROWS)
    for act in ("train", "evaluate"):
        trainer = SFTTrainer(
            model, config(tmp_path, **fields), train_dataset=rows, eval_dataset=rows, processing_class=tokenizer
        )
        with pytest.raises(ModelError, match=r"BloomForCausalLM does not keep .* apart: .* logits by .*packing: false"):
            getattr(trainer, act)()


def test_a_collator_of_ones_own_excludes_padding_free(tmp_path, folder):
    with pytest.raises(ConflictError, match="padding_free is a collator"):
        SFTTrainer(folder, config(tmp_path, padding_free=True), data_collator=lambda rows: {},
                   train_dataset=Dataset.from_list(ROWS))  # fmt: skip


def test_a_collator_that_hides_the_documents_of_packed_rows_is_refused(tmp_path, folder):
    def collate(rows):
        ids = torch.tensor([row["input_ids"] for row in rows])
        return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}

    with pytest.raises(ModelError, match="they would read each other"):
        SFTTrainer(folder, config(tmp_path, packing=True, max_length=64), data_collator=collate,
                   train_dataset=Dataset.from_list(ROWS))  # fmt: skip
