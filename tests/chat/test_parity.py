"""Parity of training and serving: what was changed in a saved folder is found, and a clean one passes."""

from __future__ import annotations

import copy
import json
import shutil
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from transformers import PreTrainedTokenizerFast

from sftcore import ModelError, SFTTrainer
from sftcore.chat.served.parity import parity
from sftcore.chat.served.record import Chat, Served, chat_of, read_served
from sftcore.cli import cli
from tests.chat.made import base_tokenizer, chat_tokenizer, qwen_like, saved
from tests.conftest import CHATML, alpaca_rows, make_tokenizer
from tests.train.test_trainer import config

WITH_BOS = "{{ bos_token }}" + CHATML


def trained(folder: Path, base: Path, rows=None, peft_config=None) -> Path:
    rows = Dataset.from_list(alpaca_rows(8)) if rows is None else rows
    trainer = SFTTrainer(str(base), config(folder, max_steps=1), train_dataset=rows, peft_config=peft_config)
    trainer.train()
    trainer.save_model()
    return folder / "out"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run's folder that must not be changed."""
    folder = tmp_path_factory.mktemp("run")
    return trained(folder, saved(folder / "base", qwen_like()))


@pytest.fixture(scope="module")
def served(run) -> Served:
    return read_served(str(run))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    return trained(folder, saved(folder / "base", qwen_like()), peft_config=lora)


