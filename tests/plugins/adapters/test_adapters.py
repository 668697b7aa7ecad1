"""Adapters of every kind: trained, saved, continued and merged without a change in what the model says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from sftcore import CheckError, ModelError, SFTTrainer
from sftcore.model.build import merge_adapter
from tests.conftest import alpaca_rows, make_llama
from tests.train.test_trainer import config, losses

IDS = torch.arange(4, 24)[None]


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def stirred(model):
    """The model with every trainable weight moved away from where PEFT starts it, which changes nothing yet."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def rows() -> Dataset:
    return Dataset.from_list(alpaca_rows(16))


@pytest.mark.parametrize("rows_of_embedding", [None, 384])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": "all-linear"},
        {"target_modules": "all-linear", "use_dora": True},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    ],
    ids=["lora", "dora", "embeddings", "embeddings and head", "saved whole"],
)
def test_a_merged_model_says_what_the_unmerged_one_says_also_after_a_reload(
    tmp_path, tokenizer, rows, options, tied, rows_of_embedding
):
    model = make_llama(tokenizer, tie_word_embeddings=tied)
    if rows_of_embedding:
        model.resize_token_embeddings(rows_of_embedding)
    trainer = SFTTrainer(
        model, config(tmp_path, max_steps=1), train_dataset=rows, processing_class=tokenizer,
        peft_config=LoraConfig(r=4, task_type="CAUSAL_LM", **options),
    )  # fmt: skip
    wanted = logits(stirred(trainer.model))
    merged = merge_adapter(trainer.model)
    torch.testing.assert_close(logits(merged), wanted, atol=1e-3, rtol=0)
    merged.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), wanted, atol=1e-3, rtol=0
    )


def test_a_saved_adapter_is_a_model_that_trains_on(tmp_path, model_folder, rows):
    first = SFTTrainer(
        str(model_folder), config(tmp_path, max_steps=3), train_dataset=rows,
        peft_config=LoraConfig(r=4, task_type="CAUSAL_LM"),
    )  # fmt: skip
    first.train()
    first.save_model()
    folder = tmp_path / "out"
    again = SFTTrainer(str(folder), config(tmp_path / "again", max_steps=3), train_dataset=rows)
    assert isinstance(again.model, PeftModel)
    assert f"adapter {folder} trains on, on its base {model_folder}" in again.loaded.notes
    torch.testing.assert_close(logits(again.model), logits(first.model), atol=1e-6, rtol=0)
    again.train()
    assert losses(again)[-1] < losses(first)[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_continued_from_a_checkpoint_equals_training_in_one_go(tmp_path, model_folder, rows, dtype):
    def trainer(name, **fields):
        saving = {"save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "constant"}
        fields = {"max_steps": 6, "adapter_dtype": dtype, **saving, **fields}
        return SFTTrainer(
            str(model_folder), config(tmp_path / name, **fields), train_dataset=rows,
            peft_config=LoraConfig(r=4, lora_dropout=0.1, task_type="CAUSAL_LM"),
        )  # fmt: skip

    whole = trainer("whole")
    whole.train()
    trainer("parts", max_steps=3).train()
    rest = trainer("parts")
    rest.train(resume_from_checkpoint=str(tmp_path / "parts" / "out" / "checkpoint-3"))
    for name, parameter in whole.model.named_parameters():
        torch.testing.assert_close(rest.model.get_parameter(name), parameter, atol=0, rtol=0)


def test_training_continued_from_a_saved_adapter_equals_training_in_one_go(tmp_path, model_folder, rows):
    """With plain gradient descent, whose whole state is the weights, and all rows in each batch."""

    def trained(name, model, steps, **fields):
        fields = {"optim": "sgd", "lr_scheduler_type": "constant", "per_device_train_batch_size": 16, **fields}
        trainer = SFTTrainer(
            str(model), config(tmp_path / name, max_steps=steps, learning_rate=0.5, **fields), train_dataset=rows,
            peft_config=LoraConfig(r=4, task_type="CAUSAL_LM") if model == model_folder else None,
        )  # fmt: skip
        trainer.train()
        trainer.save_model()
        return trainer

    whole = trained("whole", model_folder, 6)
    first = trained("first", model_folder, 3)
    rest = trained("rest", tmp_path / "first" / "out", 3)
    moved = 0.0
    for name, parameter in whole.model.named_parameters():
        torch.testing.assert_close(rest.model.get_parameter(name), parameter, atol=1e-6, rtol=1e-5)
        moved = max(moved, (first.model.get_parameter(name) - parameter).abs().max().item())
    assert moved > 1e-4  # the last three steps did something


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {"peft_type": "IA3"},
        {"peft_type": "VERA", "target_modules": ["q_proj", "o_proj"]},
        {"peft_type": "PROMPT_TUNING", "arguments": {"num_virtual_tokens": 4}},
        {"peft_type": "P_TUNING", "arguments": {"num_virtual_tokens": 4, "encoder_hidden_size": 16}},
    ],
    ids=["rslora", "ia3", "vera", "prompt tuning", "p-tuning"],
)
def test_every_method_trains_its_own_weights_alone_with_frozen_embeddings(
    tmp_path, model_folder, rows, options, checkpointing
):
    args = config(
        tmp_path, plugins={"adapter": {"lora": {**options}}}, gradient_checkpointing=checkpointing,
        learning_rate=0.01 if "use_rslora" in options else 0.05,
    )  # fmt: skip
    trainer = SFTTrainer(str(model_folder), args, train_dataset=rows)
    before = {name: one.clone() for name, one in trainer.model.named_parameters()}
    trainer.train()
    trains = {name for name, one in trainer.model.named_parameters() if one.requires_grad}
    moved = {name for name, one in trainer.model.named_parameters() if not torch.equal(one, before[name])}
    assert moved
    assert moved <= trains
    assert losses(trainer)[-1] < losses(trainer)[0]


