"""Noise on embeddings: the paper's amount, in training only, and nothing left of it afterwards."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig
from sftcore_plugins.noise.neftune import NEFTune, lengths_of

from sftcore import CheckError, ConflictError, LoadedModel, Plan, RecipeError, SFTTrainer
from tests.conftest import alpaca_rows, make_llama
from tests.train.test_trainer import config, losses

WIDTH = 32


@pytest.fixture
def rows():
    return Dataset.from_list(alpaca_rows(16))


def noise_of(model, alpha, batch):
    """What the noise adds to the embeddings of one forward pass in training mode: (rows, tokens, width)."""
    embeddings, seen = model.get_input_embeddings(), []
    handle = NEFTune(alpha=alpha).inject_noise(loaded=LoadedModel(model.train(), None), plan=Plan(()))
    spy = embeddings.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    model(**batch)
    handle.remove()
    spy.remove()
    return seen[0] - torch.nn.functional.embedding(batch["input_ids"], embeddings.weight.detach())


def assert_uniform(noise, alpha, length):
    """U(-1, 1) times alpha / sqrt(length x width): bounds, mean 0 and standard deviation bound / sqrt(3)."""
    bound = alpha / (length * WIDTH) ** 0.5
    assert noise.abs().max() <= bound * 1.0001
    assert noise.abs().max() > 0.98 * bound
    assert noise.std() == pytest.approx(bound / 3**0.5, rel=0.08)
    assert abs(noise.mean()) < 0.08 * bound


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_get_noise_by_their_own_length_and_padding_gets_none(llama, side):
    mask = torch.zeros(2, 60, dtype=torch.long)
    mask[0], mask[1, slice(None, 20) if side == "right" else slice(-20, None)] = 1, 1
    noise = noise_of(llama, 5.0, {"input_ids": torch.randint(4, 300, (2, 60)), "attention_mask": mask})
    assert_uniform(noise[0], 5.0, 60)
    assert_uniform(noise[1][mask[1].bool()], 5.0, 20)
    assert not noise[1][~mask[1].bool()].any()


def test_every_document_of_a_packed_row_gets_noise_by_its_own_length(llama):
    positions = torch.cat([torch.arange(length) for length in (40, 10, 100)])[None]
    noise = noise_of(llama, 15.0, {"input_ids": torch.randint(4, 300, (1, 150)), "position_ids": positions})
    for document, length in zip(noise[0].split([40, 10, 100]), (40, 10, 100), strict=True):
        assert_uniform(document, 15.0, length)


def test_lengths_count_through_rows_and_fall_back_to_the_row():
    embedded = torch.zeros(2, 4, 1)
    positions = torch.tensor([[0, 1, 0, 0], [0, 1, 2, 3]])
    mask_of_pairs = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    found = lengths_of({"position_ids": positions, "attention_mask": mask_of_pairs}, embedded)
    assert found.tolist() == [[2, 2, 1, 1], [4, 4, 4, 4]]
    assert lengths_of({}, embedded).tolist() == [[4] * 4] * 2


def test_bfloat16_embeddings_get_finely_drawn_noise(tokenizer):
    noise = noise_of(make_llama(tokenizer).bfloat16(), 5.0, {"input_ids": torch.randint(4, 300, (1, 50))})
    assert noise.dtype == torch.bfloat16
    assert noise.float().std() == pytest.approx(5 / (50 * WIDTH) ** 0.5 / 3**0.5, rel=0.1)


def test_evaluation_has_no_noise_and_training_has(tmp_path, tokenizer, rows):
    def trainer(alpha):
        args = config(tmp_path, neftune_noise_alpha=alpha, learning_rate=0.0, eval_strategy="steps", eval_steps=1)
        return SFTTrainer(
            make_llama(tokenizer), args, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer
        )

    noisy, plain = trainer(50.0), trainer(None)
    for one in (noisy, plain):
        one.train()
    evaluated = [[e["eval_loss"] for e in one.state.log_history if "eval_loss" in e] for one in (noisy, plain)]
    assert evaluated[0] == evaluated[1]
    assert losses(noisy) != losses(plain)
    assert noisy.evaluate()["eval_loss"] == evaluated[0][-1]


@pytest.mark.parametrize(
    "adapter",
    [{}, {"target_modules": ["q_proj"]}, {"target_modules": ["embed_tokens", "q_proj"]},
     {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}],
    ids=["whole", "lora", "lora-on-embeddings", "embeddings-saved"],
)  # fmt: skip
@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_does_not_train_is_the_same_to_the_last_bit_and_no_hook_is_left(
    tmp_path, tokenizer, rows, adapter, checkpointing
):
    model = make_llama(tokenizer)
    hooks = {name: len(m._forward_hooks) + len(m._forward_pre_hooks) for name, m in model.named_modules()}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    args = config(tmp_path, neftune_noise_alpha=5, gradient_checkpointing=checkpointing,
                  learning_rate=0.0 if not adapter else 1e-2, weight_decay=0.0)  # fmt: skip
    peft_config = LoraConfig(r=2, task_type="CAUSAL_LM", **adapter) if adapter else None
    trainer = SFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer, peft_config=peft_config)
    ready = {name: len(m._forward_hooks) + len(m._forward_pre_hooks) for name, m in trainer.model.named_modules()}
    trainer.train()
    assert len(losses(trainer)) == 2
    after = {name.replace("base_layer.", "").replace("original_module.", ""): p
             for name, p in trainer.model.named_parameters()}  # fmt: skip
    prefix = "base_model.model." if adapter else ""
    for name, parameter in before.items():
        assert torch.equal(after[prefix + name], parameter), name
    left = {name: len(m._forward_hooks) + len(m._forward_pre_hooks) for name, m in trainer.model.named_modules()}
    added = {name for name, count in left.items() if count != ready[name]}
    assert not added or (checkpointing and added <= {name for name in left if name.endswith("embed_tokens")})
    assert sum(hooks.values()) == 0


def test_adapters_saw_noise_once(tmp_path, tokenizer, llama, rows):
    """LoRA on the embeddings calls the layer below it too, and a saved copy stands beside it: one of them has noise."""
    for adapter in ({"target_modules": ["embed_tokens"]}, {"modules_to_save": ["embed_tokens"]}):
        from peft import get_peft_model

        model = get_peft_model(make_llama(tokenizer), LoraConfig(**{"target_modules": ["q_proj"], **adapter}))
        noise = noise_of(model, 5.0, {"input_ids": torch.randint(4, 300, (1, 64))})
        assert_uniform(noise, 5.0, 64)


def test_prompt_tuning_gets_noise_on_its_words(tmp_path, tokenizer, llama, rows):
    peft_config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    args = config(tmp_path, neftune_noise_alpha=5)
    trainer = SFTTrainer(llama, args, train_dataset=rows, processing_class=tokenizer, peft_config=peft_config)
    trainer.train()
    assert len(losses(trainer)) == 2


@pytest.mark.parametrize("shared", [{"packing": True, "max_length": 64}, {"padding_free": True}])
def test_a_run_with_noise_comes_out_the_same_twice_and_resumes_bit_exact(tmp_path, tokenizer, rows, shared):
    def trained(**resume):
        args = config(
            tmp_path, max_steps=4, neftune_noise_alpha=15.0, save_strategy="steps", save_steps=2,
            lr_scheduler_type="constant", **shared,
        )  # fmt: skip
        trainer = SFTTrainer(make_llama(tokenizer), args, train_dataset=rows, processing_class=tokenizer)
        trainer.train(**resume)
        return list(trainer.model.parameters())

    whole = trained()
    for one in (trained(), trained(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(one, whole, strict=True))


def test_wrong_options_are_refused(tmp_path, tokenizer, llama, rows):
    with pytest.raises((RecipeError, CheckError, ValueError, TypeError), match="alpha"):
        SFTTrainer(llama, config(tmp_path, neftune_noise_alpha=-1), train_dataset=rows, processing_class=tokenizer)
    args = config(tmp_path, neftune_noise_alpha=5, plugins={"noise": {"neftune": {"alpha": 10}}})
    with pytest.raises(ConflictError, match="neftune"):
        SFTTrainer(llama, args, train_dataset=rows, processing_class=tokenizer)
