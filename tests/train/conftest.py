"""A stranger's distribution for the tests of runs, and `sftcore train` with it in this process."""

from __future__ import annotations

import json
import sys
from itertools import count

import pytest

from tests.conftest import make_llama, make_tokenizer
from tests.core.conftest import write_distribution  # noqa: F401
from tests.train.plugin_code import HEAD

NUMBERS = count()


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A tiny model, and rows."""
    folder = tmp_path_factory.mktemp("given")
    tokenizer = make_tokenizer()
    made = make_llama(tokenizer, num_hidden_layers=1, hidden_size=8, intermediate_size=8, num_attention_heads=2)
    made.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"q": f"say {i}", "a": f"hello {i}"} for i in range(4)]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture
def train(given, tmp_path, monkeypatch, capsys, write_distribution):  # noqa: F811
    """`sftcore train` with a plugin of this kind and code, in this process: the exit code, and all that was printed."""
    import sftcore_plugins  # noqa: F401

    from sftcore.cli import main

    def run(
        kind: str, body: str, *words: str, code: str = "", name: str = "bad", verb: str = "train"
    ) -> tuple[int, str]:
        module = f"acme_faulty{next(NUMBERS)}"
        code = code or f"{HEAD}@plugin\nclass Bad:\n    'Wrong in one way.'\n" + "".join(
            f"    {line}\n" for line in body.splitlines()
        )
        write_distribution(module, code, entry_points=f"[sftcore.{kind}]\nbad = {module}:Bad\n".encode())
        used: list[str] = [] if kind == "format" else ["format={prompt-completion: {prompt: q, completion: a}}"]
        settings = [
            f"output_dir={tmp_path / 'out'}",
            "max_steps=1",
            "use_cpu=true",
            "report_to=none",
            "save_strategy=no",
        ]
        argv = [verb, f"model={given / 'model'}", f"data={given / 'rows.jsonl'}", f"{kind}=bad", *used]
        argv += [*(settings if verb == "train" else ()), *words]
        monkeypatch.setattr(sys, "argv", ["sftcore", *argv])
        try:
            main()
        except SystemExit as end:
            code_ = end.code or 0
        else:
            code_ = 0
        printed = capsys.readouterr()
        return int(code_), printed.out + printed.err

    return run
