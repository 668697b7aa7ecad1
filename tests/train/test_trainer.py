"""SFTTrainer as scripts written for TRL use it."""

from __future__ import annotations

import json

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from sftcore import ConflictError, DataError, ModelError, RowError, SFTConfig, SFTTrainer
from tests.conftest import alpaca_rows, make_llama, make_tokenizer


def config(tmp_path, **fields) -> SFTConfig:
    defaults = {
        "max_steps": 4, "logging_steps": 2, "per_device_train_batch_size": 2, "save_strategy": "no",
        "learning_rate": 1e-2, "gradient_checkpointing": False, "use_cpu": True,
    }  # fmt: skip
    return SFTConfig(str(tmp_path / "out"), **{**defaults, **fields})


@pytest.fixture
def rows() -> Dataset:
    return Dataset.from_list(alpaca_rows(16))


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_a_folder_trains_saves_and_reloads_with_plain_transformers(tmp_path, model_folder, rows):
    trainer = SFTTrainer(str(model_folder), config(tmp_path), train_dataset=rows)
    trainer.train()
    trainer.save_model()
    folder = tmp_path / "out"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("say hello", return_tensors="pt")
    torch.testing.assert_close(model(**ids).logits, trainer.model(**ids).logits)
    assert {path.name for path in folder.iterdir()} >= {"manifest.json", "README.md", "metrics.jsonl", "tokenizer.json"}


def test_the_manifest_says_what_ran(tmp_path, model_folder, rows):
    trainer = SFTTrainer(str(model_folder), config(tmp_path, hub_token="hf_secret"), train_dataset=rows)
    trainer.train()
    trainer.save_model()
    text = (tmp_path / "out" / "manifest.json").read_text()
    manifest = json.loads(text)
    assert "hf_secret" not in text
    assert manifest["schema"] == 1
    assert {one["kind"] for one in manifest["plugins"]} == {"collator", "loader", "attention", "loss"}
    assert manifest["data"]["formats"]["train_dataset"]["name"] == "alpaca"
    assert manifest["data"]["ledgers"][0]["rows_kept"] == 16
    assert len(manifest["data"]["train_rows_sha256"]) == 64
    assert manifest["steps"] == 4
    assert torch.__version__.startswith(manifest["versions"]["torch"].partition("+")[0])
    logged = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "entropy", "mean_token_accuracy", "num_tokens"} <= logged[0].keys()


@pytest.mark.parametrize(
    "peft_config", [LoraConfig(r=4, target_modules="all-linear"), IA3Config(task_type="CAUSAL_LM")]
)
def test_an_adapter_trains_alone_and_reloads_with_plain_peft(tmp_path, model_folder, rows, peft_config):
    if isinstance(peft_config, IA3Config):
        peft_config.target_modules, peft_config.feedforward_modules = ["k_proj", "v_proj", "down_proj"], ["down_proj"]
    trainer = SFTTrainer(
        str(model_folder), config(tmp_path, gradient_checkpointing=True), train_dataset=rows, peft_config=peft_config
    )
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all("lora_" in name or "ia3_" in name for name in moved)
    trainer.save_model()
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    loaded = PeftModel.from_pretrained(base, tmp_path / "out").eval()
    ids = torch.arange(4, 12)[None]
    torch.testing.assert_close(loaded(input_ids=ids).logits, trainer.model.eval()(input_ids=ids).logits)


def test_an_adapter_on_the_head_is_trained(tmp_path, model_folder, rows):
    peft_config = LoraConfig(r=4, target_modules=["lm_head"], task_type="CAUSAL_LM")
    trainer = SFTTrainer(str(model_folder), config(tmp_path), train_dataset=rows, peft_config=peft_config)
    trainer.train()
    (weight,) = [p for name, p in trainer.model.named_parameters() if "lora_B" in name]
    assert weight.abs().sum() > 0


def test_the_first_step_of_prompt_tuning_has_the_loss_of_its_supervised_tokens(tmp_path, model_folder):
    from peft import PromptTuningConfig

    text = Dataset.from_list([{"text": "say hello"}])
    peft_config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    args = config(tmp_path, max_steps=1, logging_steps=1)
    trainer = SFTTrainer(str(model_folder), args, train_dataset=text, peft_config=peft_config)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    with torch.no_grad():
        logits = trainer.model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = torch.nn.functional.cross_entropy(logits[0, 3:-1], batch["input_ids"][0, 1:])
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(expected.item(), abs=1e-5)


