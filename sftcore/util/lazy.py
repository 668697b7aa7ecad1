"""Public names of a package that are imported on first use."""

from __future__ import annotations

import ast
import importlib
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def lazy_names(
    package: str, gone: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package that imports its names under TYPE_CHECKING alone.

    Which module each name is from is read from these imports in the package's own source. `gone` holds names that
    scripts may still import, with what to write instead.
    """
    module = sys.modules[package]
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    module_of = {
        alias.name: str(node.module)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    def get(name: str) -> Any:
        if gone and name in gone:
            # an AttributeError would become an ImportError that says nothing but the name
            raise ImportError(f"{package} has no {name}. {gone[name]}", name=name)
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(module_of[name]), name)
        if not _warns(f"{package}.{name}"):
            setattr(module, name, value)
        return value

    return get, lambda: sorted({*vars(module), *module_of})


def _warns(name: str) -> bool:
    """Whether a public name is deprecated; if so, the line that asked for it is told."""
    from sftcore.core.deprecations import NAMES

    if name in NAMES:
        warnings.warn(NAMES[name].warning(name), stacklevel=3)
    return name in NAMES
