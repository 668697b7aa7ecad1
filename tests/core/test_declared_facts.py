"""What a plugin declares decides, whoever wrote it: no name of a built-in does."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from sftcore.config.attention import pads
from sftcore.config.setup import check
from sftcore.core.discovery import discover
from sftcore.core.errors import CheckError, ConflictError, RecipeError
from sftcore.core.types import Probe
from sftcore.data.format import choose_format

ROOT = Path(__file__).parents[2]
PACKED = {"packing": True, "max_length": 64}

ATTENTION = '''
from sftcore import AttentionBackend, hookimpl, plugin

@plugin
class Ours:
    """An attention of somebody else."""

    @hookimpl
    def claims(self):
        return ["attention"]

    @hookimpl
    def attention_backend(self):
        return AttentionBackend("acme_attention", {declared})
'''

COLLATOR = '''
from sftcore import hookimpl, plugin

@plugin
class Ours:
    """A collator of somebody else."""

    flat: bool = {flat}

    {hook}

    @hookimpl
    def make_collator(self):
        return list
'''
SAYS = "@hookimpl\n    def flattens(self, plan):\n        return self.flat"


def collator_of(setup) -> str:
    (selection,) = setup.plan.selected("collator")
    return selection.name


@pytest.fixture
def attention(write_distribution):
    def write(module: str, declared: str) -> None:
        code = ATTENTION.format(declared=declared)
        write_distribution(module, code, entry_points=f"[sftcore.attention]\nours = {module}:Ours\n".encode())

    return write


@pytest.fixture
def collator(write_distribution):
    def write(module: str, *, flat: bool, says: bool = True) -> None:
        code = COLLATOR.format(flat=flat, hook=SAYS if says else "")
        write_distribution(module, code, entry_points=f"[sftcore.collator]\nours = {module}:Ours\n".encode())

    return write


# --- Attentions -----------------------------------------------------------------------------------------------------
def test_an_attention_that_declares_boundaries_gets_packed_rows_end_to_end_as_varlen_does(attention, set_up):
    attention("facts_boundaries", "boundaries=True")
    ours = set_up(attention="ours", **PACKED)
    own = set_up(attention="varlen", **PACKED)
    assert collator_of(ours) == collator_of(own) == "flattened"
    assert (ours.plan.flattened, own.plan.flattened) == (True, True)
    assert not pads(ours.plan)
    left_open = set_up(attention="ours").plan
    assert (left_open.flattened, left_open.open_layout, pads(left_open)) == (True, True, True)
    assert set_up(attention="ours", padding_free=False).plan.flattened is False


def test_an_attention_that_declares_none_gets_packed_rows_side_by_side_as_sdpa_does(attention, set_up):
    attention("facts_no_boundaries", "boundaries=False")
    assert set_up(attention="ours").plan.flattened is False
    assert collator_of(set_up(attention="ours", **PACKED)) == "padded"
    assert collator_of(set_up(attention="sdpa", **PACKED)) == "padded"


def test_an_attention_that_cannot_be_compiled_is_refused_beside_compile_as_varlen_is(attention, set_up):
    attention("facts_not_compilable", "compilable=False")
    for name in ("ours", "varlen"):
        setup = set_up(attention=name, kernel={"compile": {"backend": "eager"}})
        (found,) = setup.plugins.problems(setup.plan, Probe())
        assert f'attention "{name}"' in found.what


def test_an_attention_that_can_be_compiled_is_not(attention, set_up):
    attention("facts_compilable", "compilable=True")
    setup = set_up(attention="ours", kernel={"compile": {"backend": "eager"}})
    assert setup.plugins.problems(setup.plan, Probe()) == []


def test_transformers_name_finds_the_attention_that_declares_it(attention, set_up):
    attention("facts_implementation", "boundaries=True")
    for implementation, name in (("acme_attention", "ours"), ("flex_attention", "flex"), ("sdpa", "sdpa")):
        setup = set_up(model={"name": "m", "init_kwargs": {"attn_implementation": implementation}})
        assert setup.plan.selected("attention")[0].name == name


def test_an_attention_that_fails_to_say_what_it_supports_is_named(attention, set_up):
    attention("facts_failing", "devices=1 / 0")
    with pytest.raises(Exception, match=r'attention "ours@facts_failing" 1.0: its attention_backend .* raised ZeroDiv'):
        set_up(attention="ours")


def test_what_is_declared_is_known_before_torch_is_imported(python):
    code = (
        "import sys\nfrom sftcore.config.recipe import parse_recipe\nfrom sftcore.config.setup import set_up_recipe\n"
        "setup = set_up_recipe(parse_recipe({'model': 'some/model', 'data': 'rows.jsonl', 'attention': 'varlen',"
        " 'packing': True}, place='recipe.yaml'))\n"
        "print(setup.plan.flattened, sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert python("-c", code).stdout == "True []\n"


# --- Collators ------------------------------------------------------------------------------------------------------
def test_a_collator_that_flattens_serves_padding_free_as_ours_does(collator, set_up):
    collator("facts_flat", flat=True)
    setup = set_up(collator="ours", padding_free=True)
    assert (collator_of(setup), setup.plan.flattened) == ("ours", True)
    assert collator_of(set_up(padding_free=True)) == "flattened"


@pytest.mark.parametrize("says", [True, False], ids=["it pads", "it does not say"])
def test_a_collator_that_does_not_flatten_is_refused_beside_padding_free(collator, set_up, says):
    collator(f"facts_not_flat_{says}", flat=False, says=says)
    with pytest.raises(ConflictError, match=r'padding_free asks for documents end to end.*collator "ours"'):
        set_up(collator="ours", padding_free=True)


def test_options_of_a_collator_decide_what_it_declares(collator, set_up):
    collator("facts_flat_by_option", flat=False)
    setup = set_up(collator={"ours": {"flat": True}}, padding_free=True)
    assert setup.plan.flattened is True


def test_an_attention_without_padding_is_refused_beside_any_collator_that_pads(collator, set_up):
    collator("facts_pads", flat=False)
    for name in ("ours", "padded"):
        setup = set_up(collator=name, attention="flash-1", use_cpu=True)
        assert any("does not accept padding" in one.what for one in setup.plugins.problems(setup.plan, Probe()))


# --- Loaders --------------------------------------------------------------------------------------------------------
LOADER = '''
from sftcore import hookimpl, plugin

@plugin
class Ours:
    """Models of somebody else."""

    @hookimpl
    def claims(self):
        return ["model.load"]

    @hookimpl
    def loads(self, request):
        return request.name.endswith({ending!r})

    @hookimpl
    def load_model(self, request, options):
        raise NotImplementedError
'''


def write_loader(write_distribution, module, ending):
    code = LOADER.format(ending=ending)
    write_distribution(module, code, entry_points=f"[sftcore.loader]\nours = {module}:Ours\n".encode())


def test_a_loader_that_says_it_loads_the_model_is_the_default(write_distribution, set_up):
    write_loader(write_distribution, "facts_loader", ".acme")
    for model, name in (("m.acme", "ours"), ("m.gguf", "gguf"), ("some/model", "hf"), ("some/model-2.5", "hf")):
        (loader,) = set_up(model=model).plan.selected("loader")
        assert (loader.name, loader.default) == (name, True)
    (chosen,) = set_up(model="m.acme", loader="hf").plan.selected("loader")
    assert (chosen.name, chosen.default) == ("hf", False)


def test_two_loaders_for_one_model_are_an_error_that_names_both(write_distribution, set_up):
    write_loader(write_distribution, "facts_second_loader", ".gguf")
    with pytest.raises(ConflictError, match="gguf@sftcore, ours@facts_second_loader"):
        set_up(model="m.gguf")


def test_a_broken_loader_is_passed_over_with_a_warning(write_distribution, set_up):
    write_distribution("facts_broken_loader", "1 / 0", entry_points=b"[sftcore.loader]\nours = facts_broken_loader:O\n")
    with pytest.warns(UserWarning, match=r"is broken and ignored"):
        assert set_up(model="m.gguf").plan.selected("loader")[0].name == "gguf"


# --- Options from fields --------------------------------------------------------------------------------------------
FORMAT = '''
from sftcore import Example, hookimpl, plugin

@plugin
class Ours:
    """Lines of text."""

    column: str = "line"

    @hookimpl
    def options_from(self, settings):
        return {"column": settings["dataset_text_field"]} if "dataset_text_field" in settings else None

    @hookimpl
    def detects(self, columns):
        return self.column in columns

    @hookimpl
    def make_formatter(self):
        return lambda row: Example(text=row[self.column])
'''


def test_a_format_takes_its_column_from_a_field_as_text_does(write_distribution, set_up):
    write_distribution("facts_format", FORMAT, entry_points=b"[sftcore.format]\nours = facts_format:Ours\n")
    for name, option in (("ours", "column"), ("text", "field"), ("vlm", "text")):
        setup = set_up(format=name, dataset_text_field="body")
        assert setup.plugins.bound[0].selection.options == {option: "body"}
        setup = set_up(format={name: {option: "mine"}}, dataset_text_field="body")
        assert setup.plugins.bound[0].selection.options == {option: "mine"}
    setup = set_up(dataset_text_field="line", block=["format:text"])
    bound = choose_format(setup, ["line"], "rows")
    assert bound.entry.name == "ours"


def test_fields_that_stand_for_a_plugin_give_it_its_options(set_up, monkeypatch):
    monkeypatch.setattr("sftcore.core.discovery._missing", lambda *args: ())  # liger-kernel counts as installed
    setup = set_up(use_liger_kernel=True, liger_kernel_config={"swiglu": False})
    assert [(one.label, dict(one.options)) for one in setup.plan.selections if one.name == "liger"] == [
        ('kernel "liger"', {"mlp": False}),
        ('loss "liger"', {}),
    ]


def test_fields_that_contradict_each_other_say_where(set_up):
    both = {"cross_entropy": True, "fused_linear_cross_entropy": True}
    with pytest.raises(RecipeError, match=r"recipe\.yaml\.liger_kernel_config: cross_entropy and fused"):
        set_up(use_liger_kernel=True, liger_kernel_config=both)


def test_a_run_checks_what_plugins_declare(attention, set_up):
    attention("facts_checked", "compilable=False")
    with pytest.raises(CheckError, match="cannot be compiled"):
        check(set_up(attention="ours", kernel={"compile": {"backend": "eager"}}))


# --- No name of a built-in in the code ------------------------------------------------------------------------------
COMMON_WORDS = {"text", "chat", "model"}
"""Built-ins that are named like parts of messages, verbs of the command line, or the section of a recipe."""

NAMES_WITH_A_REASON = {
    ("config/selections.py", "DEFAULTS"),  # the documented defaults
    ("config/selections.py", "DEFAULT_COLLATORS"),
    ("config/selections.py", "ASKED_FOR_BY"),  # what fields of TRL stand for, by TRL's own contract
    ("config/selections.py", "ADAPTER_OF_PEFT_CONFIG"),
    ("config/selections.py", "RENAMED_LOSSES"),
    ("config/foreign/entry.py", "PEERS"),  # a tool, which is named like a built-in for it
    ("config/foreign/training.py", "ENTRIES"),  # what other tools call our keys, in advice and for importers
    ("config/foreign/data.py", "ENTRIES"),
    ("config/foreign/model.py", ""),
    ("config/foreign/values.py", ""),
    ("config/sft_config.py", "loss_type"),  # the default of a field of TRL
    ("cli/quickstart.py", ""),  # the recipe that it writes
    ("model/build.py", ""),  # eager and sdpa: names of transformers' own attentions
    ("model/precision.py", ""),  # gguf: what transformers calls such a file's quantisation
    ("documents/ways.py", ""),
    ("selftest/features.py", "REFERENCE_ATTENTION"),
    ("data/source/files.py", ""),
    ("trials/model.py", "PLAIN"),  # eager and sdpa: what claims are compared with
    ("testing/claims.py", ""),
    ("testing/conformance/adapters.py", ""),
    ("testing/conformance/loaders.py", ""),
    ("testing/conformance/trained.py", ""),
    ("testing/conformance/formats.py", ""),  # vlm: the tiny model with pictures
    ("testing/short_runs.py", "LAYOUTS"),  # padded: the name of a layout
    ("cli/bring/import_.py", ""),  # the name of the tool that a configuration is of
    ("config/settings/templates.py", "_ALL"),  # a chat template
    ("model/verify/registration.py", "_BUILT_IN"),  # eager: as transformers calls its own
    ("trials/square_masks.py", ""),  # eager: as transformers calls its own
    ("tools/doctor/of_recipe.py", ""),  # hub: where models and data are had from
    ("tools/doctor/versions.py", "_OFTEN"),  # unsloth: a distribution
    ("tools/estimate/estimate.py", ""),  # padded: the name of a layout
    ("rows/turns.py", "_CONTENT"),  # segments: a key of rows
}


def _named(tree: ast.Module, names: set[str]):
    """Each text that is a built-in's name, with the name of the constant or field at the top that holds it, if any."""
    for statement in tree.body:
        for inner in statement.body if isinstance(statement, ast.ClassDef) else [statement]:
            target = inner.targets[0] if isinstance(inner, ast.Assign) else getattr(inner, "target", None)
            holder = target.id if isinstance(target, ast.Name) else ""
            for node in ast.walk(inner):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names:
                    yield holder, node


def test_no_built_ins_name_decides_anything():
    names = {entry.name for entry in discover().entries if entry.distribution == "sftcore"} - COMMON_WORDS
    assert len(names) >= 20
    found = []
    for path in sorted((ROOT / "sftcore").rglob("*.py")):
        file = path.relative_to(ROOT / "sftcore").as_posix()
        if file.startswith("importers/"):  # which writes recipes for people, and these name what people choose
            continue
        for holder, node in _named(ast.parse(path.read_text(encoding="utf-8")), names):
            if not {(file, holder), (file, "")} & NAMES_WITH_A_REASON:
                found.append(f"{file}:{node.lineno}: {node.value}")
    assert found == []


def test_nothing_in_sftcore_knows_where_the_built_ins_are():
    for path in sorted((ROOT / "sftcore").rglob("*.py")):
        assert "sftcore_plugins" not in path.read_text(encoding="utf-8"), path
