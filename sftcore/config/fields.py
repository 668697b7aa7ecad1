"""Reads names and types of the configuration's fields from source code with `ast`.

Importing `TrainingArguments` takes seconds, and a recipe must be checked before that. The installed source is read
instead, and a test compares the result with the real class.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union

from sftcore.config.near_names import meant
from sftcore.core.errors import ConflictError, OptionTypeError, RecipeError, UnknownKeyError

_SIMPLE: dict[str, Any] = {
    "str": str, "int": int, "float": float, "bool": bool, "dict": dict, "list": list, "None": None, "Any": Any,
}  # fmt: skip


RENAMED = {"max_seq_length": "max_length"}
"""Older names of fields that are still in use: they work, and a warning gives the new name."""


DECLARED_OTHERWISE: dict[str, Any] = {"fsdp": bool | str | None, "callbacks": dict | list | str | None}
"""Types of fields that are declared for the command line of scripts (transformers 5.17, 5.24, and ours)."""


def use_current_names(settings: dict[str, Any], *, where: str) -> None:
    """Give fields that stand under an older name their current one, with a warning.

    Raises:
        ConflictError: a field stands under both names.
    """
    for old, new in RENAMED.items():
        if old in settings:
            if new in settings:
                raise ConflictError(f"{old} and {new} are the same setting.", where=where, fix=f"Keep {new}.")
            warnings.warn(f"{where}: {old} is now {new}.", FutureWarning, stacklevel=3)
            settings[new] = settings.pop(old)


@functools.cache
def config_fields() -> Mapping[str, Any]:
    """The type of each field of SFTConfig: its own and those of the installed `transformers.TrainingArguments`.

    It is None where plain values cannot represent the class, and is then not checked.
    """
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        raise RecipeError("transformers is not installed.", fix="Install: pip install transformers")
    inherited = Path(next(iter(spec.submodule_search_locations)), "training_args.py")
    own = Path(__file__).with_name("sft_config.py")
    return {**_types_of(inherited, "TrainingArguments"), **_types_of(own, "SFTConfig")}


def check_fields(values: Mapping[str, Any], *, where: str, also: tuple[str, ...] = ()) -> None:
    """Refuse unknown fields and values of the wrong type.

    Raises:
        UnknownKeyError: there is no such field; the nearest of the fields and of `also` is suggested.
        OptionTypeError: a value has the wrong type.
    """
    from sftcore.core.options import structure, type_name

    known = config_fields()
    for key, value in values.items():
        if key not in known:
            raise UnknownKeyError(key, (*known, *also), where=where, meant=meant(key, (*known, *also)) or None)
        if (wanted := known[key]) is None:
            continue
        try:
            structure(value, wanted, path=f"{where}.{key}")
        except OptionTypeError:
            raise OptionTypeError(
                f"{key} takes {type_name(wanted)}, got {type(value).__name__} {value!r}.", where=where
            ) from None


def _types_of(source: Path, class_name: str) -> dict[str, Any]:
    tree = ast.parse(source.read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name)
    annotations = {
        node.target.id: node.annotation
        for node in body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    return {
        name: DECLARED_OTHERWISE.get(name, _type_of(annotation))
        for name, annotation in annotations.items()
        if "ClassVar" not in ast.unparse(annotation)
    }


def _type_of(annotation: ast.expr) -> Any:
    """The annotation as a type; other classes than the simple ones are left out of unions."""
    if isinstance(annotation, ast.Constant) and annotation.value is None:
        return None.__class__
    if isinstance(annotation, ast.Name):
        return _SIMPLE.get(annotation.id)
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        types = [found for found in map(_type_of, (annotation.left, annotation.right)) if found is not None]
        # where only None is left, the real type is a class and cannot be checked
        return None if types in ([], [None.__class__]) else Union[tuple(types)]  # noqa: UP007 - known at run time alone
    if isinstance(annotation, ast.Subscript):
        outer = ast.unparse(annotation.value).rpartition(".")[2]
        if outer == "Literal":
            return Literal[ast.literal_eval(annotation.slice)]
        return _SIMPLE.get(outer)
    return None
