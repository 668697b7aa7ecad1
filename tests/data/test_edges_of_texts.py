"""How texts begin and end: once with what the tokenizer puts there, whatever they hold already."""

from __future__ import annotations

import pytest
from datasets import Dataset
from tokenizers.processors import TemplateProcessing

from sftcore import SFTConfig, SFTTrainer
from sftcore.chat.render import BEGUN, NO_END, WITHOUT_TEMPLATE
from tests.conftest import CHATML, make_llama, make_tokenizer
from tests.data.test_pipeline import preparation

TURNS = [{"role": "user", "content": "say hello"}, {"role": "assistant", "content": "hello"}]
BOS, END = "<s>", "<|im_end|>"


def adding(start: bool = True, end: bool = False, template: str = "{{ bos_token }}" + CHATML):
    """A tokenizer that puts BOS before every text, EOS behind it, or both."""
    tokenizer = make_tokenizer(template=template)
    tokenizer.bos_token = BOS
    single = f"{BOS} $A" if start else "$A"
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (BOS, tokenizer.eos_token)]
    single = f"{single} {tokenizer.eos_token}" if end else single
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=ids)
    return tokenizer


def outcome(tokenizer, row: dict, **settings) -> tuple[str, str, tuple[str, ...]]:
    """The text, what is supervised of it, and the notes."""
    (one,) = preparation(tokenizer, **settings).pipeline(list(row), "train").inspect([row], [0])
    labels = [label for label in one.row.labels if label >= 0]
    return tokenizer.decode(one.row.input_ids), tokenizer.decode(labels), one.notes


@pytest.mark.parametrize("end", [False, True])
def test_a_rendered_text_begins_and_ends_once(end):
    tokenizer = adding(end=end)
    text = tokenizer.apply_chat_template(TURNS, tokenize=False)
    assert text.startswith(BOS)
    whole = f"{BOS}<|im_start|>user\nsay hello{END}\n<|im_start|>assistant\nhello{END}\n"
    assert outcome(tokenizer, {"text": text}) == (whole, whole, (BEGUN,))
    assert outcome(tokenizer, {"text": text.rstrip()}) == (whole.rstrip(), whole.rstrip(), (BEGUN,))


@pytest.mark.parametrize("end", [False, True])
def test_a_rendered_prompt_begins_once_and_its_completion_ends_once(end):
    tokenizer = adding(end=end)
    prompt = tokenizer.apply_chat_template(TURNS[:1], tokenize=False, add_generation_prompt=True)
    for completion in ("hello", f"hello{END}"):
        text, said, notes = outcome(tokenizer, {"prompt": prompt, "completion": completion})
        assert (text, said, notes) == (f"{prompt}hello{END}", f"hello{END}", (BEGUN,))


def test_a_text_without_bos_gets_it_from_the_tokenizer():
    assert outcome(adding(), {"text": "hello"})[::2] == (f"{BOS}hello{END}", ())
    assert outcome(adding(), {"prompt": "say", "completion": " hello"}) == (
        f"{BOS}say hello{END}", f" hello{END}", (WITHOUT_TEMPLATE,)
    )  # fmt: skip
    assert outcome(adding(start=False), {"text": f"{BOS}hello"})[::2] == (f"{BOS}hello{END}", ())


def test_several_tokens_before_every_text_are_put_there_once_too():
    tokenizer = adding()
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (BOS, "<|im_start|>")]
    processor = TemplateProcessing(single=f"{BOS} <|im_start|> $A", special_tokens=ids)
    tokenizer.backend_tokenizer.post_processor = processor
    assert outcome(tokenizer, {"text": f"{BOS}<|im_start|>hello"})[::2] == (f"{BOS}<|im_start|>hello{END}", (BEGUN,))
    assert outcome(tokenizer, {"text": "hello"})[::2] == (f"{BOS}<|im_start|>hello{END}", ())


@pytest.mark.parametrize("behind", ["", "\n", " \n\n"])
def test_eos_is_not_put_behind_an_end_token_and_a_line_break(behind):
    text = f"<|im_start|>assistant\nhello{END}{behind}"
    assert outcome(make_tokenizer(), {"text": text})[0] == text
    assert outcome(make_tokenizer(), {"text": f"hello{behind}"})[0] == f"hello{behind}{END}"


# --- Without EOS
def without_eos(**made):
    tokenizer = make_tokenizer(**made)
    tokenizer.eos_token = None
    return tokenizer


def test_without_eos_texts_end_with_the_stop_that_the_plan_names(tmp_path):
    tokenizer = without_eos()
    args = SFTConfig(str(tmp_path), use_cpu=True, report_to="none")
    rows = Dataset.from_list([{"text": "plain text here is"}] * 2)
    trainer = SFTTrainer(make_llama(tokenizer), args, train_dataset=rows, processing_class=tokenizer)
    assert tokenizer.decode(trainer.train_dataset[0]["input_ids"]) == f"plain text here is{END}"
    assert any(f'ends turns with "{END}"' in note for note in trainer.loaded.notes)
    assert trainer.data.ledgers[0].notes == {}
    assert outcome(without_eos(), {"prompt": "say", "completion": " hello"})[1] == f" hello{END}"


def test_without_any_end_token_the_run_says_so():
    for row in ({"text": "hello there"}, {"prompt": "say", "completion": " hello"}):
        text, _, notes = outcome(without_eos(template=None), row)
        assert END not in text
        assert notes == (NO_END,)
    assert outcome(without_eos(), {"messages": TURNS}, assistant_only_loss=True)[1:] == (f"hello{END}", ())
