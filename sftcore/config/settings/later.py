"""Fields that are set once a configuration has been made: they count as if they had been given to its constructor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from attrs import field, frozen

from sftcore.config.near_names import offer


@frozen
class Made:
    """A configuration as its constructor left it: each field, and those that the constructor gave another value.

    `attributes` are all that it had beside its fields.
    """

    fields: Mapping[str, Any] = field(repr=False)
    derived: Mapping[str, tuple[Any, Any]] = field(repr=False)
    attributes: frozenset[str] = frozenset()

    @classmethod
    def of(cls, given: Mapping[str, Any], config: Any) -> Made:
        """What the constructor made of what it was given."""
        made = {name: _kept(getattr(config, name)) for name in given}
        return cls(
            made,
            {
                name: (given[name], value)
                for name, value in made.items()
                if value is not given[name] and not isinstance(value, (dict, list))
            },
            frozenset(vars(config)),
        )

    def changed(self, config: Any) -> list[str]:
        """The fields that have another value by now."""
        return [name for name, value in self.fields.items() if _differ(getattr(config, name), value)]

    def unread(self, config: Any) -> dict[str, str]:
        """Attributes that were set since and that are not fields, and which field each may be meant for.

        A subclass may set some in its `__post_init__`; of those, only names that are almost a field's.
        """
        new = [name for name in vars(config) if name not in self.fields and name not in self.attributes]
        new = [name for name in new if not name.startswith("_") and not hasattr(type(config), name)]
        near = {name: offer(name, self.fields).key for name in new}
        if type(config).__module__.partition(".")[0] == "sftcore":
            return near
        return {name: field for name, field in near.items() if get_close_matches(name, [field], cutoff=0.85)}

    def as_given(self, config: Any) -> dict[str, Any]:
        """What the constructor would have to be given to make what the configuration says by now.

        A value that the constructor derived, and that nobody has changed since, is derived again: from other values.
        """
        now = {name: getattr(config, name) for name in self.fields}
        return {
            name: self.derived[name][0] if name in self.derived and not _differ(value, self.derived[name][1]) else value
            for name, value in now.items()
        }


def _kept(value: Any) -> Any:
    """The value; of mappings and lists a copy, since they may be changed in place."""
    return type(value)(value) if type(value) in (dict, list) else value


def _differ(one: Any, other: Any) -> bool:
    if one is other:
        return False
    if type(one) is not type(other):
        return True
    if isinstance(one, dict):
        return one.keys() != other.keys() or any(_differ(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) != len(other) or any(map(_differ, one, other))
    return not isinstance(one, (str, bool, int, float, type(None))) or one != other


def snapshot(config: Any, names: Iterable[str]) -> dict[str, Any]:
    """The fields as they stand before the constructor changes them."""
    return {name: getattr(config, name) for name in names}