def test_prompt_tuning_trains_its_virtual_tokens(tmp_path, model_folder, rows):
    from peft import PromptTuningConfig

    peft_config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    trainer = SFTTrainer(str(model_folder), config(tmp_path), train_dataset=rows, peft_config=peft_config)
    trainer.train()
    assert len(losses(trainer)) == 2
    assert all(loss > 0 for loss in losses(trainer))


def test_a_peft_model_goes_on_training_and_a_second_adapter_is_refused(tmp_path, tokenizer, llama, rows):
    model = get_peft_model(llama, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    trainer = SFTTrainer(model, config(tmp_path), train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]
    with pytest.raises(ModelError, match="is a PeftModel already"):
        SFTTrainer(model, config(tmp_path), train_dataset=rows, processing_class=tokenizer, peft_config=LoraConfig(r=2))


def test_a_frozen_model_is_refused(tmp_path, tokenizer, llama, rows):
    llama.requires_grad_(False)
    with pytest.raises(ModelError, match="no parameter of the model is trainable"):
        SFTTrainer(llama, config(tmp_path), train_dataset=rows, processing_class=tokenizer)


def test_evaluation_covers_dicts_and_raw_sets_given_later(tmp_path, tokenizer, llama, rows):
    trainer = SFTTrainer(
        llama, config(tmp_path, eval_strategy="steps", eval_steps=2), train_dataset=rows,
        eval_dataset={"a": rows, "b": Dataset.from_list([{"text": "say hello"}])}, processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    keys = {key for entry in trainer.state.log_history for key in entry}
    assert {"eval_a_loss", "eval_b_loss", "eval_a_mean_token_accuracy", "eval_b_mean_token_accuracy"} <= keys
    metrics = trainer.evaluate(Dataset.from_list(alpaca_rows(3)), metric_key_prefix="test")
    assert metrics["test_loss"] > 0


def test_metrics_on_logits_get_them(tmp_path, tokenizer, llama, rows):
    seen = []

    def compute(prediction):
        seen.append(prediction.predictions.shape)
        return {"seen": 1.0}

    trainer = SFTTrainer(
        llama,
        config(tmp_path),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
        compute_metrics=compute,
    )
    assert trainer.evaluate()["eval_seen"] == 1.0
    assert seen[0][-1] == len(tokenizer)


def test_a_users_loss_function_is_what_is_minimised(tmp_path, tokenizer, llama, rows):
    def loss(outputs, labels, num_items_in_batch=None):
        return outputs.logits.float().pow(2).mean()

    trainer = SFTTrainer(
        llama, config(tmp_path), train_dataset=rows, processing_class=tokenizer, compute_loss_func=loss
    )
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0] < 1.0


def test_label_smoothing_works_and_says_it_is_deprecated(tmp_path, tokenizer, llama, rows):
    with pytest.warns(FutureWarning, match="label_smoothing_factor is deprecated"):
        args = config(tmp_path, label_smoothing_factor=0.1)
    trainer = SFTTrainer(llama, args, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]


def test_a_processor_works_like_its_tokenizer(tmp_path, tokenizer, llama, rows):
    from transformers import ProcessorMixin

    class TextProcessor(ProcessorMixin):
        def __init__(self, tokenizer):
            self.tokenizer = tokenizer
            self.chat_template = tokenizer.chat_template

    args = config(tmp_path, eos_token="<|im_end|>")
    trainer = SFTTrainer(llama, args, train_dataset=rows, processing_class=TextProcessor(tokenizer))
    trainer.train()
    assert len(losses(trainer)) == 2


def test_a_model_without_sdpa_falls_back_and_says_so(tmp_path, tokenizer, rows):
    from transformers import BloomConfig, BloomForCausalLM

    folder = tmp_path / "bloom"
    bloom = BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=1, n_head=4)
    BloomForCausalLM(bloom).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    trainer = SFTTrainer(str(folder), config(tmp_path), train_dataset=rows)
    trainer.train()
    assert trainer.model.config._attn_implementation == "eager"
    (said,) = (note for note in trainer.loaded.notes if note.startswith("attention "))
    assert "eager, as others failed: " in said
    assert "sdpa with rows side by side: BloomForCausalLM stays with eager" in said


