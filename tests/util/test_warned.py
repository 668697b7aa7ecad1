"""A warning names the line of the user's script, whatever lies between."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
from datasets import Dataset

import sftcore
from sftcore import ModelConfig, SFTConfig, SFTTrainer, pack_dataset


def caught(call):
    """The warnings of a call, and the line on which it stands."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        call()
    return [one for one in seen if one.category in (FutureWarning, UserWarning)], inspect.getsourcelines(call)[1]


@dataclass
class Mine(SFTConfig):
    """A script's own configuration."""

    note: str = ""


@pytest.mark.parametrize(
    "call",
    [
        lambda: SFTConfig("out", max_seq_length=9, use_cpu=True),
        lambda: SFTConfig("out", model_init_kwargs={"torch_dtype": "bfloat16"}, use_cpu=True),
        lambda: SFTConfig("out", label_smoothing_factor=0.1, use_cpu=True),
        lambda: SFTConfig("out", packing_strategy="bfd-requeue", use_cpu=True),
        lambda: Mine("out", label_smoothing_factor=0.1, use_cpu=True),
        lambda: dataclasses.replace(SFTConfig("out", use_cpu=True), label_smoothing_factor=0.1),
        lambda: ModelConfig(torch_dtype="float16"),
        lambda: pack_dataset(Dataset.from_list([{"input_ids": [1, 2]}]), 4, "bfd-requeue"),
    ],
)
def test_it_is_the_line_of_the_call(call):
    seen, line = caught(call)
    assert seen
    assert [(one.filename, one.lineno) for one in seen] == [(__file__, line)] * len(seen)


def test_it_is_the_line_that_makes_the_trainer(tmp_path, tokenizer, llama):
    args = SFTConfig(str(tmp_path), use_cpu=True)
    args.loss_type = "chunked_nll"
    rows = Dataset.from_list([{"text": "hello, world"}] * 2)
    seen, line = caught(lambda: SFTTrainer(llama, args, train_dataset=rows, tokenizer=tokenizer, max_seq_length=9))
    ours = [one for one in seen if "transformers" not in one.filename]
    assert {str(one.message).partition(" ")[0] for one in ours} == {"tokenizer=", "SFTTrainer:", "loss_type"}
    assert {(one.filename, one.lineno) for one in ours} == {(__file__, line)}


def test_a_script_that_is_given_to_python_is_named():
    text = "\nfrom sftcore import ModelConfig\nModelConfig(torch_dtype='auto')\n"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert "<string>:3: FutureWarning" in done.stderr


def test_everything_in_sftcore_warns_in_this_way():
    own = Path(sftcore.__file__).parent
    others = {"util/lazy.py"}  # of a name that will go, at the line that imports it
    found = {
        str(path.relative_to(own))
        for path in own.rglob("*.py")
        if path.name != "warned.py" and re.search(r"warnings\.warn\(", path.read_text(encoding="utf-8"))
    }
    assert found <= others
