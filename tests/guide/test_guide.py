"""The statements of TRL's guide to its SFTTrainer, each run as a script would after its import was replaced.

The guide is that of TRL 0.17, https://huggingface.co/docs/trl/v0.17.0/sft_trainer. Its lines which transformers 5 or
TRL 1.16 do not take any more are in test_older_lines.py.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch
from datasets import load_dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftcore import (
    ModelConfig,
    SFTConfig,
    SFTCoreError,
    SFTTrainer,
    get_kbit_device_map,
    get_peft_config,
    get_quantization_config,
)
from sftcore.plugin_api import triton_is_interpreted

pytestmark = pytest.mark.usefixtures("hub")


def short(output_dir: str = "out", **fields) -> SFTConfig:
    """The settings of a statement, and those that keep a test short."""
    shown = {"max_steps": 2, "per_device_train_batch_size": 2, "save_strategy": "no", "use_cpu": True}
    return SFTConfig(output_dir, **{**shown, "disable_tqdm": True, **fields})


def has_learned(trainer: SFTTrainer) -> bool:
    """Whether training changed weights, and only to finite ones."""
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters() if value.requires_grad}
    loss = trainer.train().training_loss
    after = dict(trainer.model.named_parameters())
    finite = all(torch.isfinite(after[name]).all() for name in before)
    return loss > 0 and finite and any(not torch.equal(value, after[name]) for name, value in before.items())


def texts(trainer: SFTTrainer) -> list[str]:
    return [trainer.processing_class.decode(row["input_ids"]) for row in trainer.train_dataset]


# --- Quickstart -------------------------------------------------------------------------------------------------------
def test_a_model_by_name():
    dataset = load_dataset("stanfordnlp/imdb", split="train")
    trainer = SFTTrainer("facebook/opt-350m", train_dataset=dataset, args=short(max_length=512))
    assert texts(trainer)[0] == "The film number 0 was good<|im_end|>"
    assert has_learned(trainer)


def test_a_model_that_was_loaded_before():
    dataset = load_dataset("stanfordnlp/imdb", split="train")
    model = AutoModelForCausalLM.from_pretrained("facebook/opt-350m")
    trainer = SFTTrainer(model, train_dataset=dataset, args=short())
    assert texts(trainer)[0] == "The film number 0 was good<|im_end|>"
    assert has_learned(trainer)


# --- Rows -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("packing", [False, True])
def test_conversations_and_instructions_from_a_file_and_from_the_hub(packing):
    args = short(packing=packing)
    instructions = load_dataset("json", data_files="instructions/train.jsonl", split="train")
    assert has_learned(SFTTrainer("facebook/opt-350m", args=args, train_dataset=instructions))
    dataset = load_dataset("philschmid/dolly-15k-oai-style", split="train")
    trainer = SFTTrainer("Qwen/Qwen2.5-0.5B", args=short(packing=packing), train_dataset=dataset)
    told = AutoTokenizer.from_pretrained("Qwen/Qwen2.5-0.5B").apply_chat_template(
        dataset[0]["messages"], tokenize=False
    )
    assert any(told in text for text in texts(trainer))
    assert has_learned(trainer)


def formatted(example):
    return f"### Question: {example['question']}\n ### Answer: {example['answer']}"


@pytest.mark.parametrize("packing", [False, True])
def test_a_formatting_function_of_one_row(packing):
    dataset = load_dataset("questions", split="train")
    model = AutoModelForCausalLM.from_pretrained("facebook/opt-350m")
    trainer = SFTTrainer(model, args=short(packing=packing), train_dataset=dataset, formatting_func=formatted)
    assert all(any(formatted(row) in text for text in texts(trainer)) for row in dataset)
    assert has_learned(trainer)


def test_packing_of_training_rows_alone():
    dataset = load_dataset("stanfordnlp/imdb", split="train")
    args = short(packing=True, eval_packing=False, eval_strategy="steps", eval_steps=1)
    trainer = SFTTrainer("facebook/opt-350m", train_dataset=dataset, eval_dataset=dataset, args=args)
    assert len(trainer.train_dataset) < len(dataset) == len(trainer.eval_dataset)
    assert has_learned(trainer)
    assert [entry for entry in trainer.state.log_history if "eval_loss" in entry]


def test_a_stream_and_rows_that_are_tokens_already():
    stream = load_dataset("stanfordnlp/imdb", split="train", streaming=True)
    for packing in (False, True):
        args = short(packing=packing)
        assert has_learned(SFTTrainer("facebook/opt-350m", train_dataset=stream, args=args))
    tokenizer = AutoTokenizer.from_pretrained("facebook/opt-350m")
    tokens = load_dataset("stanfordnlp/imdb", split="train").map(lambda row: tokenizer(row["text"]))
    trainer = SFTTrainer("facebook/opt-350m", train_dataset=tokens, args=short())
    assert trainer.train_dataset["input_ids"] == tokens["input_ids"]
    assert has_learned(trainer)


# --- The model --------------------------------------------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore:.*torch_dtype.*")
def test_arguments_for_loading_the_model():
    dataset = load_dataset("stanfordnlp/imdb", split="train")
    args = short(model_init_kwargs={"torch_dtype": "bfloat16"})
    trainer = SFTTrainer("facebook/opt-350m", train_dataset=dataset, args=args)
    assert {weight.dtype for weight in trainer.model.parameters()} == {torch.bfloat16}
    assert has_learned(trainer)


@pytest.mark.filterwarnings("ignore:.*torch_dtype.*")
def test_arguments_for_loading_the_model_that_are_set_later():
    dataset = load_dataset("stanfordnlp/imdb", split="train")
    args = short()
    args.model_init_kwargs = {"torch_dtype": "bfloat16"}
    trainer = SFTTrainer("facebook/opt-350m", train_dataset=dataset, args=args)
    assert {weight.dtype for weight in trainer.model.parameters()} == {torch.bfloat16}


@pytest.mark.filterwarnings("ignore:.*torch_dtype.*")
@pytest.mark.parametrize("dtype", [None, "bfloat16", "auto"])
def test_the_utility_that_makes_models(dtype):
    """`getattr(torch, model_args.torch_dtype)` and all that the guide hands to `from_pretrained`."""
    training_args = short()
    model_args = ModelConfig(model_name_or_path="facebook/opt-350m", attn_implementation=None, torch_dtype=dtype)
    read = model_args.torch_dtype
    assert read == (dtype or "float32")  # the default of today
    torch_dtype = read if read in ["auto", None] else getattr(torch, read)
    quantization_config = get_quantization_config(model_args)
    model_kwargs = {
        "revision": model_args.model_revision, "trust_remote_code": training_args.trust_remote_code,
        "attn_implementation": model_args.attn_implementation, "torch_dtype": torch_dtype,
        "use_cache": not training_args.gradient_checkpointing, "quantization_config": quantization_config,
        "device_map": get_kbit_device_map() if quantization_config is not None else None,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(model_args.model_name_or_path, **model_kwargs)
    assert model.dtype == (torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    dataset = load_dataset("stanfordnlp/imdb", split="train")
    peft_config = get_peft_config(model_args)
    assert peft_config is None
    trainer = SFTTrainer(
        model=model_args.model_name_or_path, args=training_args, train_dataset=dataset, peft_config=peft_config
    )
    assert has_learned(trainer)


# --- Adapters ---------------------------------------------------------------------------------------------------------
def lora(**options) -> LoraConfig:
    return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, task_type="CAUSAL_LM", **options)


def test_an_adapter_with_embeddings_and_head():
    dataset = load_dataset("trl-lib/Capybara", split="train")
    peft_config = lora(target_modules="all-linear", modules_to_save=["lm_head", "embed_tokens"])
    args = short("Qwen2.5-0.5B-SFT")
    trainer = SFTTrainer("Qwen/Qwen2.5-0.5B", train_dataset=dataset, args=args, peft_config=peft_config)
    assert has_learned(trainer)
    # the head of this model is its embeddings
    trained = {name for name, weight in trainer.model.named_parameters(remove_duplicate=False) if weight.requires_grad}
    assert any("embed_tokens.modules_to_save" in name for name in trained)
    assert any("lm_head.modules_to_save" in name for name in trained)
    assert any("lora_A" in name for name in trained)
    trainer.save_model()
    base = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-0.5B")
    saved = PeftModel.from_pretrained(base, "Qwen2.5-0.5B-SFT").eval()
    tokens = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(saved(tokens).logits, trainer.model.eval()(tokens).logits)


def test_a_module_that_the_guide_misspells_is_named():
    """The guide's `embed_token` is no module of Qwen2, and PEFT leaves it out without a word."""
    dataset = load_dataset("trl-lib/Capybara", split="train")
    peft_config = lora(target_modules="all-linear", modules_to_save=["lm_head", "embed_token"])
    with pytest.raises(SFTCoreError, match=r'embed_token".*Did you mean "embed_tokens"'):
        SFTTrainer("Qwen/Qwen2.5-0.5B", train_dataset=dataset, args=short(), peft_config=peft_config)


