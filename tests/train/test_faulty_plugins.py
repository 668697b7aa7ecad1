"""A plugin that is wrong is one line that names it, with its hook and file; none trains on in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.train.plugin_code import (
    ADAPTER,
    ATTENTION,
    COLLATE,
    GOOD,
    HEAD,
    KERNEL,
    LOADER,
    LOSS,
    MADE,
    NOISE,
    PROCESSOR,
    SAVE,
    collate,
    hook,
    loss,
)

WRONG = {
    "None": "return None",
    "text": "return 'done'",
    "number": "return 3",
    "generator": "yield None",
    "raises": "raise KeyError('boom')",
    "exits": "raise SystemExit(0)",
    "class": "return int",
}
HOOKS = {
    "format": [MADE], "collator": [COLLATE], "loss": [LOSS], "noise": [NOISE], "kernel": [KERNEL], "loader": [LOADER],
    "adapter": [ADAPTER], "attention": [ATTENTION],
}  # fmt: skip
CASES = [(kind, f"{of.partition('(')[0]} {name}", hook(of, body)) for kind, hooks in HOOKS.items() for of in hooks
         for name, body in WRONG.items() if not (name == "class" and of in (MADE, COLLATE, LOSS))]  # fmt: skip
CASES += [
    ("format", f"its function {name}", hook(MADE, f"return lambda row: {body}"))
    for name, body in {
        "None": "None", "mapping": "{'messages': []}", "texts": "['a']", "number": "3", "raises": "1 / 0",
        "looks up": "{}['boom']", "exits": "exit(3)", "dict messages": "Example(messages=[{'role': 'user'}])",
        "number as content": "Example(messages=[Message('user', 3), Message('assistant', 4)])",
        "number as text": "Example(text=3)", "list as tokens": "Example(tokens=[1, 2])",
        "text as ids": "Example(tokens=TokenizedRow('abc'))", "two shapes": "Example(text='a', prompt='b')",
        "short labels": "Example(tokens=TokenizedRow([1, 2, 3], [1]))",
    }.items()
]  # fmt: skip
CASES += [
    ("collator", f"its function {name}", collate(body))
    for name, body in {
        "None": "return None", "list": "return [batch]", "generator": "yield batch", "raises": "raise IndexError('no')",
        "drops labels": "del batch['labels']; return batch", "drops ids": "del batch['input_ids']; return batch",
        "short labels": "batch['labels'] = batch['labels'][:, 1:]; return batch",
        "lists": "return {name: value.tolist() for name, value in batch.items()}",
        "flat": "return {name: value[0] for name, value in batch.items()}",
        "float ids": "batch['input_ids'] = batch['input_ids'].float(); return batch",
    }.items()
]  # fmt: skip
CASES += [
    ("loss", f"its function {name}", loss(body))
    for name, body in {
        "None": "return None", "tensor": "return s", "raises": "raise RuntimeError('no')",
        "vector": "return LossOutput(s.expand(2), s.detach(), n)", "detached": "return LossOutput(s.detach(), None, n)",
        "number": "return LossOutput(1.0, None, n)", "correct is None": "return LossOutput(s, None, None)",
        "counts": "return LossOutput(n, None, n)", "too many": "return LossOutput(s, None, n, 3)",
    }.items()
]  # fmt: skip
CASES += [
    ("loss", f"TokenLoss {name}", hook(LOSS, f"return TokenLoss(lambda lp: {body})"))
    for name, body in {"None": "None", "mean": "-lp.mean()", "first": "-lp[:1]", "twice": "-lp[None]"}.items()
]
CASES += [
    ("kernel", "undo raises", hook(KERNEL, "return PatchReport(('a',), undo=lambda: 1 / 0)")),
    ("kernel", "undo is a text", hook(KERNEL, "return PatchReport(('a',), undo='me')")),
    ("kernel", "replaced is a text", hook(KERNEL, "return PatchReport('rms_norm')")),
    ("noise", "no remove", hook(NOISE, "return object()")),
    ("noise", "remove raises", hook(NOISE, "class H:", "    def remove(self): raise OSError('no')", "return H()")),
    ("loader", "bare model", hook(LOADER, "import torch", "return torch.nn.Linear(2, 2)")),
    ("loader", "no model in it", hook(LOADER, "return LoadedModel(None, None)")),
    ("loader", "OSError", hook(LOADER, "raise OSError('load boom')")),
    ("adapter", "bare model", hook(ADAPTER, "return loaded.model")),
    ("adapter", "no model in it", hook(ADAPTER, "return LoadedModel(None, None)")),
    ("attention", "implementation is None", hook(ATTENTION, "return AttentionBackend(None)")),
    ("attention", "dtypes is a text", hook(ATTENTION, "return AttentionBackend('sdpa', dtypes='float32')")),
    ("attention", "register raises", hook(ATTENTION, "return AttentionBackend('sdpa', register=lambda: 1 / 0)")),
    ("attention", "its code raises", hook(
        ATTENTION, "def attend(*args, **kwargs): raise RuntimeError('no head')", "def register():",
        "    from transformers import AttentionInterface", "    AttentionInterface.register('acme_raises', attend)",
        "return AttentionBackend('acme_raises', register=register)")),
    ("kernel", "claims None", hook("claims(self)", "return None")),
    ("kernel", "claims no slot", hook("claims(self)", "return 'embedding.nois'")),
    ("kernel", "claims numbers", hook("claims(self)", "return [1]")),
    ("kernel", "check of texts", hook("check(self)", "return ['no problem']")),
    ("kernel", "check of a number", hook("check(self)", "return [Problem(3)]")),
    ("kernel", "check of another severity", hook("check(self)", "return [Problem('bad', severity='fatal')]")),
    ("kernel", "check raises", hook("check(self)", "yield 1 / 0")),
    ("kernel", "load_options mapping", hook("load_options(self, request)", "return {'a': 1}")),
    ("kernel", "prepare never runs", hook("prepare(self, plan)", "yield")),
    ("kernel", "save never runs", hook(SAVE, "yield")),
    ("kernel", "save raises", hook(SAVE, "raise OSError('full')")),
    ("kernel", "unknown hook", hook("patch_kernel(self)", "return None")),
    ("kernel", "nothing", "def patch_kernels(self, loaded, plan):\n    return None\n"),
    ("format", "nothing", f"def {MADE}:\n    return lambda row: {GOOD}\n"),
    ("format", "wrong argument", hook("make_formatter(self, colums)", "return None")),
    ("format", "argument with a default", hook("make_formatter(self, columns=None)", "return None")),
    ("format", "async", f"@hookimpl\nasync def {MADE}:\n    return None\n"),
    ("collator", "flattens a text", hook(COLLATE, "return None") + hook("flattens(self, plan)", "return 'yes'")),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "body"), CASES, ids=[f"{kind}: {name}" for kind, name, _ in CASES])
def test_a_wrong_plugin_is_one_line_that_names_it(train, kind, name, body):
    code, said = train(kind, body + (PROCESSOR if kind == "loader" else ""))
    (line,) = [line for line in said.splitlines() if line.startswith("error:")]
    assert code == 1
    assert f'{kind} "bad@acme_faulty' in line
    assert "Traceback" not in said
    assert said.rstrip().splitlines()[-1] == line


@pytest.mark.parametrize("held", ["(i for i in 'ab')", "__import__('sqlite3').connect(':memory:')"])
def test_a_format_that_cannot_be_pickled_is_named_before_it_is_sent_to_processes(train, held):
    body = hook(MADE, f"held = {held}", f"return lambda row: {GOOD} if held else None")
    code, said = train("format", body, "dataset_num_proc=2", "dataset_cache=false")
    (line,) = [line for line in said.splitlines() if line.startswith("error:")]
    assert code == 1
    assert 'format "bad@acme_faulty' in line
    assert "cannot be sent to 2 processes" in line
    assert "Traceback" not in said


def test_there_are_at_least_80_ways_to_be_wrong():
    assert len({(kind, name) for kind, name, _ in CASES}) >= 80


# --- What is not wrong ----------------------------------------------------------------------------------------------
GOOD_FORMAT = hook(MADE, f"return lambda row: {GOOD}")


@pytest.mark.parametrize(
    "more",
    [
        hook("check(self)", "return None"),
        hook("detects(self, columns)", "return None"),
        hook("prepare(self)", "return 'whatever'"),
        hook("claims(self)", "return ()"),
    ],
)
def test_optional_answers_are_optional(train, more):
    assert train("format", GOOD_FORMAT + more)[0] == 0


def test_a_format_may_yield_its_examples(train):
    assert train("format", hook(MADE, "def read(row):", f"    yield {GOOD}", "return read"))[0] == 0


def test_one_slot_may_be_claimed_as_a_text(train):
    code, said = train("kernel", hook("claims(self)", "return 'kernel.rope'") + hook(KERNEL, "return PatchReport()"))
    assert code == 0, said


# --- Seen at work ---------------------------------------------------------------------------------------------------
def test_the_traceback_is_shown_where_it_is_asked_for(train):
    code, said = train("format", hook(MADE, "return {}['boom']"), "--traceback")
    assert code == 1
    assert "return {}['boom']" in said
    assert said.rstrip().splitlines()[-1].startswith("error:")


def test_each_hook_call_is_traced_where_it_is_asked_for(train):
    _, said = train("format", hook(MADE, "raise KeyError('boom')"), "--trace-plugins")
    traced = [line for line in said.splitlines() if line.startswith("hook ")]
    assert any("make_formatter" in line and '"bad@acme_faulty' in line and " ms " in line for line in traced)
    assert any("claims" in line and '"hf@sftcore"' in line and "answered in" in line for line in traced)


@pytest.mark.parametrize(
    ("what", "head", "body"),
    [
        ("prints when it is imported", "print('HELLO')\n", GOOD_FORMAT),
        ("prints in detects", "", GOOD_FORMAT + hook("detects(self, columns)", "print('HELLO')", "return True")),
        ("changes the rows that it reads", "", hook(MADE, f"return lambda row: row.update(x=1) or {GOOD}")),
    ],
)
@pytest.mark.parametrize("strict", [False, True])
def test_what_a_plugin_should_not_do_is_told_and_stops_a_strict_run(train, monkeypatch, what, head, body, strict):
    if strict:
        monkeypatch.setenv("SFTCORE_STRICT", "1")
    code = f"{head}{HEAD}@plugin\nclass Bad:\n    'Noisy.'\n" + "".join(f"    {line}\n" for line in body.splitlines())
    status, said = train("format", "", code=code)
    (line,) = [line for line in said.splitlines() if what in line]
    assert line.startswith("error: " if strict else "warning: ")
    assert 'format "bad@acme_faulty' in line
    assert status == (1 if strict else 0)


def test_json_stays_json_whatever_a_plugin_prints(train):
    body = hook(MADE, "def read(row):", "    print('ROW')", f"    return {GOOD}", "return read")
    _, said = train("format", body, "--json", verb="check")
    assert json.loads(said[said.index("{") : said.rindex("}") + 1])["sets"]


def test_a_loader_without_a_tokenizer_is_named(train):
    _, said = train("loader", hook(LOADER, "return None"))
    assert 'loader "bad@acme_faulty' in said
    assert "does not implement load_processor" in said


def test_the_file_of_the_plugin_is_the_one_that_is_named(train):
    _, said = train("format", hook(MADE, "return None"))
    at = said.partition("its make_formatter (")[2].partition(")")[0]
    assert Path(at.rpartition(":")[0]).is_file()
