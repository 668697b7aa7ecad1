"""The page of the values that cross the hooks, from the source of `sftcore.core.types`."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator

import attrs

from sftcore.core import types
from sftcore.core.hookspecs import LIFECYCLE, Hooks


def page() -> str:
    """The page below its title."""
    return "\n\n".join(
        [
            "What the [hooks](hooks.md) are given and what they answer, and what these values hold. Import them from "
            "`sftcore`; none needs torch to be imported. They are frozen: `attrs.evolve(value, field=…)` makes a "
            "changed copy. Give fields by keyword, since a later version may add some.",
            *map(_value, VALUES),
        ]
    )


def crossing_values() -> tuple[str, ...]:
    """Names of `sftcore.core.types` that hooks take or answer, and those inside them, in the order of the source."""
    found: set[str] = set()
    waiting = [str(inspect.signature(getattr(Hooks, hook))) for hook in LIFECYCLE]
    while waiting:
        for name in _named_in(waiting.pop()) & DEFINED.keys() - found:
            found.add(name)
            waiting.append(_parts(DEFINED[name]))
    return tuple(name for name in DEFINED if name in found)


def _value(name: str) -> str:
    node, hooks = DEFINED[name], [(hook, inspect.signature(getattr(Hooks, hook))) for hook in LIFECYCLE]
    given = [
        hook for hook, call in hooks if any(name in _named_in(str(p.annotation)) for p in call.parameters.values())
    ]
    answers = [hook for hook, call in hooks if name in _named_in(str(call.return_annotation))]
    inside = [other for other in VALUES if other != name and name in _named_in(_parts(DEFINED[other]))]
    places = [
        f"{said} {', '.join(links)}."
        for said, links in (
            ("Given to", [f"[{hook}](hooks.md#{hook})" for hook in given]),
            ("Answer of", [f"[{hook}](hooks.md#{hook})" for hook in answers]),
            ("In", [_linked(other) for other in inside]),
        )
        if links
    ]
    return "\n\n".join(filter(None, [f"## {name}", " ".join(places), *_described(node, name)]))


def _described(node: ast.stmt, name: str) -> Iterator[str]:
    """A class's docstring with its fields or methods, or what a name is short for."""
    if not isinstance(node, ast.ClassDef):
        assert isinstance(node, ast.AnnAssign)
        assert node.value is not None
        yield f"`{name} = {ast.unparse(ast.parse(_unquoted(node.value)))}`"
        return
    yield ast.get_docstring(node) or ""
    if attrs.has(made := getattr(types, name)):
        rows = [
            f"| `{field.name}` | {in_table(str(field.type))} | {_default_text(field)} |" for field in attrs.fields(made)
        ]
        yield "\n".join(["| field | type | default |", "|---|---|---|", *rows])
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and not (method.name.startswith("_") and method.name != "__call__"):
            returns = ast.unparse(method.returns) if method.returns else "None"
            arguments = f"({ast.unparse(method.args).removeprefix('self').lstrip(', ')}) -> {returns}"
            yield f"`{method.name}{f': {returns}' if method.decorator_list else arguments}`"
            yield ast.get_docstring(method) or ""


def _default_text(field: attrs.Attribute[object]) -> str:
    if field.default is attrs.NOTHING:
        return "required"
    if isinstance(field.default, attrs.Factory):  # type: ignore[arg-type]
        return "`{}`" if field.default.factory is dict else f"`{field.default.factory.__name__}()`"
    return f"`{field.default!r}`"


def _definitions() -> dict[str, ast.stmt]:
    found: dict[str, ast.stmt] = {}
    for node in ast.parse(inspect.getsource(types)).body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias":
            found[ast.unparse(node.target)] = node
    return found


def _parts(node: ast.stmt) -> str:
    """The annotations inside a class, or what an alias is short for, as text."""
    if isinstance(node, ast.AnnAssign) and node.value is not None:
        return _unquoted(node.value)
    inside = [part for part in ast.walk(node) if isinstance(part, (ast.AnnAssign, ast.arg, ast.FunctionDef))]
    notes = [part.returns if isinstance(part, ast.FunctionDef) else part.annotation for part in inside]
    return " ".join(ast.unparse(note) for note in notes if note is not None)


def _unquoted(node: ast.expr) -> str:
    return ast.unparse(node).replace("'", "")


def _named_in(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


def links(text: str) -> str:
    """Links to the values that a text names, such as a hook's signature."""
    return ", ".join(_linked(value) for value in VALUES if value in _named_in(text))


def _linked(value: str) -> str:
    return f"[{value}](values.md#{value.lower()})"


def in_table(text: str) -> str:
    """A type as it stands in a table, where its bars would end the cell."""
    return " or ".join(f"`{part}`" for part in text.split(" | "))


DEFINED = _definitions()
"""Classes and aliases of `sftcore.core.types`, by name."""

VALUES = crossing_values()
"""Those that cross a hook."""