def test_a_peft_model_is_trained_further():
    dataset = load_dataset("stanfordnlp/imdb", split="train")
    model = AutoModelForCausalLM.from_pretrained("EleutherAI/gpt-neo-125m")
    get_peft_model(model, lora(target_modules=["q_proj"])).save_pretrained("adapter")
    base = AutoModelForCausalLM.from_pretrained("EleutherAI/gpt-neo-125m")
    continued = PeftModel.from_pretrained(base, "adapter", is_trainable=True)
    assert has_learned(SFTTrainer(continued, train_dataset=dataset, args=short()))


# --- Attention, noise and kernels -------------------------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore:.*sdp_kernel.*:FutureWarning")
def test_training_inside_torchs_choice_of_attention():
    dataset = load_dataset("stanfordnlp/imdb", split="train")
    trainer = SFTTrainer("mistralai/Mistral-7B-v0.1", train_dataset=dataset, args=short(packing=True))
    with torch.backends.cuda.sdp_kernel(enable_flash=True, enable_math=False, enable_mem_efficient=False):
        assert has_learned(trainer)


def test_flash_attention_without_a_gpu_names_what_is_missing():
    dataset = load_dataset("stanfordnlp/imdb", split="train")
    args = short(model_init_kwargs={"attn_implementation": "flash_attention_2"})
    with pytest.raises(SFTCoreError, match="flash"):
        SFTTrainer("mistralai/Mistral-7B-v0.1", train_dataset=dataset, args=args)