def test_a_stream_trains(tmp_path, tokenizer, llama):
    stream = IterableDataset.from_generator(lambda: iter(alpaca_rows(100)))
    trainer = SFTTrainer(llama, config(tmp_path), train_dataset=stream, processing_class=tokenizer)
    trainer.train()
    assert trainer.state.global_step == 4


def test_a_users_collator_and_skip_prepare_dataset(tmp_path, tokenizer, llama):
    def collate(rows):
        ids = torch.tensor([tokenizer(row["body"])["input_ids"][:4] for row in rows])
        return {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids)}

    rows = Dataset.from_list([{"body": "say hello world"}] * 8)
    args = config(tmp_path, dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False)
    trainer = SFTTrainer(llama, args, collate, rows, processing_class=tokenizer)
    trainer.train()
    assert len(losses(trainer)) == 2


def test_plain_training_arguments_are_converted(tmp_path, tokenizer, llama, rows):
    args = TrainingArguments(str(tmp_path), max_steps=1, report_to="none", use_cpu=True, save_strategy="no")
    trainer = SFTTrainer(llama, args, train_dataset=rows, processing_class=tokenizer)
    assert isinstance(trainer.args, SFTConfig)
    assert trainer.args.max_steps == 1
    assert trainer.args.learning_rate == 5e-5


def test_max_length_is_lowered_to_the_tokenizers_and_the_run_says_so(tmp_path, llama, rows, capsys):
    short = make_tokenizer()
    short.model_max_length = 64
    trainer = SFTTrainer(llama, config(tmp_path), train_dataset=rows, processing_class=short)
    trainer.train()
    assert "max_length 64: the smaller of the configured 1024 and the tokenizer's 64" in capsys.readouterr().err


def test_the_plan_is_printed_before_the_first_step(tmp_path, tokenizer, llama, rows, capsys):
    SFTTrainer(llama, config(tmp_path), train_dataset=rows, processing_class=tokenizer).train()
    printed = capsys.readouterr().err
    assert "format alpaca, collator padded, attention sdpa, loss nll" in printed
    assert "16 of 16 rows kept" in printed
    assert "steps      4, each of 2 rows, learning rate" in printed


def test_eos_token_reaches_tokenizer_model_and_generation(tmp_path, llama, rows):
    tokenizer = make_tokenizer()
    tokenizer.eos_token = "<pad>"
    trainer = SFTTrainer(
        llama, config(tmp_path, eos_token="<|im_end|>"), train_dataset=rows, processing_class=tokenizer
    )
    assert trainer.processing_class.eos_token == "<|im_end|>"
    assert trainer.model.config.eos_token_id == 3
    assert trainer.model.generation_config.eos_token_id[0] == 3
    with pytest.raises(ModelError, match='the token "<end>" is not in the vocabulary'):
        SFTTrainer(llama, config(tmp_path, eos_token="<end>"), train_dataset=rows, processing_class=tokenizer)


def test_a_template_file_replaces_the_tokenizers(tmp_path, llama, rows, write):
    path = write("t.jinja", "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}")
    tokenizer = make_tokenizer(template=None)
    args = config(tmp_path, chat_template_path=str(path), completion_only_loss=False)
    trainer = SFTTrainer(llama, args, train_dataset=rows, processing_class=tokenizer)
    assert tokenizer.decode(trainer.train_dataset[0]["input_ids"]).startswith("[user]say 0<|im_end|>[assistant]")
    with pytest.raises(ValueError, match="no such file"):
        SFTTrainer(
            llama, config(tmp_path, chat_template_path="no.jinja"), train_dataset=rows, processing_class=tokenizer
        )


def test_experts_are_balanced_unless_switched_off(tmp_path, tokenizer, rows):
    from transformers import MixtralConfig, MixtralForCausalLM

    def trained(**fields):
        torch.manual_seed(0)
        model = MixtralForCausalLM(
            MixtralConfig(
                vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2,
                num_attention_heads=4, num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1,
            )
        )  # fmt: skip
        trainer = SFTTrainer(model, config(tmp_path, **fields), train_dataset=rows, processing_class=tokenizer)
        trainer.train()
        return trainer

    balanced, off = trained(router_aux_loss_coef=0.5), trained(router_aux_loss_coef=0.0)
    assert "aux_loss" in balanced.state.log_history[0]
    assert "aux_loss" not in off.state.log_history[0]
    assert losses(balanced)[0] > losses(off)[0] + 0.3
    with pytest.raises(ConflictError, match="has no experts to balance"):
        SFTTrainer(
            make_llama(tokenizer),
            config(tmp_path, router_aux_loss_coef=0.1),
            train_dataset=rows,
            processing_class=tokenizer,
        )


