"""Chat templates by name, as a file and as text: what they make of conversations, and what a run makes of them."""

from __future__ import annotations

import pytest
from datasets import Dataset

from sftcore import Example, Message, ModelError, RecipeError, SFTConfig, SFTTrainer
from sftcore.chat.render import Renderer
from sftcore.config.settings.templates import TEMPLATES, named, template_text
from tests.chat import trl_templates as trl
from tests.conftest import CHATML, make_llama, make_tokenizer

TALK = [
    Message("system", "be kind"), Message("user", "hi there"), Message("assistant", "hello friend"),
    Message("user", "bye"), Message("assistant", "see you"),
]  # fmt: skip

RENDERED = {
    "chatml": "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhi there<|im_end|>\n<|im_start|>assistant\n"
    "hello friend<|im_end|>\n<|im_start|>user\nbye<|im_end|>\n<|im_start|>assistant\nsee you<|im_end|>\n",
    "phi4": "<|im_start|>system<|im_sep|>be kind<|im_end|><|im_start|>user<|im_sep|>hi there<|im_end|>"
    "<|im_start|>assistant<|im_sep|>hello friend<|im_end|><|im_start|>user<|im_sep|>bye<|im_end|>"
    "<|im_start|>assistant<|im_sep|>see you<|im_end|>",
    "zephyr": "<|system|>\nbe kind</s>\n<|user|>\nhi there</s>\n<|assistant|>\nhello friend</s>\n<|user|>\nbye</s>\n"
    "<|assistant|>\nsee you</s>\n",
    "mistral": "<s>[INST] be kind\n\nhi there[/INST] hello friend</s>[INST] bye[/INST] see you</s>",
    "llama2": "<s>[INST] <<SYS>>\nbe kind\n<</SYS>>\n\nhi there [/INST] hello friend </s>"
    "<s>[INST] bye [/INST] see you </s>",
    "alpaca": "be kind\n\n### Instruction:\nhi there\n\n### Response:\nhello friend</s>\n\n### Instruction:\nbye\n\n"
    "### Response:\nsee you</s>\n\n",
    "vicuna": "be kind USER: hi there ASSISTANT: hello friend</s>USER: bye ASSISTANT: see you</s>",
}
"""Written out after the models' descriptions, with <s> and </s> as the tokenizer's BOS and EOS."""


def tokenizer_for(name):
    own = TEMPLATES[name]
    tokenizer = make_tokenizer(template=own.text)
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>", "extra_special_tokens": list(own.tokens)})
    return tokenizer


@pytest.mark.parametrize("name", RENDERED)
def test_turns_are_written_as_the_model_knows_them(name):
    rendered = Renderer(tokenizer_for(name)).render(Example(messages=TALK))
    assert rendered.text == RENDERED[name]


STOCK = {
    "qwen2.5": "qwen2_5", "qwen3": "qwen3", "llama3": "llama3", "gemma": "gemma3", "phi3": "phi3",
    "deepseek": "deepseekv3",
}  # fmt: skip


@pytest.mark.parametrize(("name", "stock"), STOCK.items())
def test_a_template_writes_what_the_models_own_does(name, stock):
    """On every conversation that the model's own template, as trl ships it, takes and prints in full."""
    import copy

    theirs = trl.tokenizer_of(stock)
    ours = copy.deepcopy(theirs)
    ours.chat_template = TEMPLATES[name].text
    compared = 0
    for kind in trl.TALKS:
        if ("call" in kind and "qwen" not in name) or kind in ("special tokens", "in a row", "edge white space"):
            continue
        if kind == "think tags" and name == "deepseek":  # theirs cuts thoughts out of answers
            continue
        example = Example(messages=trl.talk(kind, stock), tools=trl.tools_of(kind))
        rendered = [Renderer(one, assistant_only=True).render(example) for one in (theirs, ours)]
        assert rendered[1].text == rendered[0].text, kind
        assert rendered[1].spans == rendered[0].spans, kind
        ask = [{"role": "user", "content": "hi"}]
        prompts = [one.apply_chat_template(ask, add_generation_prompt=True, tokenize=False) for one in (theirs, ours)]
        assert prompts[1] == prompts[0].removesuffix("<think>\n")
        compared += 1
    assert compared >= 7


@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_are_found_and_end_where_the_table_says(name):
    tokenizer = tokenizer_for(name)
    rendered = Renderer(tokenizer, assistant_only=True).render(Example(messages=TALK))
    found = [rendered.text[span.start : span.end].strip() for span in rendered.spans]
    end = TEMPLATES[name].end or "</s>"
    answers = [one.removesuffix("</s>") if name == "phi3" else one for one in found]
    answers = [one.removeprefix("<think>\n\n</think>\n\n").replace(f" {end}", end).strip() for one in answers]
    assert answers == [f"hello friend{end}", f"see you{end}"]


