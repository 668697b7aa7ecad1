"""The documentation says what the code does: hooks, fields and plugins are all there, and examples run."""

from __future__ import annotations

import ast
import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sftcore.config import yaml12
from sftcore.config.recipe import parse_recipe
from sftcore.core.discovery import discover
from sftcore.core.hookspecs import LIFECYCLE, Hooks
from sftcore.core.plugin_class import is_plugin, options
from sftcore.core.types import ModelRequest, Plan, Probe

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return [code for found, code in FENCE.findall(text_of(page)) if found == language]


def sections(page: str, level: str = "## ") -> dict[str, str]:
    """Heading to the text below it, down to the next heading of the same level."""
    parts = re.split(rf"^{level}", text_of(page), flags=re.MULTILINE)[1:]
    return {part.partition("\n")[0].partition(" {")[0]: part.partition("\n")[2] for part in parts}


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, made as mkdocs makes them or given with { #… }."""
    found = set()
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    for heading in re.findall(r"^#+ (.+)$", prose, re.MULTILINE):
        given = re.search(r"\{ #(\S+) \}$", heading)
        found.add(given[1] if given else re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()))
    return found


# --- Reference ------------------------------------------------------------------------------------------------------
def test_generated_pages_say_what_the_code_says():
    script = ROOT / "scripts" / "gen_reference.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_stale_page_fails_the_check(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import gen_reference

    monkeypatch.setattr(gen_reference, "REFERENCE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["gen_reference.py"])
    gen_reference.main()
    assert gen_reference.stale() == []

    (tmp_path / "hooks.md").write_text("# Hooks\n", encoding="utf-8")
    (tmp_path / "plugins.md").unlink()
    monkeypatch.setattr(sys, "argv", ["gen_reference.py", "--check"])
    with pytest.raises(SystemExit, match=r"stale in docs/reference: hooks\.md, plugins\.md\."):
        gen_reference.main()


def test_every_hook_is_documented_in_the_order_of_the_lifecycle():
    hooks = {name for name, value in vars(Hooks).items() if hasattr(value, "sftcore_spec")}
    assert hooks == set(LIFECYCLE)
    assert tuple(sections("reference/hooks.md")) == LIFECYCLE


def signatures() -> dict[str, str]:
    """Hook to its signature as the source has it, without self."""
    source = (ROOT / "sftcore" / "core" / "hookspecs.py").read_text(encoding="utf-8")
    (hooks,) = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "Hooks")
    functions = [node for node in hooks.body if isinstance(node, ast.FunctionDef)]
    for one in functions:
        del one.args.args[0]
    return {one.name: f"{one.name}({ast.unparse(one.args)}) -> {ast.unparse(one.returns)}" for one in functions}


@pytest.mark.parametrize("hook", LIFECYCLE)
def test_a_hook_is_documented_with_its_exact_signature_and_its_values(hook):
    section = sections("reference/hooks.md")[hook]
    assert section.strip().partition("\n")[0] == f"`{signatures()[hook]}`"
    values = set(re.findall(r"\w+", signatures()[hook])) & set(sections("reference/values.md"))
    assert set(re.findall(r"\[(\w+)\]\(values\.md#\w+\)", section)) == values
    assert f"Added in {getattr(Hooks, hook).added}." in section


def test_every_value_that_crosses_a_hook_is_documented_with_all_its_fields():
    from sftcore.core import types

    documented = sections("reference/values.md")
    named = {"ModelRequest", "LoadedModel", "LoadOptions", "PatchReport", "AttentionBackend", "Plan", "Probe"}
    assert named | {"Example", "Message", "LossOutput", "Problem", "Selection", "TokenizedRow"} <= set(documented)
    crossing = {name for call in signatures().values() for name in re.findall(r"\w+", call) if hasattr(types, name)}
    assert crossing - {"Any", "Iterable", "Mapping"} <= set(documented)
    for name, section in documented.items():
        made = getattr(types, name)
        for field in getattr(made, "__attrs_attrs__", ()):
            assert f"| `{field.name}` |" in section, f"{name}.{field.name}"


@pytest.mark.parametrize("hook", LIFECYCLE)
def test_the_example_of_a_hook_runs_and_answers_it(hook):
    (code,) = [code for language, code in FENCE.findall(sections("reference/hooks.md")[hook]) if language == "python"]
    namespace: dict[str, object] = {}
    exec(compile(code, f"hooks.md: {hook}", "exec"), namespace)
    plugins = [value for value in namespace.values() if is_plugin(value)]
    assert any(hasattr(getattr(one, hook, None), "sftcore_impl") for one in plugins)


