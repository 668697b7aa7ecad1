"""What plugins build on is written down name by name: whoever changes it has to change public_surface.txt.

`python -m tests.core.test_public_surface` writes that file. docs/explanation/versions.md says what may change in it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import attrs

import sftcore
import sftcore.plugin_api
import sftcore.rows
from sftcore.core import types
from sftcore.core.discovery import discover
from sftcore.core.hookspecs import BY_ITSELF, LIFECYCLE, ONE_ANSWER, Hooks
from sftcore.core.plugin_class import options
from sftcore.core.types import KINDS, SLOTS

WRITTEN = Path(__file__).with_name("public_surface.txt")


def surface() -> list[str]:
    return [
        *(f"kind {kind}" for kind in KINDS),
        *(f"slot {slot}" for slot in SLOTS),
        *map(hook, LIFECYCLE),
        *values(),
        *(f"sftcore.{name}" for name in sorted(sftcore.__all__)),
        *functions(sftcore.rows, [name for name, one in vars(sftcore.rows).items() if own(one)]),
        *functions(sftcore.plugin_api, sftcore.plugin_api.__all__),
        *built_ins(),
    ]


def hook(name: str) -> str:
    asked = "one" if name in ONE_ANSWER else "by itself" if name in BY_ITSELF else "all"
    return f"hook {name}{plain(getattr(Hooks, name))}, asked: {asked}"


def values() -> Iterator[str]:
    for name in sorted(sftcore.__all__):
        made = getattr(types, name, None)
        if attrs.has(made):
            for field in attrs.fields(made):
                needed = "required" if field.default is attrs.NOTHING else "optional"
                yield f"value {name}.{field.name}: {field.type}, {needed}"


def own(one: object) -> bool:
    return inspect.isfunction(one) and one.__module__.startswith("sftcore.rows") and not one.__name__.startswith("_")


def functions(module: ModuleType, names: list[str]) -> Iterator[str]:
    for name in sorted(names):
        one = getattr(module, name)
        yield f"{module.__name__}.{name}{plain(one) if inspect.isfunction(one) else ''}"


def built_ins() -> Iterator[str]:
    for entry in discover().entries:
        if entry.distribution == "sftcore":
            yield f"plugin {entry.kind}:{entry.name}({', '.join(option.name for option in options(entry.load()))})"


def plain(function: object) -> str:
    signature = inspect.signature(function)  # type: ignore[arg-type]
    shown = [one for one in signature.parameters.values() if one.name != "self"]
    return str(signature.replace(parameters=shown)).replace("'", "")


def test_what_plugins_build_on_is_what_is_written_down():
    written, found = WRITTEN.read_text(encoding="utf-8").splitlines(), surface()
    gone, new = [one for one in written if one not in found], [one for one in found if one not in written]

    assert not gone, f"gone or changed, which breaks plugins (docs/explanation/versions.md): {gone}; now: {new}"
    assert not new, f"new, and promised from now on: add to {WRITTEN.name}: {new}"
    assert written == found, "in another order than the code's"


if __name__ == "__main__":
    WRITTEN.write_text("".join(f"{line}\n" for line in surface()), encoding="utf-8")
