"""A test for each hook, named for it: in a run from the command line it is asked, and what it answers is what happens.

One run with a distribution that has a plugin of each kind, all hooks of which note what they were given.
"""

from __future__ import annotations

import ast
import json
import os
import re
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from sftcore import LoadedModel, LoadOptions, ModelRequest, Plan, Probe
from sftcore.cli import cli
from sftcore.core.errors import ConflictError
from sftcore.core.hookspecs import LIFECYCLE

EACH = '''
import os

from sftcore import (
    AttentionBackend, Example, LoadedModel, LoadOptions, LossOutput, Message, PatchReport, Problem, hookimpl, plugin,
)
from sftcore.plugin_api import filler_of, pad_rows

SEEN = []
KEPT = {}


def note(hook, **given):
    SEEN.append(hook)
    KEPT.setdefault(hook, given)


@plugin
class Format:
    """Rows with q and a."""

    longest: int = 0

    @hookimpl
    def options_from(self, settings):
        note("options_from", settings=settings)
        return {"longest": settings.get("max_length") or 0}

    @hookimpl
    def detects(self, columns):
        note("detects", columns=columns)
        return set(columns) == {"q", "a"}

    @hookimpl
    def suggest(self, columns):
        note("suggest", columns=columns)
        return {"longest": 7} if "note" in columns else None

    @hookimpl
    def make_formatter(self, columns):
        note("make_formatter", columns=columns, longest=self.longest)
        return lambda row: Example(prompt=[Message("user", row["q"])], completion=[Message("assistant", row["a"])])


@plugin
class Collator:
    """Rows padded, with a mark."""

    @hookimpl
    def flattens(self, plan):
        note("flattens", plan=plan)
        return False

    @hookimpl
    def make_collator(self, processor, plan):
        note("make_collator", processor=processor, plan=plan)

        def collate(rows):
            note("collated", rows=len(rows))
            return pad_rows(rows, pad_token_id=filler_of(processor))

        return collate


@plugin
class Loader:
    """Folders whose name ends in .here."""

    @hookimpl
    def loads(self, request):
        note("loads", request=request)
        return (request.name or "").endswith(".here")

    @hookimpl
    def load_processor(self, request):
        from transformers import AutoTokenizer

        made = AutoTokenizer.from_pretrained(request.name)
        note("load_processor", request=request, made=made)
        return made

    @hookimpl
    def load_options(self, request):
        note("load_options", request=request)
        return LoadOptions({"low_cpu_mem_usage": True})

    @hookimpl
    def load_model(self, request, options):
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(request.name, dtype=request.dtype, **options.kwargs)
        note("load_model", request=request, options=options, model=model)
        return LoadedModel(model, None, request, ("loaded from here",))


@plugin
class Attention:
    """Attention as matrix products."""

    @hookimpl
    def attention_backend(self, request):
        note("attention_backend", request=request)
        return AttentionBackend("eager")


@plugin
class Kernel:
    """A kernel that finds nothing to replace."""

    @hookimpl
    def claims(self):
        note("claims")
        return ["kernel.rope"]

    @hookimpl
    def check(self, plan, probe):
        note("check", plan=plan, probe=probe)
        return [Problem("nothing fits.", severity="warning")]

    @hookimpl
    def prepare(self, plan):
        note("prepare", plan=plan)
        os.environ["SFTCORE_TEST_PREPARED"] = "yes"

    @hookimpl
    def patch_kernels(self, loaded, plan):
        note("patch_kernels", loaded=loaded, plan=plan)
        return PatchReport(skipped={"rope": "the model has none"})


@plugin
class Adapter:
    """The last norm alone."""

    @hookimpl
    def wrap_model(self, loaded, plan):
        note("wrap_model", loaded=loaded, plan=plan)
        for name, parameter in loaded.model.named_parameters():
            parameter.requires_grad = name == "model.norm.weight"
        return loaded

    @hookimpl
    def save_model(self, loaded, folder):
        note("save_model", loaded=loaded, folder=folder)
        open(os.path.join(folder, "STAMP"), "w").close()


@plugin
class Loss:
    """Cross-entropy in one piece."""

    @hookimpl
    def make_loss(self, loaded, plan):
        note("make_loss", loaded=loaded, plan=plan)

        def loss(hidden, head, labels, weights, num_items):
            note("computed")
            KEPT["computed"] = {"labels": labels}  # of the last call: the first are the run's trials of the plugin
            logp = head(hidden).float().log_softmax(-1)
            nll = -logp.gather(-1, labels[:, None])[:, 0]
            nll = nll if weights is None else nll * weights
            return LossOutput(nll.sum() / num_items, -(logp.exp() * logp).sum(), (logp.argmax(-1) == labels).sum())

        return loss


@plugin
class Noise:
    """Counts while it is on."""

    @hookimpl
    def inject_noise(self, loaded, plan):
        note("inject_noise", loaded=loaded, plan=plan)
        return loaded.model.get_input_embeddings().register_forward_hook(self._add)

    def _add(self, module, args, output):
        if module.training:
            note("noisy")
            return output + 1e-6
'''
KINDS = ("format", "collator", "loader", "attention", "kernel", "adapter", "loss", "noise")