def small_llama4(tokenizer):
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    torch.manual_seed(0)
    return Llama4ForCausalLM(
        Llama4TextConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, intermediate_size_mlp=32, head_dim=8,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, num_local_experts=2,
            num_experts_per_tok=1, pad_token_id=0,
        )
    )  # fmt: skip


def small_dense_doge(tokenizer):
    from transformers import DogeConfig, DogeForCausalLM

    torch.manual_seed(0)
    return DogeForCausalLM(
        DogeConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, head_dim=8, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, pad_token_id=0,
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (small_llama4, "the model does not return an auxiliary loss of its experts"),
        (small_dense_doge, "DogeForCausalLM has no experts to balance"),
    ],
)
def test_a_model_that_returns_no_auxiliary_loss_trains_and_cannot_be_asked_for_it(
    tmp_path, tokenizer, rows, make, said
):
    def trained(**fields):
        args = config(tmp_path, plugins={"attention": "sdpa"}, **fields)
        trainer = SFTTrainer(make(tokenizer), args, train_dataset=rows, processing_class=tokenizer)
        trainer.train()
        return trainer

    plain, off = trained(), trained(router_aux_loss_coef=0.0)
    assert losses(plain) == losses(off)
    assert "aux_loss" not in plain.state.log_history[0]
    with pytest.raises(ConflictError, match=said):
        trained(router_aux_loss_coef=0.5)


def test_resume_continues_where_the_checkpoint_stands(tmp_path, tokenizer, rows):
    def trainer(steps):
        args = config(tmp_path, max_steps=steps, save_strategy="steps", save_steps=2, lr_scheduler_type="constant")
        return SFTTrainer(make_llama(tokenizer), args, train_dataset=rows, processing_class=tokenizer)

    whole = trainer(4)
    whole.train()
    resumed = trainer(4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


# --- Refusals -------------------------------------------------------------------------------------------------------
def test_train_dataset_is_required(tmp_path, tokenizer, llama):
    with pytest.raises(ValueError, match="`train_dataset` is required"):
        SFTTrainer(llama, config(tmp_path), processing_class=tokenizer)
    with pytest.raises(TypeError, match=r"expected a datasets\.Dataset or IterableDataset, got list"):
        SFTTrainer(llama, config(tmp_path), train_dataset=[{"text": "x"}], processing_class=tokenizer)


def test_a_dict_of_training_sets_is_refused(tmp_path, tokenizer, llama, rows):
    with pytest.raises(TypeError, match=r"train_dataset is one data set, got a DatasetDict of train"):
        SFTTrainer(llama, config(tmp_path), train_dataset=DatasetDict(train=rows), processing_class=tokenizer)


def test_loading_arguments_beside_a_ready_model_are_refused(tmp_path, tokenizer, llama, rows):
    args = config(tmp_path, model_init_kwargs={"dtype": "bfloat16"})
    with pytest.raises(ConflictError, match="would do nothing: dtype"):
        SFTTrainer(llama, args, train_dataset=rows, processing_class=tokenizer)


def test_a_bad_row_is_found_before_any_weight_is_read(tmp_path, tokenizer, rows):
    folder = tmp_path / "model"
    make_llama(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"these are no weights")
    bad = Dataset.from_list([*alpaca_rows(2), {"instruction": "x", "input": "", "output": None}])
    with pytest.raises(RowError, match='train_dataset row 2: the column "output" is null'):
        SFTTrainer(str(folder), config(tmp_path), train_dataset=bad)


def test_masks_without_labels_are_refused_when_preparation_is_skipped(tmp_path, tokenizer, llama):
    rows = Dataset.from_list([{"input_ids": [4, 5], "completion_mask": [0, 1]}])
    args = config(tmp_path, dataset_kwargs={"skip_prepare_dataset": True})
    with pytest.raises(DataError, match='have masks but no "labels"'):
        SFTTrainer(llama, args, train_dataset=rows, processing_class=tokenizer)


def test_tokenizer_is_accepted_under_its_older_name(tmp_path, tokenizer, llama, rows):
    with pytest.warns(FutureWarning, match="tokenizer= is now processing_class="):
        trainer = SFTTrainer(llama, config(tmp_path), train_dataset=rows, tokenizer=tokenizer)
    assert trainer.processing_class is tokenizer
