"""A ready model brings its own tokenizer or processor, as a model that is named does."""

from __future__ import annotations

import shutil

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
    LlamaPreTrainedModel,
    T5Config,
    T5EncoderModel,
)
from transformers.modeling_outputs import CausalLMOutput

from sftcore import CheckError, ModelError, SFTConfig, SFTTrainer
from sftcore.core.errors import OptionTypeError
from sftcore.testing.tiny_vlm import make_vlm, save
from tests.conftest import alpaca_rows, make_llama, make_tokenizer


def config(folder, **fields) -> SFTConfig:
    defaults = {
        "max_steps": 1, "per_device_train_batch_size": 2, "save_strategy": "no", "gradient_checkpointing": False,
        "use_cpu": True, "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip
    return SFTConfig(str(folder / "out"), **{**defaults, **fields})


@pytest.fixture
def rows() -> Dataset:
    return Dataset.from_list(alpaca_rows(4))


def lora():
    return LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")


def reloaded_adapter(folder, model_folder):
    get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), lora()).save_pretrained(folder)
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folder), folder, is_trainable=True)


def base_without_a_name(folder, model_folder):
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    model = get_peft_model(model, lora())
    model.get_base_model().config._name_or_path = ""
    return model


READY = {
    "loaded": lambda folder, model: AutoModelForCausalLM.from_pretrained(model),
    "wrapped by PEFT": lambda folder, model: get_peft_model(AutoModelForCausalLM.from_pretrained(model), lora()),
    "an adapter that was loaded": reloaded_adapter,
    "an adapter whose base alone says its name": base_without_a_name,
}


@pytest.mark.parametrize("way", READY)
def test_a_ready_model_is_trained_with_its_own_tokenizer(tmp_path, model_folder, rows, way):
    trainer = SFTTrainer(READY[way](tmp_path / "adapter", model_folder), config(tmp_path), train_dataset=rows)
    named = SFTTrainer(str(model_folder), config(tmp_path), train_dataset=rows)
    assert trainer.processing_class.get_vocab() == named.processing_class.get_vocab()
    assert trainer.processing_class.chat_template == named.processing_class.chat_template
    assert trainer.train_dataset["input_ids"] == named.train_dataset["input_ids"]
    trainer.train()


def test_the_tokenizer_that_a_model_carries_comes_before_that_of_its_name(tmp_path, model_folder, rows):
    """Unsloth hands out models that carry their tokenizer, on the model that its adapter wraps."""
    own = make_tokenizer(template="{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    model._saved_temp_tokenizer = own
    for given in (model, get_peft_model(model, lora())):
        assert SFTTrainer(given, config(tmp_path), train_dataset=rows).processing_class is own


def test_a_ready_model_that_reads_images_brings_its_processor(tmp_path):
    from tests.plugins.vlm.test_training import mixed

    folder = save("llava", tmp_path / "model")
    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager")
    trainer = SFTTrainer(model, config(tmp_path), train_dataset=Dataset.from_list(mixed()))
    assert trainer.processing_class.image_processor is not None
    assert [one.label for one in trainer.setup.plan.selected("collator")] == ['collator "vlm"']
    trainer.train()
    assert model.config._attn_implementation == "eager"  # it stays as it is


def test_of_a_processor_a_model_that_reads_no_images_takes_the_tokenizer(tmp_path, rows):
    """The text part of a vision-language model names the repository of the whole."""
    folder = save("gemma3", tmp_path / "model")
    processor = make_vlm("gemma3")[1]
    model = make_llama(processor.tokenizer)
    model.config._name_or_path = str(folder)
    trainer = SFTTrainer(model, config(tmp_path), train_dataset=rows)
    assert trainer.processing_class.get_vocab() == processor.tokenizer.get_vocab()
    assert not trainer.setup.plan.model.vision
    trainer.train()


def test_a_model_made_from_a_configuration_asks_for_its_tokenizer(tmp_path, llama, rows):
    with pytest.raises(ModelError, match=r"LlamaForCausalLM.*_name_or_path.*processing_class=") as error:
        SFTTrainer(llama, config(tmp_path), train_dataset=rows)
    assert "None" not in str(error.value)


def test_a_model_whose_folder_has_no_tokenizer_asks_for_it(tmp_path, llama, rows):
    llama.save_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match=r"model .*/model: it has no tokenizer\. .*processing_class"):
        SFTTrainer(model, config(tmp_path), train_dataset=rows)