def test_the_experts_of_a_mixture_are_adapted_as_parameters(tmp_path, rows, tokenizer):
    torch.manual_seed(0)
    model = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
        )
    )  # fmt: skip
    target = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    options = {"r": 4, "lora_dropout": 0.0, "target_modules": [], "target_parameters": target}
    args = config(tmp_path, plugins={"adapter": {"lora": options}})
    trainer = SFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer)
    before = {name: one.clone() for name, one in trainer.model.named_parameters() if "lora_B" in name}
    assert before
    assert all("experts" in name for name in before)
    trainer.train()
    assert all(not torch.equal(trainer.model.get_parameter(name), one) for name, one in before.items())


def test_the_active_one_of_several_adapters_trains(tmp_path, tokenizer, llama, rows):
    model = get_peft_model(llama, LoraConfig(r=4, task_type="CAUSAL_LM"), adapter_name="first")
    model.add_adapter("second", LoraConfig(r=2, task_type="CAUSAL_LM"))
    model.set_adapter("second")
    before = {name: one.clone() for name, one in model.named_parameters()}
    trainer = SFTTrainer(model, config(tmp_path), train_dataset=rows, processing_class=tokenizer)
    assert "adapter second of the given PeftModel trains on; first stays as it is" in trainer.loaded.notes
    trainer.train()
    moved = {name for name, one in trainer.model.named_parameters() if not torch.equal(one, before[name])}
    assert moved
    assert all(".second." in name for name in moved)


METHODS = [
    PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=16),
    PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
]


@pytest.mark.parametrize("fields", [{"packing": True, "max_length": 64}, {"padding_free": True}])
@pytest.mark.parametrize("method", METHODS, ids=lambda one: one.peft_type.value)
def test_virtual_tokens_and_documents_in_one_row_exclude_each_other(tmp_path, model_folder, rows, method, fields):
    with pytest.raises(CheckError, match="puts virtual tokens before a row and drops the position ids"):
        SFTTrainer(str(model_folder), config(tmp_path, **fields), train_dataset=rows, peft_config=method)


def test_a_tied_head_that_is_saved_whole_stays_tied(tmp_path, tokenizer, rows):
    trainer = SFTTrainer(
        make_llama(tokenizer, tie_word_embeddings=True), config(tmp_path, max_steps=2), train_dataset=rows,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, task_type="CAUSAL_LM", modules_to_save=["embed_tokens", "lm_head"]),
    )  # fmt: skip
    trainer.train()
    causal = trainer.model.get_base_model()
    saved = [one.modules_to_save["default"].weight for one in (causal.model.embed_tokens, causal.lm_head)]
    assert saved[0].data_ptr() == saved[1].data_ptr()


def test_an_adapter_that_cannot_be_merged_says_so(llama):
    model = get_peft_model(llama, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises(ModelError, match="adds virtual tokens and has no weights to merge"):
        merge_adapter(model)


WRONG = [
    ("trainable_token_indices", [99999], r"trainable_token_indices names 99999, .* rows\. Name ids from 0 to \d+"),
    ("trainable_token_indices", [-5], "trainable_token_indices names -5"),
    ("trainable_token_indices", {"embed_tokens": [5, 99999]}, "of embed_tokens names 99999"),
    ("trainable_token_indices", {"lm_head": [400]}, "of lm_head names 400"),
    ("layer_replication", [[0, 9]], r"layers \[0, 9\], and the model has 2\. .*\[\[0, 2\]\]"),
    ("layer_replication", [[1, 0]], r"layers \[1, 0\]"),
    ("bias", "foo", "PEFT refuses this adapter: Requested bias: foo"),
]


@pytest.mark.parametrize("ready", [True, False], ids=["config", "plugin"])
@pytest.mark.parametrize(("option", "value", "said"), WRONG, ids=[f"{one[0]}-{i}" for i, one in enumerate(WRONG)])
def test_rows_and_layers_that_the_model_does_not_have_are_one_error(
    tmp_path, tokenizer, rows, option, value, said, ready
):
    chosen = {"peft_config": LoraConfig(task_type="CAUSAL_LM", **{option: value})} if ready else {}
    plugins = {} if ready else {"adapter": {"lora": {"arguments": {option: value}}}}
    with pytest.raises(ModelError, match=rf"^adapter\.lora: .*{said}"):
        SFTTrainer(
            make_llama(tokenizer), config(tmp_path, plugins=plugins), train_dataset=rows,
            processing_class=tokenizer, **chosen,
        )  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {"trainable_token_indices": [0, np.int64(5)]},
        {"trainable_token_indices": {"embed_tokens": [5]}},
        {"layer_replication": [[0, 2], (1, 2)]},
    ],
    ids=["ids", "ids of a module", "layers"],
)
def test_those_that_it_has_are_trained(tmp_path, tokenizer, rows, options):
    given = {"train_dataset": rows, "processing_class": tokenizer}
    adapter = LoraConfig(task_type="CAUSAL_LM", **options)
    trainer = SFTTrainer(make_llama(tokenizer), config(tmp_path, max_steps=1), peft_config=adapter, **given)
    assert trainer.train().global_step == 1
