"""What the installed libraries declare, read from their source with `ast`.

Importing transformers takes seconds, and a recipe must be checked before that. What is read here is compared with the
real classes by tests, and cannot drift from the installed version.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union

from sftcore.core.errors import RecipeError

_SIMPLE: dict[str, Any] = {
    "str": str, "int": int, "float": float, "bool": bool, "dict": dict, "list": list, "None": None, "Any": Any,
}  # fmt: skip

_ENUMS = ("transformers.training_args", "transformers.trainer_utils", "transformers.debug_utils")
"""Modules that define the enumerations in the annotations of TrainingArguments."""


def source(module: str) -> str:
    """The source of a module of an installed library, which is not imported.

    Raises:
        RecipeError: the library is not installed.
    """
    package, _, rest = module.partition(".")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise RecipeError(f"{package} is not installed.", fix=f"Install: pip install {package}")
    folder = Path(next(iter(spec.submodule_search_locations)))
    return folder.joinpath(*rest.split(".")).with_suffix(".py").read_text(encoding="utf-8")


def fields_of(text: str, class_name: str) -> Mapping[str, ast.AnnAssign]:
    """The annotated fields of a class in this source."""
    found = _statement(text, f"class {class_name}")
    assert isinstance(found, ast.ClassDef)
    return {
        node.target.id: node
        for node in found.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and "ClassVar" not in ast.unparse(node.annotation)
    }


@functools.cache
def declared_fields(module: str, class_name: str) -> tuple[str, ...]:
    """The names of the fields that a dataclass of an installed library declares itself, without importing it."""
    found = fields_of(source(module), class_name)
    return tuple(name for name, node in found.items() if "init=False" not in ast.unparse(node))


@functools.cache
def training_arguments() -> Mapping[str, ast.AnnAssign]:
    """The fields of the installed `transformers.TrainingArguments`."""
    return fields_of(source("transformers.training_args"), "TrainingArguments")


@functools.cache
def choices(field: str) -> tuple[str, ...]:
    """The values that TrainingArguments declares for a field; none where it does not."""
    node = training_arguments().get(field)
    if node is None:
        return ()
    for name in _names_in(node.annotation):
        if name not in _SIMPLE and (values := enum_values(name)):
            return values
    for key, value in _metadata(node):
        if key != "choices":
            continue
        if isinstance(value, (ast.List, ast.Tuple)):
            return tuple(ast.literal_eval(value))
        return (*_keys("transformers.utils.logging", "log_levels"), "passive")  # the one set that is computed
    return ()


@functools.cache
def enum_values(name: str, *modules: str) -> tuple[str, ...]:
    """The values of an enumeration of these modules, or of those that TrainingArguments uses."""
    for module in modules or _ENUMS:
        found = _statement(source(module), f"class {name}")
        if isinstance(found, ast.ClassDef):
            values = [node.value for node in found.body if isinstance(node, ast.Assign)]
            return tuple(str(value.value) for value in values if isinstance(value, ast.Constant))
    return ()


@functools.cache
def trackers() -> tuple[str, ...]:
    """The names that `report_to` knows."""
    return _keys("transformers.integrations.integration_utils", "INTEGRATION_TO_CALLBACK")


@functools.cache
def schedule_arguments(name: str) -> Mapping[str, bool] | None:
    """Arguments of a schedule that `lr_scheduler_kwargs` gives it, and whether it needs them; None: any.

    The optimizer, the numbers of steps and `last_epoch` come from the trainer.
    """
    text = source("transformers.optimization")
    table = _statement(text, "TYPE_TO_SCHEDULER_FUNCTION")
    members = _statement(source("transformers.trainer_utils"), "class SchedulerType")
    assert isinstance(table, ast.Assign)
    assert isinstance(table.value, ast.Dict)
    assert isinstance(members, ast.ClassDef)
    member = next(
        ast.unparse(node.targets[0])
        for node in members.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and node.value.value == name
    )
    pairs = zip(table.value.keys, table.value.values, strict=True)
    function = next(ast.unparse(made) for key, made in pairs if key and ast.unparse(key).endswith(f".{member}"))
    found = _statement(text, f"def {function}")
    assert isinstance(found, ast.FunctionDef)
    if found.args.kwarg:
        return None
    named = [one.arg for one in found.args.args]
    optional = set(named[len(named) - len(found.args.defaults) :])
    own = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
    return {one: one not in optional for one in named if one not in own}


@functools.cache
def preparation_arguments() -> tuple[str, ...]:
    """What `prepare_in_int8_kwargs` takes: PEFT's `prepare_model_for_kbit_training`, and names of norms."""
    found = _statement(source("peft.utils.other"), "def prepare_model_for_kbit_training")
    assert isinstance(found, ast.FunctionDef)
    return (*(one.arg for one in found.args.args if one.arg != "model"), "layer_norm_names")


@functools.cache
def checkpointing_arguments() -> tuple[str, ...]:
    """What `torch.utils.checkpoint.checkpoint` takes by name; `preserve_rng_state` is not in every signature."""
    found = _statement(source("torch.utils.checkpoint"), "def checkpoint")
    assert isinstance(found, ast.FunctionDef)
    return tuple(dict.fromkeys([*(one.arg for one in found.args.kwonlyargs), "preserve_rng_state"]))


def type_of(annotation: ast.expr) -> Any:
    """The annotation as a type; other classes than the simple ones are left out of unions."""
    if isinstance(annotation, ast.Constant) and annotation.value is None:
        return None.__class__
    if isinstance(annotation, ast.Name):
        return _SIMPLE.get(annotation.id)
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        types = [found for found in map(type_of, (annotation.left, annotation.right)) if found is not None]
        # where only None is left, the real type is a class and cannot be checked
        return None if types in ([], [None.__class__]) else Union[tuple(types)]  # noqa: UP007 - known at run time alone
    if isinstance(annotation, ast.Subscript):
        outer = ast.unparse(annotation.value).rpartition(".")[2]
        if outer == "Literal":
            return Literal[ast.literal_eval(annotation.slice)]
        found, inner = _SIMPLE.get(outer), type_of(annotation.slice)
        return list[inner] if found is list and inner is not None else found  # type: ignore[valid-type]
    return None


def _statement(text: str, head: str) -> ast.stmt | None:
    """The statement at the top level of this source that begins with these words; parsing all of it takes long."""
    found = re.search(rf"^{re.escape(head)}\b.*?(?=^[^\s)\]}}#]|\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        return None
    try:
        return ast.parse(found.group()).body[0]
    except SyntaxError:  # a line of text inside it begins at the margin
        start = text.count("\n", 0, found.start()) + 1
        return next(node for node in ast.parse(text).body if node.lineno == start)


def _keys(module: str, name: str) -> tuple[str, ...]:
    found = _statement(source(module), name)
    assert isinstance(found, ast.Assign)
    assert isinstance(found.value, ast.Dict)
    return tuple(key.value for key in found.value.keys if isinstance(key, ast.Constant) and isinstance(key.value, str))


def _names_in(annotation: ast.expr) -> Iterator[str]:
    yield from (node.id for node in ast.walk(annotation) if isinstance(node, ast.Name))


def _metadata(node: ast.AnnAssign) -> Iterator[tuple[str, ast.expr]]:
    """The entries of a field's metadata."""
    for word in node.value.keywords if isinstance(node.value, ast.Call) else ():
        if word.arg == "metadata" and isinstance(word.value, ast.Dict):
            for key, value in zip(word.value.keys, word.value.values, strict=True):
                if isinstance(key, ast.Constant):
                    yield str(key.value), value
