"""Plugins whose code does what nobody expects: it is one line that names them, or is told and put back."""

from __future__ import annotations

import os

import pytest
import torch

from tests.train.plugin_code import (
    ADAPTER,
    ATTENTION,
    GOOD,
    HEAD,
    KERNEL,
    LOADER,
    MADE,
    PROCESSOR,
    collate,
    hook,
    loss,
)

POST_INIT = "def __attrs_post_init__(self):\n    {}\n"
FORMAT = hook(MADE, f"return lambda row: {GOOD}")
BARE = "raise BaseException('odd')"
WRONG = {
    "a formatter raises a BaseException": ("format", hook(MADE, "def read(row):", f"    {BARE}", "return read")),
    "a formatter closes": ("format", hook(MADE, "def read(row):", "    raise GeneratorExit", "return read")),
    "a hook raises a BaseException": ("adapter", hook(ADAPTER, BARE)),
    "a collator raises a BaseException": ("collator", collate(BARE)),
    "a loss raises a BaseException": ("loss", loss(BARE)),
    "a loader raises a class of its own": (
        "loader",
        hook(LOADER, "class Odd(BaseException): pass", "raise Odd") + PROCESSOR,
    ),
    "it cannot be made": ("format", POST_INIT.format("1 / 0") + FORMAT),
    "it exits while it is made": ("format", POST_INIT.format("raise SystemExit(0)") + FORMAT),
    "an error cannot say what it is": (
        "format",
        hook(MADE, "class Odd(Exception):", "    def __str__(self): raise KeyError", "raise Odd"),
    ),
    "a wrong weight": ("format", hook(MADE, "return lambda row: Example(messages=[Message('user', 'a', weight=3.0)])")),
    "half a character": ("format", hook(MADE, "return lambda row: Example(text='a\\ud800')")),
}


@pytest.mark.parametrize("tokens", ["[1, 2, 10**8]", "[1, 2, 3], [-100, 10**8, 3]"])
def test_tokens_that_the_model_does_not_have_are_named_with_their_row(train, tokens):
    code, said = train("format", hook(MADE, f"return lambda row: Example(tokens=TokenizedRow({tokens}))"))
    (line,) = [line for line in said.splitlines() if line.startswith("error:")]
    assert code == 1
    assert "rows.jsonl row 0:" in line
    assert "holds 100000000, but the vocabulary has" in line


@pytest.mark.parametrize("name", WRONG)
def test_whatever_is_raised_names_the_plugin(train, name):
    kind, body = WRONG[name]
    code, said = train(kind, body)
    (line,) = [line for line in said.splitlines() if line.startswith("error:")]
    assert code == 1
    assert f'{kind} "bad@acme_faulty' in line
    assert "Traceback" not in said


def test_ctrl_c_in_a_plugin_ends_the_run_as_anywhere_else(train):
    assert train("format", hook(MADE, "def read(row):", "    raise KeyboardInterrupt", "return read"))[0] == 130


def test_a_long_error_is_cut(train):
    _, said = train("format", hook(MADE, "raise ValueError('x\\n' * 5000)"))
    (line,) = [line for line in said.splitlines() if line.startswith("error:")]
    assert len(line) < 1000


def test_an_error_of_attrs_is_told_without_its_fields(train):
    _, said = train("format", hook(MADE, "return lambda row: Message('user', 'a', train='yes')"))
    assert "'train' must be <class 'bool'> (got 'yes' that is a <class 'str'>)" in said
    assert "Attribute(" not in said


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("torch's default dtype from torch.float32 to torch.float64", "torch.set_default_dtype(torch.float64)"),
        ("torch's grad mode from True to False", "torch.set_grad_enabled(False)"),
        ("the working folder", "import os; os.chdir('/')"),
    ],
)
def test_what_belongs_to_the_process_is_put_back_and_told(train, what, line):
    folder = os.getcwd()
    body = hook(KERNEL, "import torch", line, "return PatchReport()")
    try:
        code, said = train("kernel", body)
        assert (torch.get_default_dtype(), torch.is_grad_enabled(), os.getcwd()) == (torch.float32, True, folder)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
        os.chdir(folder)
    told = [line for line in said.splitlines() if f"in patch_kernels changes {what}" in line]
    assert told
    assert told[0].startswith('warning: kernel "bad@acme_faulty')
    assert code == 0


# --- The process ----------------------------------------------------------------------------------------------------
HIDES = "import warnings; warnings.simplefilter('ignore')"
MUTES = "import sys, io; sys.stdout = io.StringIO()"
HOOK = "import sys; sys.excepthook = print"
END = "os._exit(0)"
OTHER_HANDLER = "import signal; signal.signal(signal.SIGINT, lambda *_: None)"
CHANGING = {
    "a kernel": ("kernel", hook(KERNEL, HOOK, "return PatchReport()"), "patch_kernels changes sys.excepthook"),
    "a kernel's undo": (
        "kernel", hook(KERNEL, "def undo():", f"    {OTHER_HANDLER}", "return PatchReport((), undo=undo)"),
        "in its undo changes what happens on SIGINT"),
    "an adapter": ("adapter", hook(ADAPTER, HIDES, "return loaded"), "wrap_model changes the filters of warnings"),
    "a collator": ("collator", collate(HIDES, "return batch"), "rows, changes the filters of warnings"),
    "a formatter": (
        "format", hook(MADE, "def read(row):", f"    {MUTES}", f"    return {GOOD}", "return read"),
        "as it reads rows, changes sys.stdout"),
    "an attention that is made known": (
        "attention", hook(ATTENTION, "def register():", f"    {HOOK}",
                          "return AttentionBackend('sdpa', register=register)"),
        "in its register changes sys.excepthook"),
    "a plugin that is made": ("format", POST_INIT.format(HIDES) + FORMAT, "as it is made, changes the filters"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGING)
def test_a_plugin_that_changes_the_process_is_told_wherever_it_does(train, name):
    kind, body, words = CHANGING[name]
    code, said = train(kind, body)
    (first, *_) = [line for line in said.splitlines() if words in line]
    assert first.startswith(f'warning: {kind} "bad@acme_faulty')
    assert code == 0


def test_a_module_that_changes_the_process_as_it_is_imported_is_told(train):
    code = f"{HIDES}\n{HEAD}@plugin\nclass Bad:\n    'Reads rows.'\n" + "".join(
        f"    {line}\n" for line in FORMAT.splitlines()
    )
    status, said = train("format", "", code=code)
    assert "as it is imported, changes the filters of warnings" in said
    assert status == 0


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("kernel", hook(KERNEL, f"import os; {END}")),
        ("kernel", hook(KERNEL, "import os", f"return PatchReport((), undo=lambda: {END})")),
        ("collator", collate(f"import os; {END}")),
        ("format", hook(MADE, "import os", f"return lambda row: {END}")),
    ],
)
def test_a_plugin_that_ends_the_process_is_named(train, kind, body):
    code, said = train(kind, body)
    (line,) = [line for line in said.splitlines() if line.startswith("error:")]
    assert code == 1
    assert f'{kind} "bad@acme_faulty' in line
    assert "calls os._exit, which ends the process" in line
