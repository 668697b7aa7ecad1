"""`sftcore merge`: the merged model says what the unmerged one says, or nothing is kept."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from datasets import Dataset
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from sftcore import SFTTrainer
from sftcore.cli.after.merge import command
from sftcore.core.errors import ModelError
from sftcore.tools import agreement
from sftcore.tools.merge import merge
from sftcore.tools.saved import open_run
from tests.conftest import alpaca_rows, make_llama, make_tokenizer
from tests.plugins.adapters.test_adapters import logits, stirred
from tests.train.test_trainer import config


def lora(**options) -> LoraConfig:
    return LoraConfig(**{"r": 4, "task_type": "CAUSAL_LM", "target_modules": "all-linear", **options})


def save_base(folder, tokenizer, **overrides):
    model = make_llama(tokenizer, **overrides)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def trained(tmp_path, tokenizer, peft_config, *, model=None, name="run", **fields):
    """A run in `tmp_path/run` on a base in `tmp_path/base`, its adapter far from where it began; and its logits."""
    args = config(tmp_path / name, max_steps=1, **fields)
    trainer = SFTTrainer(
        model if model is not None else str(tmp_path / "base"), args, train_dataset=Dataset.from_list(alpaca_rows(8)),
        processing_class=tokenizer, peft_config=peft_config,
    )  # fmt: skip
    wanted = logits(stirred(trainer.model))
    trainer.save_model()
    return tmp_path / name / "out", wanted


def invoke(*words):
    done = CliRunner().invoke(command, [str(word) for word in words])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


METHODS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "saved whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "single rows": {"trainable_token_indices": [3, 5, 17]},
}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)
def test_the_folder_says_what_the_run_said_with_plain_transformers(tmp_path, tokenizer, options, tied):
    save_base(tmp_path / "base", tokenizer, tie_word_embeddings=tied)
    run, wanted = trained(tmp_path, tokenizer, lora(**options))
    merged = merge(open_run(str(run)), tmp_path / "merged")
    assert all(one.within_limit for one in merged.agreements)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(found), wanted, atol=1e-3, rtol=0)
    assert (logits(make_llama(tokenizer, tie_word_embeddings=tied)) - wanted).abs().max() > 0.05


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    "options", [{"modules_to_save": ["embed_tokens", "lm_head"]}, {"trainable_token_indices": "new"}, {}],
    ids=["saved whole", "single rows", "frozen"],
)  # fmt: skip
def test_a_vocabulary_that_grew_in_the_run_is_merged_at_its_size(tmp_path, options, tied):
    save_base(tmp_path / "base", make_tokenizer(), tie_word_embeddings=tied)
    tokenizer = make_tokenizer()
    old = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|new_1|>", "<|new_2|>"]})
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model.resize_token_embeddings(len(tokenizer))
    if options.get("trainable_token_indices"):
        options = {"trainable_token_indices": [old, old + 1]}
    run, wanted = trained(tmp_path, tokenizer, lora(target_modules=["q_proj"], **options), model=model)
    merge(open_run(str(run)), tmp_path / "merged")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert found.get_input_embeddings().weight.shape[0] == len(tokenizer)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "merged")) == len(tokenizer)
    torch.testing.assert_close(logits(found), wanted, atol=1e-3, rtol=0)


def test_an_adapter_saved_by_peft_alone_is_merged_too(tmp_path, tokenizer, model_folder):
    model = stirred(get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), lora()))
    wanted = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    done = invoke(tmp_path / "adapter", "--output", tmp_path / "merged")
    assert "comparing on a conversation and random tokens" in done.stderr
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), wanted, atol=1e-3, rtol=0
    )
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == tokenizer.chat_template


def test_one_of_several_adapters_is_merged_by_name(tmp_path, model_folder):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), lora(), adapter_name="first")
    model.add_adapter("second", lora(r=2))
    model.set_adapter("second")
    wanted = logits(stirred(model))
    model.save_pretrained(tmp_path / "two")
    with pytest.raises(ModelError, match='several adapters: "first", "second"'):
        open_run(str(tmp_path / "two"))
    with pytest.raises(ModelError, match=r'no adapter "secnd"\. Did you mean "second"'):
        open_run(str(tmp_path / "two"), adapter="secnd")
    done = invoke(tmp_path / "two", "--adapter", "second", "--output", tmp_path / "merged")
    assert 'using adapter second, not "first"' in done.stderr
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), wanted, atol=1e-3, rtol=0
    )


def test_a_checkpoint_is_merged_like_the_run_itself(tmp_path, tokenizer):
    save_base(tmp_path / "base", tokenizer)
    args = config(tmp_path / "run", max_steps=2, save_strategy="steps", save_steps=1)
    SFTTrainer(
        str(tmp_path / "base"), args, train_dataset=Dataset.from_list(alpaca_rows(8)), peft_config=lora()
    ).train()
    run = tmp_path / "run" / "out"
    with pytest.raises(ModelError, match=r"only checkpoints so far.*Name a checkpoint: .*checkpoint-2"):
        open_run(str(run))
    merged = merge(open_run(str(run / "checkpoint-1")), tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "manifest.json").read_text())["merge"]["adapter"].endswith("checkpoint-1")
    assert merged.dtype == "float32"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_measured_against_float32(tmp_path, tokenizer, dtype):
    save_base(tmp_path / "base", tokenizer)
    run, wanted = trained(tmp_path, tokenizer, lora())
    done = invoke(run, "--dtype", dtype, "--output", tmp_path / "merged")
    assert f"saved in {dtype} and reloaded: logits differ by up to" in done.stderr
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert found.dtype == getattr(torch, dtype)
    gap = (logits(found).float() - wanted).abs().max()
    assert 1e-5 < gap < 0.05 * wanted.abs().max()


def test_auto_is_the_dtype_in_which_the_base_is_saved(tmp_path, tokenizer):
    make_llama(tokenizer).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    run, _ = trained(tmp_path, tokenizer, lora(), model_init_kwargs={"dtype": "float32"})
    assert merge(open_run(str(run)), tmp_path / "merged").dtype == "bfloat16"


def test_a_run_on_a_quantised_base_is_merged_into_the_whole_one_and_the_gap_is_told(tmp_path, tokenizer):
    save_base(tmp_path / "base", tokenizer, hidden_size=64, intermediate_size=128)
    quantised = {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")}
    run, _ = trained(tmp_path, tokenizer, lora(), model_init_kwargs=quantised)
    done = invoke(run, "--output", tmp_path / "merged")
    assert "quantised base used in training (4-bit nf4): logits differ by up to" in done.stderr
    assert "note: the adapter was trained on a base in 4-bit nf4 and merged into the unquantised base" in done.stderr
    gaps = json.loads((tmp_path / "merged" / "manifest.json").read_text())["merge"]["agreements"]
    assert [one["limit"] is None for one in gaps] == [False, True, False]
    assert gaps[1]["gap"] > 1e-3
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    wanted = logits(PeftModel.from_pretrained(whole, run))
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not hasattr(found.config, "quantization_config")
    torch.testing.assert_close(logits(found), wanted, atol=1e-3, rtol=0)


def test_a_base_that_is_saved_in_4_bits_is_turned_back_into_floats(tmp_path, tokenizer):
    save_base(tmp_path / "whole", tokenizer, hidden_size=64, intermediate_size=128)
    quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="float32")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", quantization_config=quantised, dtype=torch.float32)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    run, wanted = trained(tmp_path, tokenizer, lora())
    merge(open_run(str(run)), tmp_path / "merged", dtype="float32")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert found.dtype == torch.float32
    torch.testing.assert_close(logits(found), wanted, atol=0.02, rtol=0)


def test_generation_of_the_merged_model_stops_at_the_runs_own_end_and_never_pads_with_it(tmp_path, tokenizer):
    save_base(tmp_path / "base", tokenizer, eos_token_id=1)
    own = make_tokenizer()
    own.pad_token = own.eos_token
    run, _ = trained(tmp_path, own, lora())
    merge(open_run(str(run)), tmp_path / "merged")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").generation_config
    assert saved.eos_token_id[0] == own.convert_tokens_to_ids("<|im_end|>")
    assert saved.pad_token_id == own.convert_tokens_to_ids("<pad>")


def test_a_run_from_the_command_line_is_compared_on_its_own_rows(tmp_path, model_folder):
    from sftcore.cli.train import command as train

    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in alpaca_rows(8)))
    words = [f"model={model_folder}", f"data={data}", "adapter.lora.r=4", "max_steps=1", "save_strategy=no",
             f"output_dir={tmp_path / 'run'}", "gradient_checkpointing=false", "packing=true", "max_length=64",
    ]  # fmt: skip
    assert CliRunner().invoke(train, words).exit_code == 0
    done = invoke(tmp_path / "run")
    assert "comparing on 4 rows of the training data, a conversation and random tokens" in done.stderr
    assert f"merged model saved in {tmp_path / 'run-merged'}" in done.stdout
    manifest = json.loads((tmp_path / "run-merged" / "manifest.json").read_text())
    assert manifest["recipe"]["data"] == str(data)
    assert "serving would differ" not in done.stderr
    card = (tmp_path / "run-merged" / "README.md").read_text()
    assert "8 rows" in card
    assert str(tmp_path) not in card


def test_agreement_is_the_largest_gap_and_the_mean_divergence():
    one = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0], [0.0, 0.0]])]
    other = [torch.tensor([[1.0, 0.5]]), torch.tensor([[0.0, 3.0], [0.0, 0.0]])]
    found = agreement.compare_logits("x", one, other, limit=0.4)
    first, second = torch.distributions.Categorical(logits=one[0]), torch.distributions.Categorical(logits=other[0])
    assert (found.gap, found.scale, found.same_token, found.within_limit) == (0.5, 3.0, 1.0, False)
    assert found.divergence == pytest.approx(float(torch.distributions.kl_divergence(first, second)) / 3, rel=1e-5)
    assert not agreement.compare_logits(
        "x", one, [torch.full_like(part, torch.nan) for part in one], limit=9.0
    ).within_limit


# --- Refused --------------------------------------------------------------------------------------------------------
def test_a_merged_model_that_says_something_else_is_not_kept(tmp_path, tokenizer, monkeypatch):
    save_base(tmp_path / "base", tokenizer)
    run, _ = trained(tmp_path, tokenizer, lora())
    calls = []

    def off_the_second_time(model, compared_on):
        calls.append(1)
        return [one + (0.01 if len(calls) == 2 else 0) for one in agreement.logits_of(model, compared_on)]

    monkeypatch.setattr("sftcore.tools.merge.logits_of", off_the_second_time)
    with pytest.raises(ModelError, match=r"does not predict the same as the unmerged one.*Nothing was written"):
        merge(open_run(str(run)), tmp_path / "merged")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["base", "run"]


def test_weights_that_overflow_float16_are_not_kept(tmp_path, tokenizer):
    base = save_base(tmp_path / "base", tokenizer)
    with torch.no_grad():
        base.model.layers[0].mlp.down_proj.weight[0, 0] = 1e5
    base.save_pretrained(tmp_path / "base")
    run, _ = trained(tmp_path, tokenizer, lora(target_modules=["q_proj"]))
    with pytest.raises(ModelError, match="Merge with --dtype float32"):
        merge(open_run(str(run)), tmp_path / "merged", dtype="float16")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["base", "run"]


def test_a_full_fine_tune_has_nothing_to_merge(tmp_path, model_folder):
    with pytest.raises(ModelError, match="nothing to merge: this is a whole model"):
        invoke(model_folder, "--output", tmp_path / "merged")


def test_virtual_tokens_have_nothing_to_merge(tmp_path, model_folder):
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), prompt).save_pretrained(tmp_path / "run")
    with pytest.raises(ModelError, match="adds virtual tokens and has no weights to merge"):
        merge(open_run(str(tmp_path / "run")), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_what_stands_in_the_output_folder_is_replaced_only_when_asked(tmp_path, tokenizer):
    save_base(tmp_path / "base", tokenizer)
    run, _ = trained(tmp_path, tokenizer, lora())
    output = tmp_path / "merged"
    output.mkdir()
    (output / "mine.txt").write_text("keep me")
    with pytest.raises(ModelError, match="the output folder is not empty"):
        merge(open_run(str(run)), output)
    for own in (run, run.parent, tmp_path / "base"):
        with pytest.raises(ModelError, match="the output folder contains the adapter or its base"):
            merge(open_run(str(run)), own, overwrite=True)
    assert (output / "mine.txt").read_text() == "keep me"
    merge(open_run(str(run)), output, overwrite=True)
    assert not (output / "mine.txt").exists()
    assert (output / "model.safetensors").is_file()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["base", "merged", "run"]


def test_a_base_that_moved_is_named_by_hand(tmp_path, tokenizer):
    save_base(tmp_path / "base", tokenizer)
    run, wanted = trained(tmp_path, tokenizer, lora())
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=r"base cannot be found; looked for .*base\"\. Name the base: --base MODEL"):
        open_run(str(run))
    merge(open_run(str(run), base=str(tmp_path / "elsewhere")), tmp_path / "merged")
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), wanted, atol=1e-3, rtol=0
    )


def test_a_base_of_another_shape_is_refused(tmp_path, tokenizer):
    save_base(tmp_path / "base", tokenizer)
    run, _ = trained(tmp_path, tokenizer, lora())
    save_base(tmp_path / "wider", tokenizer, hidden_size=64)
    with pytest.raises(ModelError, match="Name the base that it was trained on"):
        merge(open_run(str(run), base=str(tmp_path / "wider")), tmp_path / "merged")


def test_tokens_without_rows_anywhere_are_refused(tmp_path, tokenizer, model_folder):
    get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), lora()).save_pretrained(tmp_path / "run")
    grown = make_tokenizer()
    grown.add_tokens(["<new>"])
    grown.save_pretrained(tmp_path / "run")
    with pytest.raises(ModelError, match="the adapter has no rows for 1 of the added tokens"):
        merge(open_run(str(tmp_path / "run")), tmp_path / "merged")


ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "neither a model nor an adapter"),
        ({"x.gguf": ""}, "Name the file itself"),
        ({"adapter_config.json": "{}"}, "the adapter has no weights"),
        ({"adapter_config.json": "{}", "adapter_model.bin": ""}, "a pickle file"),
        (dict.fromkeys(ADAPTER, "{"), "not valid JSON"),
        (dict.fromkeys(ADAPTER, "[]"), "expected a JSON object, got list"),
        (dict.fromkeys(ADAPTER, "{}"), "names the base model"),
    ],
)
def test_folders_that_are_no_run_are_told_what_they_lack(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ModelError, match=message):
        open_run(str(tmp_path))


def test_a_manifest_cannot_make_foreign_code_run(tmp_path, tokenizer):
    save_base(tmp_path / "base", tokenizer)
    run, _ = trained(tmp_path, tokenizer, lora())
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["model"] |= {"trust_remote_code": True, "init_kwargs": {"trust_remote_code": True, "use_cache": False}}
    (run / "manifest.json").write_text(json.dumps(manifest))
    found = open_run(str(run)).base
    assert not found.trust_remote_code
    assert dict(found.init_kwargs) == {"use_cache": False}


def test_rows_that_grew_are_saved_where_the_base_is_a_single_file(tmp_path, tokenizer):
    """PEFT sees that a vocabulary grew by the base's config.json, which a single file does not have."""
    save_base(tmp_path / "base", tokenizer)
    other = make_tokenizer()
    other.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    other.save_pretrained(tmp_path / "other")
    trainer = SFTTrainer(
        str(tmp_path / "base"), config(tmp_path, max_steps=1, chat_template_path=str(tmp_path / "other")),
        train_dataset=Dataset.from_list(alpaca_rows(8)), peft_config=lora(target_modules=["q_proj"]),
    )  # fmt: skip
    wanted = logits(stirred(trainer.model))
    (tmp_path / "base" / "config.json").rename(tmp_path / "config.json")
    trainer.save_model()
    (tmp_path / "config.json").rename(tmp_path / "base" / "config.json")
    merge(open_run(str(tmp_path / "out")), tmp_path / "merged")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(found), wanted, atol=1e-3, rtol=0)