@pytest.fixture(scope="module")
def each(tmp_path_factory):
    """A distribution with a plugin of each kind, all named `each`, on the path."""
    folder = tmp_path_factory.mktemp("distribution")
    info = folder / "each-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: each\nVersion: 1.0\n", "utf-8")
    entries = "".join(f"[sftcore.{kind}]\neach = each_hook:{kind.capitalize()}\n" for kind in KINDS)
    (info / "entry_points.txt").write_text(entries, "utf-8")
    (folder / "each_hook.py").write_text(EACH, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.delenv("SFTCORE_TEST_PREPARED", raising=False)
        patch.setenv("SFTCORE_TEST_PREPARED", "no")
        import each_hook

        yield each_hook
        del sys.modules["each_hook"]


@pytest.fixture(scope="module")
def ran(each, model_folder, tmp_path_factory):
    """The run: two steps and an evaluation; what was printed, and its folder."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.here").symlink_to(model_folder)
    row = json.dumps({"q": "Which question?", "a": "The answer."}) + "\n"
    (folder / "rows.jsonl").write_text(row * 8, "utf-8")
    chosen = [f"{kind}=each" for kind in ("collator", "attention", "kernel", "adapter", "loss", "noise")]
    words = [f"model={folder / 'tiny.here'}", f"data={folder / 'rows.jsonl'}", f"output_dir={folder / 'out'}"]
    words += ["max_length=64", "max_steps=2", "per_device_train_batch_size=2", "use_cpu=true", *chosen]
    words += ["data.eval_fraction=0.25", "eval_strategy=steps", "eval_steps=2"]
    each.KEPT.clear()  # of tests that came first
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        shown = CliRunner().invoke(cli, ["train", *words], catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    warned = [str(one.message) for one in warned]
    facts = {**vars(each), "KEPT": dict(each.KEPT)}
    return SimpleNamespace(printed=shown.output, warned=warned, out=folder / "out", model=folder / "tiny.here", **facts)


def test_hook_loads(ran):
    # no loader was chosen: the one that says yes is the run's
    assert ran.KEPT["loads"]["request"].name == str(ran.model)
    assert "load_model" in ran.KEPT


def test_hook_options_from(ran):
    assert ran.KEPT["options_from"]["settings"]["max_length"] == 64
    assert ran.KEPT["make_formatter"]["longest"] == 64


def test_hook_claims(ran, set_up, write_distribution):
    code = EACH.partition("@plugin")[0] + "@plugin\nclass Other:\n    '''Rope.'''\n    @hookimpl\n"
    code += "    def claims(self):\n        return ['kernel.rope']\n"
    write_distribution("each_other", code, entry_points=b"[sftcore.kernel]\nother = each_other:Other\n")
    with pytest.raises(ConflictError, match=r'"each@each" and kernel "other@each_other" both claim .* "kernel\.rope"'):
        set_up(kernel=["each", "other"])


def test_hook_attention_backend(ran):
    assert isinstance(ran.KEPT["attention_backend"]["request"], ModelRequest)
    assert ran.KEPT["wrap_model"]["loaded"].model.config._attn_implementation == "eager"


def test_hook_flattens(ran):
    assert isinstance(ran.KEPT["flattens"]["plan"], Plan)
    assert ran.KEPT["patch_kernels"]["plan"].flattened is False


def test_hook_check(ran):
    given = ran.KEPT["check"]
    assert given["plan"].settings["max_steps"] == 2
    assert isinstance(given["probe"], Probe)
    assert given["probe"].model_config["model_type"] == "llama"
    assert 'kernel "each": nothing fits.' in ran.warned


def test_hook_prepare(ran):
    assert os.environ["SFTCORE_TEST_PREPARED"] == "yes"
    assert ran.SEEN.index("check") < ran.SEEN.index("prepare") < ran.SEEN.index("load_processor")


def test_hook_load_processor(ran):
    assert ran.KEPT["load_processor"]["request"].name == str(ran.model)
    assert ran.SEEN.index("load_processor") < ran.SEEN.index("load_model")
    assert ran.KEPT["make_collator"]["processor"] is ran.KEPT["load_processor"]["made"]


def test_hook_detects(ran):
    assert set(ran.KEPT["detects"]["columns"]) == {"q", "a"}
    assert re.search(r"\beach\b", ran.printed)


def test_hook_suggest(each, write):
    rows = write("rows.jsonl", '{"q": "Which?", "a": "This.", "note": "none"}\n')
    with pytest.raises(ValueError, match=r"each: \{longest: 7\}"):
        CliRunner().invoke(cli, ["train", "model=some/model", f"data={rows}"], catch_exceptions=False)
    assert each.KEPT["suggest"]["columns"] == ("q", "a", "note")


def test_hook_make_formatter(ran):
    assert set(ran.KEPT["make_formatter"]["columns"]) == {"q", "a"}
    decoded = ran.KEPT["make_collator"]["processor"].decode(ran.KEPT["computed"]["labels"])
    assert "The answer." in decoded
    assert "Which question?" not in decoded


def test_hook_load_options(ran):
    assert ran.KEPT["load_options"]["request"].name == str(ran.model)
    assert ran.KEPT["load_model"]["options"].kwargs["low_cpu_mem_usage"] is True


def test_hook_load_model(ran):
    given = ran.KEPT["load_model"]
    assert isinstance(given["options"], LoadOptions)
    assert given["request"].dtype == "float32"
    assert ran.KEPT["patch_kernels"]["loaded"].model is given["model"]
    assert "loaded from here" in ran.printed


def test_hook_patch_kernels(ran):
    assert isinstance(ran.KEPT["patch_kernels"]["loaded"], LoadedModel)
    assert "the model has none" in ran.printed


def test_hook_make_loss(ran):
    assert isinstance(ran.KEPT["make_loss"]["loaded"], LoadedModel)
    assert ran.SEEN.count("computed") >= 2
    assert (ran.KEPT["computed"]["labels"] != -100).all()


def test_hook_wrap_model(ran):
    before, after = (load_file(folder / "model.safetensors") for folder in (ran.model, ran.out))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"model.norm.weight"}


def test_hook_make_collator(ran):
    assert ran.KEPT["make_collator"]["plan"].settings["max_length"] == 64
    assert ran.SEEN.count("collated") >= 2
    assert ran.KEPT["collated"]["rows"] >= 1


def test_hook_inject_noise(ran):
    assert isinstance(ran.KEPT["inject_noise"]["loaded"], LoadedModel)
    assert ran.SEEN.count("noisy") >= 2
    left = ran.KEPT["load_model"]["model"].get_input_embeddings()._forward_hooks.values()
    assert not any(isinstance(getattr(hook, "__self__", None), ran.Noise) for hook in left)


def test_hook_save_model(ran):
    assert Path(ran.KEPT["save_model"]["folder"]).is_absolute()
    assert (ran.out / "STAMP").is_file()


def proven(source: str) -> set[str]:
    """Hooks with a test of their name that asserts something and is not left out."""
    tests = {one.name: one for one in ast.parse(source).body if isinstance(one, ast.FunctionDef)}
    return {
        hook
        for hook in LIFECYCLE
        if (test := tests.get(f"test_hook_{hook}")) is not None
        and not test.decorator_list
        and {argument.arg for argument in test.args.args} & {"ran", "each"}
        and any(isinstance(node, ast.Assert) or "pytest.raises" in ast.unparse(node) for node in test.body)
    }


def test_every_hook_has_a_test_named_for_it():
    assert proven(Path(__file__).read_text(encoding="utf-8")) == set(LIFECYCLE)


@pytest.mark.parametrize(
    "test",
    [
        "# def test_hook_check(ran):",
        "def test_hook_check(ran):\n    pass",
        "@pytest.mark.skip\ndef test_hook_check(ran):\n    assert ran.KEPT['check']",
        "def test_hook_check():\n    assert 'check'",
        "class Test:\n    def test_hook_check(self, ran):\n        assert ran.KEPT['check']",
    ],
)
def test_a_test_that_proves_nothing_is_none(test):
    assert proven(test) == set()


def test_the_hooks_of_a_run_are_asked_in_the_order_of_the_lifecycle(ran):
    order = LIFECYCLE[LIFECYCLE.index("load_options") :]
    assert [hook for hook in dict.fromkeys(ran.SEEN) if hook in order] == list(order)
