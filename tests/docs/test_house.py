"""What contributors and users of a public repository look for is there, and says what the project does."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import sftcore
from sftcore.cli import _VERBS
from sftcore.core.deprecations import ARGUMENTS, HOOKS, NAMES
from sftcore.core.types import KINDS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEMPLATES = {path.stem: path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")}


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# --- Metadata -------------------------------------------------------------------------------------------------------
def test_version_is_the_same_wherever_it_stands():
    citation = yaml.safe_load(text_of("CITATION.cff"))
    assert PROJECT["version"] == sftcore.__version__ == citation["version"]
    assert citation["license"] == PROJECT["license"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


def test_the_changelog_has_a_section_for_what_comes_and_dates_for_what_came():
    heads = re.findall(r"^## (.*)$", text_of("CHANGELOG.md"), re.MULTILINE)
    assert heads[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", one) for one in heads[1:])
    parts = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", text_of("CHANGELOG.md"), re.MULTILINE)) <= parts
    for name in (*HOOKS, *ARGUMENTS, *NAMES):
        assert f"`{name}`" in text_of("CHANGELOG.md"), f"the deprecation of {name} is not in the changelog"


def test_the_changelog_names_every_verb_and_kind():
    for name in (*(f"`{verb}`" for verb in _VERBS), *KINDS):
        assert name in text_of("CHANGELOG.md"), name


def test_links_are_those_of_the_repository_that_builds(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    hook = importlib.import_module("hatch_build")
    links = hook.Links(str(ROOT), {})
    for variable in ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY"):
        monkeypatch.delenv(variable, raising=False)
    elsewhere: dict = {}
    links.update(elsewhere)
    assert elsewhere == {}
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://example.org")
    monkeypatch.setenv("GITHUB_REPOSITORY", "owner/fork")
    links.update(elsewhere)
    assert elsewhere["urls"]["Source"] == "https://example.org/owner/fork"
    assert {"Documentation", "Changelog", "Issues"} <= elsewhere["urls"].keys()
    assert "urls" in PROJECT["dynamic"]


# --- Extras ---------------------------------------------------------------------------------------------------------
def libraries(extra: str) -> set[str]:
    """The requirements of an extra, through those that it names of our own."""
    found = set()
    for requirement in map(Requirement, EXTRAS[extra]):
        own = requirement.extras if requirement.name == "sftcore" else ()
        found |= {one for name in own for one in libraries(name)} if own else {str(requirement)}
    return found


@pytest.mark.parametrize(
    ("typed", "ours"),
    [("flash-attn", "flash-2"), ("bitsandbytes", "qlora"), ("liger-kernel", "liger"), ("kernels", "hub")],
)
def test_an_extra_has_the_name_that_people_type_beside_ours(typed, ours):
    assert libraries(typed) == libraries(ours)
    assert {Requirement(one).name for one in libraries(typed)} == {typed}


def test_all_is_every_extra_of_a_plugin_but_those_that_do_not_install_beside_others():
    names = {Requirement(one).name for one in libraries("all")}
    alone = {"flash-attn", "flash-attn-3", "unsloth", "llmcompressor"}
    aliases = {"bitsandbytes", "cut-cross-entropy", "flash-attn", "kernels", "liger-kernel"}
    ours = set(EXTRAS) - {"all", "dev", "docs", "testing"} - aliases
    assert names == {Requirement(one).name for extra in ours for one in libraries(extra)} - alone


def test_every_extra_that_the_documentation_names_exists():
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    code = [*(ROOT / "sftcore").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]
    for page in (*pages, *code):
        for extras in re.findall(r"(?:sftcore|\"\.)\[([a-z0-9,-]+)\]", page.read_text(encoding="utf-8")):
            assert set(extras.split(",")) <= set(EXTRAS), f"{page.name}: [{extras}]"


# --- The repository's own automation --------------------------------------------------------------------------------
def steps(path: Path) -> list[dict]:
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
    return [step for job in jobs for step in job["steps"]]


def test_the_workflows_are_tests_docs_and_a_release():
    assert [path.stem for path in WORKFLOWS] == ["docs", "release", "tests"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_do_no_more_than_it_says_and_calls_scripts_that_exist(path):
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    for step in steps(path):
        assert ("run" in step) != ("uses" in step)
        assert "@" in step.get("uses", "@")
        for script in re.findall(r"(?<![\w./])scripts/[\w-]+", step.get("run", "")):
            assert (ROOT / script).stat().st_mode & 0o100, script


def test_tests_run_with_every_python_that_the_metadata_promise_and_both_sets_of_libraries():
    matrix = yaml.safe_load(text_of(".github/workflows/tests.yml"))["jobs"]["tests"]["strategy"]["matrix"]
    promised = [one.rpartition(" ")[2] for one in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", one)]
    assert matrix["python"] == promised == ["3.10", "3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == f">={promised[0]},<3.{Version(promised[-1]).minor + 1}"
    assert matrix["libraries"] == ["newest", "older"]
    # the older set is the one that .ci/run tests too
    (older,) = set(re.findall(r"transformers==\S+?\\ndatasets<\d+", text_of(".github/workflows/tests.yml")))
    assert older in text_of(".ci/run")


def test_a_release_is_published_by_trusted_publishing():
    jobs = yaml.safe_load(text_of(".github/workflows/release.yml"))["jobs"]
    (publish,) = [job for job in jobs.values() if job.get("permissions", {}).get("id-token") == "write"]
    assert "environment" in publish
    assert all(not {"password", "user"} & step.get("with", {}).keys() for step in publish["steps"])
    assert "secrets." not in text_of(".github/workflows/release.yml")


def test_pre_commit_runs_what_scripts_check_runs():
    (local,) = yaml.safe_load(text_of(".pre-commit-config.yaml"))["repos"]
    entries = {hook["id"]: hook for hook in local["hooks"]}
    assert entries["check"]["entry"] == "scripts/check"
    assert entries["check"]["stages"] == ["pre-push"]
    quick = " ".join(hook["entry"] for hook in local["hooks"])
    for command in ("ruff check", "ruff format", "scripts/gen_reference.py --check", "--no-cache --no-logo"):
        assert command in quick
        assert command in text_of("scripts/check")


# --- What people read before they write ------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["bug", "plugin"])
def test_a_report_asks_for_the_list_of_plugins(name):
    form = yaml.safe_load(TEMPLATES[name].read_text(encoding="utf-8"))
    asked = {one["id"]: one["attributes"].get("description", "") for one in form["body"] if "id" in one}
    assert "`sftcore list-plugins --details`" in asked["plugins"]


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_a_template_names_commands_that_exist(name):
    for verb in re.findall(r"`sftcore ([a-z-]+)", TEMPLATES[name].read_text(encoding="utf-8")):
        assert verb in _VERBS or verb == "--version"


def test_contributing_covers_set_up_tests_the_tour_and_what_to_add():
    text = text_of("CONTRIBUTING.md")
    heads = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert {"Set up", "Test", "A tour of the house", "Add a plugin", "Add a hook", "Add a kind"} <= set(heads)
    for path in re.findall(r"`((?:sftcore|plugins|tests|examples|scripts|docs|\.ci)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text + text_of("CHANGELOG.md")):
        assert (ROOT / target).exists(), target