@pytest.mark.parametrize("name", ["SFTConfig", "ModelConfig"])
def test_every_field_of_our_own_is_documented(name):
    import sftcore

    config = getattr(sftcore, name)
    own = {field.name for field in dataclasses.fields(config)} & set(config.__annotations__)
    documented = sections("reference/config.md")[name]
    for field in own:
        _, _, below = documented.partition(f"### {field}")
        assert below, f"{name}.{field} is missing"
        type_and_default, _, description = below.partition("`\n\n")
        assert ", default `" in type_and_default
        assert len(description.partition("\n")[0]) > 3, f"{name}.{field} is not described"


def test_every_built_in_plugin_is_documented_with_its_options():
    documented = sections("reference/plugins.md")
    entries = [entry for entry in discover().entries if entry.distribution == "sftcore"]
    assert len(entries) >= 13
    for entry in entries:
        section = documented[f"{entry.kind}: {entry.name}"]
        for option in options(entry.load()):
            assert f"| `{option.name}` |" in section


def test_the_schema_of_list_plugins_is_the_documented_one():
    import json

    from click.testing import CliRunner

    from sftcore.cli.list_plugins import SCHEMA, command

    runner = CliRunner()
    (documented,) = (json.loads(code) for code in blocks("reference/list-plugins.md", "json"))
    printed = json.loads(runner.invoke(command, ["--json", "--kind", "loss"]).stdout)
    assert printed["schema"] == documented["schema"] == SCHEMA
    assert printed["plugins"][0].keys() == documented["plugins"][0].keys()
    detailed = json.loads(runner.invoke(command, ["--json", "--kind", "loss", "--details"]).stdout)
    for key in detailed["plugins"][0]:
        assert f"| `{key}` |" in text_of("reference/list-plugins.md")


def test_every_verb_is_documented():
    from sftcore.cli import _VERBS

    assert set(_VERBS) == set(sections("reference/cli.md"))


# --- How to ---------------------------------------------------------------------------------------------------------
def test_whole_recipes_parse():
    found = [yaml12.load(code, where="recipes.md") for code in blocks("how-to/recipes.md", "yaml")]
    whole = [recipe for recipe in found if {"model", "data"} <= recipe.keys()]
    assert len(whole) >= 7
    for recipe in whole:
        assert parse_recipe(recipe, place="recipes.md").raw == recipe


def test_recipes_name_plugins_and_options_that_exist():
    from sftcore.config.plugins.blocked import Blocklist
    from sftcore.config.plugins.bound import bind

    catalog = discover()
    pages = ("how-to/recipes.md", "tutorial/first-run.md", "how-to/attention.md", "how-to/losses.md", "how-to/noise.md")
    for page in (*pages, "how-to/memory.md"):
        for code in blocks(page, "yaml"):
            recipe = yaml12.load(code, where=page)
            for selection in parse_recipe(recipe, place=page).chosen:
                bind(selection, catalog, Blocklist())


def test_every_kind_and_key_of_a_recipe_is_documented():
    from sftcore.config.data.parse import SECTION_KEYS, SOURCE_KEYS
    from sftcore.config.recipe import SECTIONS

    text = text_of("how-to/recipes.md")
    for key in (*SECTIONS, *SECTION_KEYS):
        assert f"| `{key}` |" in text, key
    (table,) = re.findall(r"^\| key of a source .*?\n\n", text_of("how-to/mixtures.md"), re.DOTALL | re.MULTILINE)
    for key in SOURCE_KEYS:
        assert f"`{key}`" in table, key


def test_every_built_in_format_has_a_section():
    formats = {entry.name for entry in discover().of_kind("format") if entry.distribution == "sftcore"}
    assert formats <= set(sections("how-to/formats.md"))


@pytest.mark.parametrize(
    ("written", "read"),
    [("yes", "yes"), ("010", 10), ("0x10", 16), ("0o10", 8), ("2026-01-31", "2026-01-31"), ("12:30", "12:30")],
)
def test_yaml_is_read_as_documented(written, read):
    assert f"`{written}`" in sections("how-to/recipes.md")["YAML as it is read"]
    found = yaml12.load(written, where="recipes.md")
    assert (type(found), found) == (type(read), read)


def test_the_way_of_a_run_asks_the_hooks_in_the_order_of_the_lifecycle():
    rows = [line.split("|") for line in sections("architecture.md")["The way of a run"].splitlines() if "|" in line]
    asked = [hook for row in rows if len(row) == 5 for hook in re.findall(r"`(\w+)`", row[2])]
    assert asked == [hook for hook in LIFECYCLE if hook != "prepare"]


