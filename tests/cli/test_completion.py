"""What a shell is told when it asks how a command line may go on; nothing heavy is imported for that."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from click.shell_completion import ShellComplete

from sftcore.cli import cli
from sftcore.config.described.words import completed
from sftcore.config.fields import config_fields
from sftcore.core.discovery import discover


def asked(args, incomplete):
    shell = ShellComplete(cli, {}, "sftcore", "_SFTCORE_COMPLETE")
    return [item.value for item in shell.get_completions(args, incomplete)]


@pytest.mark.parametrize(
    ("args", "incomplete", "some"),
    [
        ([], "tr", ["train"]),
        ([], "", ["train", "check", "explain", "schema"]),
        (["train"], "learning", ["learning_rate="]),
        (["train"], "--b", ["--block"]),
        (["train", "r.yaml"], "adapter=", ["adapter=lora", "adapter=qlora"]),
        (["train", "r.yaml", "adapter", "="], "ql", ["qlora"]),
        (["train", "r.yaml", "adapter"], "=", ["lora", "qlora"]),
        (["explain", "r.yaml"], "adapter.", ["adapter.lora."]),
        (["train"], "adapter.lora.lora_", ["adapter.lora.lora_alpha=", "adapter.lora.lora_dropout="]),
        (["train"], "data.eval_f", ["data.eval_fraction="]),
        (["train"], "model.", ["model.name=", "model.dtype="]),
        (["train"], "model.dtype=bf", []),
        (["train"], "model.dtype=bfl", ["model.dtype=bfloat16"]),
        (["train"], "lr_scheduler_type=cosine_with", ["lr_scheduler_type=cosine_with_restarts"]),
        (["train"], "packing=", ["packing=true", "packing=false"]),
        (["check", "d.jsonl"], "format=alp", ["format=alpaca"]),
        (["train"], "attention=a", ["attention=auto"]),
    ],
)
def test_a_shell_is_told_how_a_line_goes_on(args, incomplete, some):
    found = asked(args, incomplete)
    assert set(some) <= set(found)
    assert all(incomplete == "=" or one.startswith(incomplete) for one in found if one)


@pytest.mark.parametrize(
    ("args", "incomplete"), [(["nonsense"], "x"), (["train"], "zzz"), (["train"], "zzz.a"), (["train"], "seed=")]
)
def test_what_has_no_continuation_gets_none(args, incomplete):
    assert [one for one in asked(args, incomplete) if one != incomplete] == []


def test_every_field_of_a_recipe_is_a_word():
    words = completed("", [], discover())
    assert {f"{name}=" for name in config_fields()} - set(words) == {"plugins=", "model_init_kwargs="}


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script_and_nothing_heavy_is_imported(shell):
    code = (
        "import sys, atexit\n"
        "heavy = {'torch', 'transformers', 'datasets'}\n"
        "atexit.register(lambda: sys.stderr.write(str(sorted(heavy & set(sys.modules)))))\n"
        "from sftcore.cli import main\nmain()"
    )

    def done(how, **more):
        environment = {**os.environ, "_SFTCORE_COMPLETE": f"{shell}_{how}", **more}
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )

    if shell != "bash":  # whose version is asked for
        assert "_SFTCORE_COMPLETE" in done("source").stdout
    answered = done("complete", COMP_WORDS="sftcore train learning", COMP_CWORD="2" if shell != "fish" else "learning")
    assert "learning_rate=" in answered.stdout
    assert answered.stderr.endswith("[]")