def test_noise_on_the_embeddings_is_gone_afterwards():
    dataset = load_dataset("stanfordnlp/imdb", split="train")
    trainer = SFTTrainer("facebook/opt-350m", train_dataset=dataset, args=short(neftune_noise_alpha=5))
    assert has_learned(trainer)
    embeddings, tokens = trainer.model.get_input_embeddings(), torch.tensor([[1, 2, 3]])
    trainer.model.train()
    assert torch.equal(embeddings(tokens), embeddings.weight[tokens])


@pytest.mark.slow
def test_ligers_kernels_are_used_or_what_is_missing_is_named(monkeypatch):
    dataset = load_dataset("stanfordnlp/imdb", split="train")
    args = short(use_liger_kernel=True)
    if importlib.util.find_spec("liger_kernel") is None or not (torch.cuda.is_available() or triton_is_interpreted()):
        with pytest.raises(SFTCoreError, match="liger"):
            SFTTrainer("mistralai/Mistral-7B-v0.1", train_dataset=dataset, args=args)
        return
    trainer = SFTTrainer("mistralai/Mistral-7B-v0.1", train_dataset=dataset, args=args)
    assert has_learned(trainer)
    assert [one.name for one in trainer.setup.plan.selections if one.kind == "kernel"] == ["liger"]


# --- Several processes ------------------------------------------------------------------------------------------------
def test_checkpointing_as_several_processes_need_it():
    dataset = load_dataset("stanfordnlp/imdb", split="train")
    args = short(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False})
    assert has_learned(SFTTrainer("facebook/opt-350m", train_dataset=dataset, args=args))
