"""The package as its users meet it: it must be installed (`pip install ".[test]"`)."""

import json
import shutil

import pytest
import torch
from datasets import Dataset
from sftcore_zip import Zip

from sftcore import LoadOptions, ModelError, ModelRequest, SFTConfig, SFTTrainer
from sftcore.testing import LoaderTests

pytest_plugins = "sftcore.testing"


class TestZip(LoaderTests):
    plugin = Zip


@pytest.fixture
def archive(tmp_path, tiny_model, tiny_processor):
    for one in (tiny_model, tiny_processor):
        one.save_pretrained(tmp_path / "model")
    return shutil.make_archive(str(tmp_path / "tiny"), "zip", tmp_path / "model")


def test_the_model_in_the_file_is_the_one_that_was_saved(archive, tiny_model):
    loaded = Zip().load_model(ModelRequest(archive, dtype="float32"), LoadOptions())
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, tiny_model.eval()(ids).logits)
    assert loaded.model.name_or_path == archive


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtype_and_arguments_that_were_asked_for_are_what_comes(archive, dtype):
    options = LoadOptions({"attn_implementation": "eager"})
    model = Zip().load_model(ModelRequest(archive, dtype=dtype), options).model
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert model.config._attn_implementation == "eager"


def test_the_processor_reads_as_before(archive, tiny_processor):
    found = Zip().load_processor(ModelRequest(archive))
    assert found("say hello, world").input_ids == tiny_processor("say hello, world").input_ids
    assert found.chat_template == tiny_processor.chat_template


def test_a_run_takes_it_for_such_a_name_and_names_it_as_the_base_of_an_adapter(archive, tmp_path):
    rows = Dataset.from_list([{"prompt": "say", "completion": " hello world"}] * 4)
    args = SFTConfig(str(tmp_path / "out"), max_steps=1, use_cpu=True, report_to="none", plugins={"adapter": "lora"})
    trainer = SFTTrainer(archive, args, train_dataset=rows)
    trainer.train()
    trainer.save_model()
    saved = json.loads((tmp_path / "out" / "adapter_config.json").read_text(encoding="utf-8"))
    assert saved["base_model_name_or_path"] == archive


def test_what_cannot_be_loaded_is_refused_in_a_line(archive, tmp_path):
    (tmp_path / "not.zip").write_text("no archive")
    with pytest.raises(ModelError, match=r"not\.zip: it cannot be unpacked: File is not a zip file\."):
        Zip().load_processor(ModelRequest(str(tmp_path / "not.zip")))
    with pytest.raises(ModelError, match="a file has no revisions"):
        Zip().load_processor(ModelRequest(archive, revision="v2"))
    assert not Zip().loads(ModelRequest(None))
