"""The rules of the layout that import-linter's contracts (in pyproject.toml) cannot express."""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
import sftcore_plugins

import sftcore

ROOTS = {"sftcore": Path(sftcore.__file__).parent, "sftcore_plugins": Path(sftcore_plugins.__file__).parent}
FOLDERS = {
    folder.relative_to(root.parent).as_posix(): folder
    for root in ROOTS.values()
    for folder in sorted({path.parent for path in root.rglob("*.py")})
}
HEAVY = {"torch", "transformers", "datasets", "peft", "accelerate"}
LIGHT = ("sftcore.core", "sftcore.util", "sftcore.config", "sftcore.data.source", "sftcore.check")
"""Folders that work before anything heavy is imported."""
OPTIONS_LIBRARY = "cattrs"
CORE_MAY_IMPORT = {"sftcore", "attrs", "pluggy", "packaging", "typing_extensions", *sys.stdlib_module_names}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def statements(tree: ast.AST, *, when_imported: bool) -> Iterator[ast.AST]:
    """Every node below this one; with `when_imported`, only what runs when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if when_imported and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if when_imported and is_type_checking(node):
            yield from (inner for part in node.orelse for inner in statements(part, when_imported=True))
            continue
        yield node
        yield from statements(node, when_imported=when_imported)


@functools.cache
def modules() -> dict[str, Path]:
    found = {}
    for package, root in ROOTS.items():
        for path in root.rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


@functools.cache
def imports(module: str, *, when_imported: bool = False) -> frozenset[str]:
    """What the module imports, by full name: modules of ours as such, of other libraries whatever is named."""
    path = modules()[module]
    found = set()
    for node in statements(ast.parse(path.read_text(encoding="utf-8")), when_imported=when_imported):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                folder = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
                folder = folder[: len(folder) - node.level + 1]
                base = ".".join((*folder, base)) if base else ".".join(folder)
            inside = {f"{base}.{alias.name}" for alias in node.names} & set(modules())
            found.update(inside if len(inside) == len(node.names) else {base, *inside})
    return frozenset(found)


def circles(graph: dict[str, list[str]]) -> list[list[str]]:
    """The strongly connected components with more than one module: Tarjan's algorithm."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        order[node] = lowest[node] = len(order)
        stack.append(node)
        for following in graph[node]:
            if following not in order:
                visit(following)
                lowest[node] = min(lowest[node], lowest[following])
            elif following in stack:
                lowest[node] = min(lowest[node], order[following])
        if lowest[node] == order[node]:
            start = stack.index(node)
            component = sorted(stack[start:])
            del stack[start:]
            if len(component) > 1 or node in graph[node]:
                found.append(component)

    for node in graph:
        if node not in order:
            visit(node)
    return found


def in_folders(module: str, folders: tuple[str, ...]) -> bool:
    return any(module == folder or module.startswith(f"{folder}.") for folder in folders)


def light_modules() -> list[str]:
    return [name for name in sorted(modules()) if in_folders(name, LIGHT) and name != "sftcore.config.sft_config"]


def test_circles_finds_a_circle_and_nothing_else():
    graph = {"a": ["b"], "b": ["c", "d"], "c": ["a"], "d": ["e"], "e": [], "f": ["f"]}

    assert circles(graph) == [["a", "b", "c"], ["f"]]


def test_root_of_sftcore_holds_three_files():
    files = {path.name for path in ROOTS["sftcore"].iterdir() if path.is_file()}

    assert files == {"__init__.py", "__main__.py", "py.typed"}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_has_at_most_14_modules(name):
    found = sorted(path.stem for path in FOLDERS[name].glob("*.py") if path.stem != "__init__")

    assert len(found) <= 14, f"{name} has {len(found)} modules; split it: {', '.join(found)}"


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_says_in_one_sentence_what_lives_there(name):
    docstring = ast.get_docstring(ast.parse((FOLDERS[name] / "__init__.py").read_text(encoding="utf-8"))) or ""
    sentence = " ".join(docstring.split("\n\n")[0].split())

    assert sentence.endswith("."), f"{name}/__init__.py needs a docstring of one sentence"
    assert ". " not in sentence, f"the docstring of {name}/__init__.py has more than one sentence: {sentence}"


def test_no_circle_among_modules():
    # The package root names everything for `from sftcore import X`, but reads it on first use or for type checkers only
    ours = {name for name in modules() if name not in ROOTS}
    graph = {name: sorted(imports(name) & ours) for name in sorted(ours)}

    assert circles(graph) == []


@pytest.mark.parametrize("module", light_modules())
def test_a_light_module_imports_nothing_heavy_when_imported(module):
    waiting = [[module]]
    seen = set()
    while waiting:
        path = waiting.pop()
        for imported in sorted(imports(path[-1], when_imported=True)):
            assert imported.split(".")[0] not in HEAVY, f"{' -> '.join(path)} imports {imported} at module level"
            if imported in modules() and imported not in seen:
                seen.add(imported)
                waiting.append([*path, imported])


def test_core_imports_few_libraries():
    for module in (name for name in modules() if in_folders(name, ("sftcore.core",))):
        may = CORE_MAY_IMPORT | ({OPTIONS_LIBRARY} if module == "sftcore.core.options" else set())
        tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
        for_types = [node for part in tree.body if is_type_checking(part) for node in ast.walk(part)]
        # torch types annotate what crosses the hooks; nothing else may be named even there
        named = {alias.name for node in for_types if isinstance(node, ast.Import) for alias in node.names}
        found = {name.split(".")[0] for name in imports(module)} - ({"torch"} & named)

        assert found <= may, f"{module} imports {', '.join(sorted(found - may))}"


def test_core_can_be_read_in_an_hour():
    lines = sum(
        len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOTS["sftcore"] / "core").rglob("*.py")
    )

    assert lines < 1950


def test_a_plugin_imports_others_only_through_private_modules_of_its_folder():
    wrong = [
        f"{module} imports {imported}"
        for module in sorted(modules())
        for imported in sorted(imports(module))
        if module.startswith("sftcore_plugins.") and imported.startswith("sftcore_plugins.")
        if not imported.startswith(f"{module.rpartition('.')[0]}._")
    ]

    assert wrong == []


def test_each_public_plugin_module_is_one_plugin():
    points = [point for point in distribution("sftcore").entry_points if point.value.startswith("sftcore_plugins.")]
    files = [
        name
        for name, path in modules().items()
        if name.startswith("sftcore_plugins.") and not path.name.startswith("_")
    ]

    assert sorted(point.value.split(":")[0] for point in points) == sorted(files)