@pytest.fixture
def copied(run, tmp_path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def edit(path: Path, **changes) -> None:
    """Change keys of a JSON file; None removes one."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def differing(folder: Path) -> dict[str, str]:
    return {check.name: check.detail for check in parity(read_served(str(folder))) if check.state == "differs"}


def command(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(cli, ["parity", *words])
    assert result.exit_code == code, result.output
    return result.output


# --- What passes ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("which", ["run", "adapter"])
def test_a_saved_run_passes_and_says_what_it_was_compared_with(request, which):
    folder = request.getfixturevalue(which)
    assert differing(folder) == {}
    assert "0 of" in command(str(folder))
    assert "compared with the run that saved it" in command(str(folder))


def test_the_manifest_has_the_record_and_the_checks_of_the_save(run):
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["chat"]["stop"] == "<|im_end|>"
    assert manifest["chat"]["stop_ids"] == [2, 0]
    assert {check["state"] for check in manifest["parity"]} == {"ok"}
    assert Chat.from_dict(manifest["chat"]).as_dict() == manifest["chat"]


def test_a_run_on_texts_without_any_template_passes(tmp_path):
    base = saved(tmp_path / "base", base_tokenizer())
    assert differing(trained(tmp_path, base, Dataset.from_list([{"text": "say hello"}] * 4))) == {}


def test_a_run_whose_template_and_tokenizer_both_write_bos_passes_with_a_warning(tmp_path):
    folder = trained(tmp_path, saved(tmp_path / "base", make_tokenizer(bos=True, template=WITH_BOS)))
    assert differing(folder) == {}
    assert "add_special_tokens=False" in command(str(folder))


def test_an_adapter_on_a_grown_base_is_saved_without_a_warning_and_passes(tmp_path, recwarn):
    chat_tokenizer().save_pretrained(tmp_path / "source")
    base = saved(tmp_path / "base", base_tokenizer())
    trainer = SFTTrainer(
        str(base), config(tmp_path, max_steps=1, chat_template_path=str(tmp_path / "source")),
        train_dataset=Dataset.from_list(alpaca_rows(8)),
        peft_config=LoraConfig(r=2, task_type="CAUSAL_LM", modules_to_save=["embed_tokens", "lm_head"]),
    )  # fmt: skip
    trainer.save_model()
    assert not [one for one in recwarn if "would differ from training" in str(one.message)]
    assert differing(tmp_path / "out") == {}
    assert "base.resize_token_embeddings(len(tokenizer))" in (tmp_path / "out" / "README.md").read_text()


def test_an_adapter_is_saved_with_the_stops_of_its_run(adapter):
    assert json.loads((adapter / "generation_config.json").read_text())["eos_token_id"] == [2, 0]


def test_a_save_is_checked_within_a_second(run):
    start = time.perf_counter()
    parity(read_served(str(run)))
    assert time.perf_counter() - start < 1


# --- What is found --------------------------------------------------------------------------------------------------
def test_an_edited_template_is_found_with_the_place_where_it_differs(copied):
    path = copied / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|im_end|>\n", "<|im_end|>"))
    found = differing(copied)
    assert set(found) == {"chat template"}
    assert r"in training it wrote '\n'" in found["chat template"]


def test_a_missing_template_is_found(copied):
    (copied / "chat_template.jinja").unlink()
    assert differing(copied)["chat template"] == "it is missing."


def test_a_template_that_refuses_is_found(copied):
    (copied / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    assert "refuses a conversation" in differing(copied)["chat template"]


def test_another_eos_is_found(copied):
    edit(copied / "tokenizer_config.json", eos_token="<|im_start|>")
    found = differing(copied)
    assert "eos_token is '<|im_start|>', but it was '<|im_end|>' in training" in found["special tokens"]
    assert "is not among the stops" in found["eos"]


@pytest.mark.parametrize("stops", [0, [0], None])
def test_a_stop_that_was_lost_is_found(copied, stops):
    edit(copied / "generation_config.json", eos_token_id=stops)
    assert 'answers end with "<|im_end|>" (2), but generation stops at' in differing(copied)["stop token"]


def test_a_dropped_generation_config_is_found(copied):
    (copied / "generation_config.json").unlink()
    assert "in which the run set generation to stop at [2, 0]" in differing(copied)["stop token"]


def test_a_stop_token_that_pads_is_found(copied):
    edit(copied / "generation_config.json", pad_token_id=2)
    assert differing(copied) == {"padding": '"<|im_end|>" (2) ends answers, but is used for padding too (generation).'}
    edit(copied / "tokenizer_config.json", pad_token="<|im_end|>")
    assert "(generation and tokenizer)" in differing(copied)["padding"]


def test_the_tokenizer_of_another_vocabulary_is_found(copied):
    other = make_tokenizer()
    other.add_tokens([f"word{i}" for i in range(40)])
    other.add_special_tokens({"eos_token": "<|other|>"})
    other.save_pretrained(copied)
    found = differing(copied)
    assert {"vocabulary", "special tokens", "token ids"} <= set(found)
    assert found["vocabulary"] == "the tokenizer needs 359 rows, but the embeddings have 317."


def test_a_tokenizer_with_other_merges_is_found(copied):
    path = copied / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"] = content["model"]["merges"][:5]
    path.write_text(json.dumps(content))
    assert set(differing(copied)) == {"token ids"}


def test_a_token_that_is_no_longer_special_is_found(copied):
    path = copied / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"] = [one for one in content["added_tokens"] if one["content"] != "<|im_start|>"]
    path.write_text(json.dumps(content))
    assert "special tokens" in differing(copied)


def test_bos_that_is_added_twice_is_found(tmp_path):
    folder = trained(tmp_path, saved(tmp_path / "base", make_tokenizer(bos=True)))
    (folder / "chat_template.jinja").write_text(WITH_BOS)
    found = differing(folder)
    assert 'begins with "<s>" 2 times' in found["bos"]


def test_a_template_that_writes_bos_twice_is_found_without_a_record_too(tmp_path):
    tokenizer = make_tokenizer(bos=True, template="{{ bos_token }}" + WITH_BOS)
    assert differing(saved(tmp_path / "model", tokenizer)) == {"bos": 'the template writes "<s>" twice.'}


def test_an_adapter_whose_base_is_gone_or_not_named_is_found(adapter, tmp_path):
    folder = Path(shutil.copytree(adapter, tmp_path / "copy"))
    edit(folder / "adapter_config.json", base_model_name_or_path="/nowhere/model")
    assert differing(folder)["adapter's base"] == "/nowhere/model does not exist."
    edit(folder / "adapter_config.json", base_model_name_or_path=None)
    assert "does not say" in differing(folder)["adapter's base"]


def test_an_adapter_without_stops_of_its_own_is_found(adapter, tmp_path):
    folder = Path(shutil.copytree(adapter, tmp_path / "copy"))
    (folder / "generation_config.json").unlink()
    assert "generation_config.json, in which the run set" in differing(folder)["stop token"]


def test_a_base_whose_template_ends_turns_with_another_token_than_its_stop_is_found_without_a_record(tmp_path):
    found = differing(saved(tmp_path / "model", qwen_like()))
    assert set(found) == {"stop token"}


@given(
    text=st.lists(
        st.sampled_from(["{{ m.content }}", "<|im_end|>", "\n", "user", "<|im_start|>", "{{ m.role }}"]), max_size=8
    )
)
def test_any_other_template_is_found_and_nothing_else_is(served, text):
    tokenizer = copy.deepcopy(served.tokenizer)
    tokenizer.chat_template = "{% for m in messages %}" + "".join(text) + "{% endfor %}"
    other = chat_of(tokenizer, stop="<|im_end|>", stop_ids=[2, 0], pad_id=0, rows=served.chat.rows)
    states = {check.name: check.state for check in parity(served, other)}
    assert states["chat template"] == "differs"
    assert {states[name] for name in ("special tokens", "stop token", "eos", "padding", "vocabulary")} == {"ok"}


# --- The command and the save ---------------------------------------------------------------------------------------
def test_the_command_shows_what_differs_and_how_to_mend_it_and_fails(copied):
    (copied / "generation_config.json").unlink()
    shown = command(str(copied), code=1)
    assert "stop token      differs" in shown
    assert "model.generation_config.save_pretrained(folder)" in shown
    assert "1 of 8 checks differ" in shown


def test_two_folders_are_compared(run, copied, tmp_path):
    assert "0 of 8 checks differ; compared with" in command(str(copied), "--against", str(run))
    edit(copied / "tokenizer_config.json", pad_token="<|im_start|>")
    assert "pad_token is '<|im_start|>'" in command(str(copied), "--against", str(run), code=1)


@pytest.mark.parametrize("where", ["./nothing", "pyproject.toml", "tests"])
def test_what_is_no_saved_folder_is_refused(where):
    with pytest.raises(ModelError):
        read_served(where)
    assert CliRunner().invoke(cli, ["parity", where]).exit_code == 1


def test_a_manifest_that_is_damaged_is_named(copied):
    edit(copied / "manifest.json", chat={"stop": "x"})
    with pytest.raises(ModelError, match="the record of the chat set-up lacks template_sha256"):
        differing(copied)


class Forgetful(PreTrainedTokenizerFast):
    """A tokenizer that does not save its template."""

    def save_pretrained(self, folder, **options):
        super().save_pretrained(folder, **options)
        (Path(folder) / "chat_template.jinja").unlink()


def test_a_save_that_would_be_served_otherwise_warns_and_is_recorded(tmp_path):
    base = saved(tmp_path / "base", qwen_like())
    trainer = SFTTrainer(
        str(base), config(tmp_path, max_steps=1), train_dataset=Dataset.from_list(alpaca_rows(8)),
        processing_class=Forgetful.from_pretrained(base),
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"would differ from training: chat template: it is missing\."):
        trainer.save_model()
    checks = {one["name"]: one for one in json.loads((tmp_path / "out" / "manifest.json").read_text())["parity"]}
    assert checks["chat template"]["state"] == "differs"
    assert checks["token ids"]["state"] == "ok"