@pytest.mark.parametrize(
    ("spelt", "name"),
    [("qwen", "qwen2.5"), ("Qwen-2.5", "qwen2.5"), ("LLAMA_3", "llama3"), ("phi-4", "phi4"), ("gemma3", "gemma"),
     ("deepseek-v3", "deepseek"), ("./chatml", None), ("chatml.jinja", None), ("llama9", None)],
)  # fmt: skip
def test_a_name_may_be_spelt_with_other_signs(spelt, name):
    assert (named(spelt) and named(spelt).name) == name


def trained(tmp_path, tokenizer, **fields):
    args = SFTConfig(str(tmp_path / "out"), max_steps=1, use_cpu=True, **{"save_strategy": "no", **fields})
    rows = Dataset.from_list([{"messages": [turn.as_template() for turn in TALK]}])
    trainer = SFTTrainer(make_llama(tokenizer), args, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    return trainer


def test_a_run_takes_a_name_with_its_tokens_and_stops_at_its_end(tmp_path, capsys):
    tokenizer = make_tokenizer(template=None)
    before = len(tokenizer)
    trainer = trained(tmp_path, tokenizer, chat_template="llama3")
    new = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    assert tokenizer.convert_tokens_to_ids(new) == [before, before + 1, before + 2]
    assert trainer.model.get_input_embeddings().weight.shape[0] == before + 3
    assert tokenizer.eos_token == "<|eot_id|>"
    assert trainer.model.generation_config.eos_token_id[0] == before + 2
    assert trainer.train_dataset[0]["input_ids"].count(before + 2) == 5
    said = capsys.readouterr().err
    assert 'chat template llama3: Llama 3\'s turns (its model card), turns end with "<|eot_id|>"' in said
    assert f"embeddings grown from {before} to {before + 3} rows" in said
    trainer.save_model()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    saved = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert saved.chat_template == TEMPLATES["llama3"].text
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == len(saved)


def test_a_text_and_a_file_are_taken_and_add_nothing(tmp_path):
    short = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    (tmp_path / "t.jinja").write_text(short)
    (tmp_path / "no-ending").write_text(short)
    for given in (short, str(tmp_path / "t.jinja"), str(tmp_path / "no-ending")):
        tokenizer = make_tokenizer()
        before = len(tokenizer)
        trainer = trained(tmp_path, tokenizer, chat_template=given)
        text = "be kind<|im_end|>hi there<|im_end|>hello friend<|im_end|>bye<|im_end|>see you<|im_end|>"
        assert tokenizer.decode(trainer.train_dataset[0]["input_ids"]) == text
        assert len(tokenizer) == before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("chatlm", 'no chat template is named "chatlm". Did you mean "chatml"?'),
        ("none.jinja", "no such file"),
        ("owner/model", "chat_template_path"),
        ("a text that is meant " * 300, "a name of 6,300 characters, which is too long for one"),
        ("{% for m in messages %}", "line 1: Unexpected end of template"),
        (str, None),
    ],
)
def test_what_is_no_template_is_refused(tmp_path, given, said):
    if said is None:
        with pytest.raises(RecipeError, match="both give a chat template"):
            SFTConfig(str(tmp_path), chat_template="chatml", chat_template_path="x.jinja")
        return
    with pytest.raises(RecipeError) as caught:
        SFTConfig(str(tmp_path), chat_template=given)
    assert said in str(caught.value)


def test_every_template_says_what_it_is():
    for own in TEMPLATES.values():
        assert template_text(own.name) == own.text
        assert own.end in ("", *own.tokens)
        assert all(f"'{token}" in own.text or token in own.text or own.name == "phi3" for token in own.tokens)


def test_the_default_stays_the_models_own(tmp_path):
    tokenizer = make_tokenizer()
    trained(tmp_path, tokenizer)
    assert tokenizer.chat_template == CHATML


def test_a_model_in_an_adapter_cannot_grow(tmp_path):
    from peft import LoraConfig, get_peft_model

    tokenizer = make_tokenizer()
    model = get_peft_model(make_llama(tokenizer), LoraConfig(target_modules="all-linear"))
    args = SFTConfig(str(tmp_path), max_steps=1, use_cpu=True, chat_template="llama3")
    rows = Dataset.from_list([{"messages": [turn.as_template() for turn in TALK]}])
    with pytest.raises(ModelError, match="embeddings cannot grow inside an adapter"):
        SFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer)