def test_a_model_whose_folder_is_gone_asks_for_its_tokenizer(tmp_path, model_folder, rows):
    shutil.copytree(model_folder, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(ModelError, match=r"model .*/model: .*processing_class") as error:
        SFTTrainer(model, config(tmp_path), train_dataset=rows)
    assert "\n" not in str(error.value)


def test_a_folder_may_be_given_as_a_path(tmp_path, model_folder, rows):
    trainer = SFTTrainer(model_folder, config(tmp_path), train_dataset=rows)
    assert trainer.setup.plan.model.name == str(model_folder)


@pytest.mark.parametrize("given", [None, 3, AutoModelForCausalLM, LlamaForCausalLM])
def test_what_is_not_a_model_is_refused(tmp_path, rows, given):
    with pytest.raises(OptionTypeError, match=r"SFTTrainer: model is a .*name.*, got "):
        SFTTrainer(given, config(tmp_path), train_dataset=rows)


def test_model_and_tokenizer_in_one_argument_are_taken_apart_in_the_error(tmp_path, tokenizer, llama, rows):
    with pytest.raises(OptionTypeError, match=r"model is a .*got a tuple.*processing_class"):
        SFTTrainer((llama, tokenizer), config(tmp_path), train_dataset=rows)


def test_what_is_not_a_tokenizer_is_refused(tmp_path, llama, rows):
    with pytest.raises(OptionTypeError, match=r"processing_class is .*got (a )?str"):
        SFTTrainer(llama, config(tmp_path), train_dataset=rows, processing_class="name")


SMALL = {"vocab_size": 400, "num_hidden_layers": 1, "num_attention_heads": 2}
BART = {"vocab_size": 400, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 64}
OTHER_TASKS = {
    "no head": (lambda config: LlamaModel(config), "LlamaModel has no head"),
    "texts": (lambda config: LlamaForSequenceClassification(config), "classifies texts"),
    "tokens": (lambda config: LlamaForTokenClassification(config), "classifies tokens"),
    "masked": (
        lambda _: BertForMaskedLM(BertConfig(hidden_size=8, intermediate_size=8, **SMALL)), "fills in masked tokens"
    ),
    "reads ahead": (
        lambda _: BertLMHeadModel(BertConfig(hidden_size=8, intermediate_size=8, **SMALL)),
        "is an encoder, whose tokens see those that follow them",
    ),
    "an encoder alone": (
        lambda _: T5EncoderModel(T5Config(vocab_size=400, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)),
        "T5EncoderModel has no head",
    ),
    "encoder": (lambda _: BartForConditionalGeneration(BartConfig(**BART)), "has an encoder and a decoder"),
    "in an adapter": (
        lambda config: get_peft_model(
            LlamaForSequenceClassification(config), LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])
        ),
        "classifies texts",
    ),
}  # fmt: skip


@pytest.mark.parametrize("task", OTHER_TASKS)
def test_a_ready_model_that_predicts_no_next_token_is_refused_by_the_constructor(tmp_path, tokenizer, rows, task):
    make, said = OTHER_TASKS[task]
    model = make(make_llama(tokenizer).config)
    with pytest.raises(CheckError, match=f"model: .*{said}, .*AutoModelForCausalLM"):
        SFTTrainer(model, config(tmp_path), train_dataset=rows, processing_class=tokenizer)


@pytest.mark.parametrize("known", [True, False], ids=["before loading", "once loaded"])
def test_so_is_a_model_folder(tmp_path, tokenizer, rows, known, monkeypatch):
    LlamaForSequenceClassification(make_llama(tokenizer).config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    if not known:
        monkeypatch.setattr("sftcore.train.trainer.skeleton_of", lambda *_: None)
    with pytest.raises(CheckError if known else ModelError, match="LlamaForSequenceClassification classifies texts"):
        SFTTrainer(str(tmp_path / "model"), config(tmp_path), train_dataset=rows)


class Scores(LlamaPreTrainedModel):
    """A reward model of the user's: a score for each row, or for each token."""

    by_token = False

    def __init__(self, config):
        super().__init__(config)
        self.model, self.score = LlamaModel(config), torch.nn.Linear(config.hidden_size, 1)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, **_):
        scores = self.score(self.model(input_ids, attention_mask).last_hidden_state)
        return CausalLMOutput(logits=scores if self.by_token else scores[:, -1])


class ScoresTokens(Scores):
    by_token = True


@pytest.mark.parametrize("kind", [Scores, ScoresTokens])
def test_a_class_of_the_users_that_predicts_no_next_token_is_refused_before_the_first_step(
    tmp_path, tokenizer, rows, kind
):
    model = kind(make_llama(tokenizer).config)
    trainer = SFTTrainer(model, config(tmp_path), train_dataset=rows, processing_class=tokenizer)
    with pytest.raises(ModelError, match=rf"{kind.__name__} gives logits of shape .*AutoModelForCausalLM"):
        trainer.train()


def test_an_encoder_that_is_used_as_a_decoder_is_taken(tmp_path, tokenizer, rows):
    fields = {"hidden_size": 8, "intermediate_size": 8, "is_decoder": True, **SMALL}
    model = BertLMHeadModel(BertConfig(**fields))
    assert SFTTrainer(model, config(tmp_path), train_dataset=rows, processing_class=tokenizer).train().global_step == 1


def test_a_subclass_of_the_users_with_a_head_of_its_own_is_taken(tmp_path, tokenizer, rows):
    class Own(LlamaForCausalLM):
        pass

    model = Own(make_llama(tokenizer).config)
    assert SFTTrainer(model, config(tmp_path), train_dataset=rows, processing_class=tokenizer).train().global_step == 1
