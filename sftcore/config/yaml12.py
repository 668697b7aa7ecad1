"""YAML as recipes use it: safe, booleans and numbers as in YAML 1.2, and no key twice.

PyYAML reads YAML 1.1, where `eval_strategy: no` is False, `learning_rate: 1e-4` a text and `seed: 010` eight.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from sftcore.core.errors import RecipeError

LARGEST = 2**18
"""Characters of a recipe."""
MOST_VALUES = 100_000
"""Values of a recipe, each alias counted as what it stands for."""
_LONGEST_NUMBER = 100
_OF_CONSTRUCTORS = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError)
"""What PyYAML's constructors raise, of what looks like a date and is none."""
_UNWRITABLE = re.compile("[\\x00\\ud800-\\udfff]")


class _Loader(yaml.SafeLoader):
    """SafeLoader with the core schema of YAML 1.2 for booleans and numbers, which refuses duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is a list or a mapping", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f'the key "{key.value}" stands twice', problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        if len(text) > _LONGEST_NUMBER:
            raise yaml.MarkedYAMLError(problem="the number is too long", problem_mark=node.start_mark)
        try:
            return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        except ValueError:
            raise yaml.MarkedYAMLError(problem="this is no number", problem_mark=node.start_mark) from None


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def _resolver(tag: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in found if not tag.endswith((":bool", ":float", ":int", ":timestamp"))]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_resolver("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF")
_resolver("int", r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", "-+0123456789")
_resolver(
    "float",
    r"^(?:[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9]+)[eE][-+]?[0-9]+|[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
    "-+.0123456789",
)


def load(text: str, *, where: str) -> Any:
    """Parse one document.

    Raises:
        RecipeError: it is no YAML, has a tag that could run code, a key twice, or aliases that make much of little;
            with line and column.

    >>> load("{eval_strategy: no, learning_rate: 1e-4, bf16: true}", where="recipe")
    {'eval_strategy': 'no', 'learning_rate': 0.0001, 'bf16': True}
    """
    if len(text) > LARGEST:
        raise RecipeError(f"{len(text):,} characters are no recipe; up to {LARGEST:,} are read.", where=where)
    try:
        _count(yaml.compose(text, Loader=_Loader))
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{where} line {mark.line + 1}, column {mark.column + 1}" if mark else where
        raise RecipeError(f"{error.problem or error}.", where=place, fix="Mend the YAML there.") from None
    except RecursionError:
        raise RecipeError("the YAML is nested too deeply.", where=where, fix="Mend it.") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"this is no YAML: {error}.", where=where) from None
    except _OF_CONSTRUCTORS as error:
        raise RecipeError(f"this is no YAML: {error}.", where=where) from None


def _count(node: yaml.Node | None) -> int:
    """How many values a document has once its aliases are written out.

    Raises:
        yaml.MarkedYAMLError: too many, or an alias that contains itself.
    """
    sizes: dict[int, int | None] = {}

    def size(one: yaml.Node) -> int:
        if isinstance(one, yaml.ScalarNode):
            if _UNWRITABLE.search(one.value):
                problem = "a null character, or half of one, is in no name and in no file"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=one.start_mark)
            return 1
        known = sizes.get(id(one), 0)
        if known is None:
            raise yaml.MarkedYAMLError(problem="an alias contains itself", problem_mark=one.start_mark)
        if not known:
            sizes[id(one)] = None
            inside = one.value if isinstance(one, yaml.SequenceNode) else [part for pair in one.value for part in pair]
            known = sizes[id(one)] = 1 + sum(map(size, inside))
        if known > MOST_VALUES:
            problem = f"with its aliases written out this has over {MOST_VALUES:,} values"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=one.start_mark)
        return known

    return size(node) if node is not None else 0