def test_plugins_of_the_plugin_page_execute():
    codes = [code for code in blocks("how-to/write-a-plugin.md", "python") if "@plugin" in code]
    assert len(codes) == 2
    for code in codes:
        namespace: dict[str, object] = {"__name__": "documented"}
        exec(compile(code, "write-a-plugin.md", "exec"), namespace)
        (made,) = [value for value in namespace.values() if is_plugin(value)]
        made()


def test_the_plugin_page_describes_a_package_whose_own_tests_pass(tmp_path):
    codes = blocks("how-to/write-a-plugin.md", "python")
    module, test = codes[0], next(code for code in codes if "def test_" in code)
    without_installation = test.partition("\n\ndef test_the_package_is_found")[0]
    (tmp_path / "sftcore_faq.py").write_text(module, encoding="utf-8")
    (tmp_path / "test_faq.py").write_text(without_installation, encoding="utf-8")
    pytest_here = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(pytest_here, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "16 passed" in done.stdout, done.stdout + done.stderr


def test_the_loss_of_the_losses_page_is_the_example_package():
    *_, code = blocks("how-to/losses.md", "python")
    package = ROOT / "examples" / "plugins" / "sftcore-focal" / "sftcore_focal.py"
    assert code == package.read_text(encoding="utf-8")


def test_the_weighted_loss_of_the_losses_page_weighs():
    code, _ = blocks("how-to/losses.md", "python")
    names = {"cross_entropy": torch.nn.functional.cross_entropy}
    exec(code, names)
    outputs = SimpleNamespace(logits=torch.zeros(1, 3, 4))
    found = names["loss"](outputs, torch.tensor([[-100, 1, 2]]), 1.5, torch.tensor([[9.0, 1.0, 0.5]]))
    assert found.item() == pytest.approx(math.log(4))


def test_the_attention_of_the_attention_page_is_refused_where_it_declares_nothing():
    (code,) = blocks("how-to/attention.md", "python")
    namespace: dict[str, object] = {"__name__": "documented"}
    exec(compile(code, "attention.md", "exec"), namespace)
    (made,) = [value for value in namespace.values() if is_plugin(value)]
    padded = Plan((), {"use_cpu": True}, flattened=False)
    said = [problem.what for problem in made().check(padded, Probe())]
    assert any("device cpu" in one for one in said)
    assert any("does not accept padding" in one for one in said)


def test_the_table_of_attentions_says_what_they_declare():
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text_of("how-to/attention.md").splitlines()]
    table = {row[0].split("`")[1]: row for row in rows if len(row) == 6 and row[0].startswith("`")}
    entries = [entry for entry in discover().of_kind("attention") if entry.distribution == "sftcore"]
    assert set(table) == {entry.name for entry in entries}
    for entry in entries:
        _, _, devices, dtypes, padded, _ = table[entry.name]
        backend = entry.load()().attention_backend(ModelRequest())
        assert (devices == "all") == (not backend.devices), entry.name
        assert (dtypes == "all") == (not backend.dtypes), entry.name
        assert padded.startswith("yes") == backend.padding, entry.name
        assert ("no backward" in devices) == (backend.backward is not True), entry.name


def test_the_page_of_the_core_is_one_script_that_runs():
    codes = blocks("explanation/the-core.md", "python")
    assert len(codes) >= 9
    namespace: dict[str, object] = {"__name__": "documented"}
    for code in codes:
        exec(compile(code, "the-core.md", "exec"), namespace)


# --- Links ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_internal_link_leads_somewhere(page):
    for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file(), f"{target} does not exist"
        assert not anchor or anchor in anchors(file), f"{target}: no such heading"


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES:
        assert f": {page.relative_to(DOCS).as_posix()}\n" in navigation


def test_what_the_page_on_testing_shows_of_classes_and_fixtures_is_there():
    import sftcore.testing

    page = text_of("how-to/test-a-plugin.md")
    named = set(re.findall(r"`(\w+Tests)`", page)) | set(
        re.findall(r"^\| `(\w+)` \| (?:a |its |discovery |`run)", page, re.M)
    )
    assert {"FormatTests", "NoiseTests", "tiny_model", "tiny_processor", "isolated_plugins", "run_recipe"} <= named
    assert named <= set(sftcore.testing.__all__)
    shown = re.search(r"class TestFAQ\(FormatTests\):\n(?:    .*\n)+", page)
    assert shown is not None
    assert len(shown[0].splitlines()) == 3
