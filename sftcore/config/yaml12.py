"""YAML as recipes use it: safe, with the scalars of YAML 1.2, and no key twice.

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
_UNWRITABLE = re.compile("[\\x00\\ud800-\\udfff]")


class BoundedLoader(yaml.SafeLoader):
    """SafeLoader which looks at texts and sizes before any value is made."""

    num_values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> Any:
        before, is_alias = self.num_values, self.check_event(yaml.AliasEvent)
        node: Any = super().compose_node(parent, index)
        # an alias to what is not finished stands inside of it: without end
        self.num_values += getattr(node, "num_values", MOST_VALUES) if is_alias else 1
        node.num_values = self.num_values - before
        if self.num_values > MOST_VALUES:
            raise _fault(node, f"with its aliases written out this has over {MOST_VALUES:,} values, or no end")
        if isinstance(node, yaml.ScalarNode) and _UNWRITABLE.search(node.value):
            raise _fault(node, "a null character or half of a surrogate pair cannot stand in a name or a file")
        if isinstance(node, yaml.MappingNode) and not is_alias:
            self.look_at_keys(node)
        return node

    def look_at_keys(self, node: yaml.MappingNode) -> None:
        """Refuse keys that are no texts."""
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _fault(key, "a key is a list or a mapping")


class _Loader(BoundedLoader):
    """A loader with other scalars, which takes no key twice."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - as PyYAML declares it; filled below

    def look_at_keys(self, node: yaml.MappingNode) -> None:
        super().look_at_keys(node)
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise _fault(key, f'the key "{key.value}" stands twice')
            seen.add(key.value)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        if len(text) > 100:
            raise _fault(node, "the number is too long")
        return int(text, 0 if text[:2] in ("0o", "0x") else 10)


def _fault(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
for _tag, _first, _pattern in (
    ("null", ["", "~", "n", "N"], r"~|null|Null|NULL|"),
    ("bool", list("tTfF"), r"true|True|TRUE|false|False|FALSE"),
    ("int", list("-+0123456789"), r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    ("float", list("-+.0123456789"), r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"),
    ("float", list("-+."), r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"),
    ("merge", ["<"], r"<<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def load(text: str, *, where: str) -> Any:
    """Parse one document.

    Raises:
        RecipeError: it is not YAML, has a tag that could run code, a key twice, or aliases that make much of little;
            with line and column.

    >>> load("{eval_strategy: no, learning_rate: 1e-4, bf16: true}", where="recipe")
    {'eval_strategy': 'no', 'learning_rate': 0.0001, 'bf16': True}
    """
    if len(text) > LARGEST:
        raise RecipeError(f"a recipe has up to {LARGEST:,} characters, and this has {len(text):,}.", where=where)
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise RecipeError("the YAML is nested too deeply.", where=where, fix="Mend it.") from None
    # PyYAML's constructors raise the others, of what is tagged as a number or a date and is not one
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where} line {mark.line + 1}, column {mark.column + 1}" if mark else where
        what = getattr(error, "problem", None) or f"this is not YAML: {error}"
        raise RecipeError(f"{what}.", where=place, fix="Mend the YAML there.") from None
