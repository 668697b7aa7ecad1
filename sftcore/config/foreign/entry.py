"""One entry of the table: names of other tools for a setting, its key here, and how its values are translated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from attrs import field, frozen

from sftcore.core.errors import RecipeError

PEERS = ("trl", "axolotl", "llamafactory", "unsloth", "swift", "torchtune")
"""The tools whose names are known."""

Settings: TypeAlias = "Mapping[str, Any]"
"""Dotted paths of a recipe and their values, such as {"adapter.lora.r": 8}."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


@frozen
class Foreign:
    """Names of other tools for one setting.

    `names` are as those tools write them, dotted where the key lies inside another. `ours` is the path in a recipe; it
    is empty where no key here means the same. `note` is a sentence: what differs, or what to do where there is no key.
    `peers` are the tools that mean this by the names; where it is empty, whoever writes them. `rule` makes the settings
    of a recipe out of a value of the other tool; None takes the value over as it is.
    """

    names: tuple[str, ...] = field(converter=_words)
    ours: str = ""
    note: str = ""
    peers: tuple[str, ...] = field(default="", converter=_words)
    rule: Callable[[Any], Settings] | None = None

    def translated(self, value: Any) -> Settings:
        """The settings that say here what this value says there; none where leaving them out means the same.

        >>> Foreign("lora_r", "adapter.lora.r").translated(8)
        {'adapter.lora.r': 8}

        Raises:
            RecipeError: nothing here means the same as this value.
        """
        if self.rule is not None:
            return self.rule(value)
        if self.ours:
            return {self.ours: value}
        if is_on(value):
            raise RecipeError(f"{self.names[0]} has no equivalent.", fix=self.note)
        return {}


def nothing(_: Any) -> Settings:
    """The rule of a setting that is not needed here: whatever its value, the recipe says nothing."""
    return {}


def when_on(settings: Settings, off: Settings | None = None) -> Callable[[Any], Settings]:
    """The rule of a switch: the settings of a recipe where it is on, and where it is off.

    >>> when_on({"report_to": "wandb"})(True), when_on({"report_to": "wandb"})("false")
    ({'report_to': 'wandb'}, {})
    """
    return lambda value: settings if is_on(value) else off or {}


def chosen(path: str, values: Mapping[str, Any], *, others: bool = True) -> Callable[[Any], Settings]:
    """The rule of a choice out of names: what each is here, None where the recipe says nothing.

    Args:
        path: the key.
        values: by names of the other tool, in lower case.
        others: take over the values that are not among these; else they are refused.
    """

    def rule(value: Any) -> Settings:
        key = str(value).lower()
        if key not in values:
            if others:
                return {path: value}
            raise RecipeError(f"{value!r} has no equivalent as {path}.", fix=f"Known are: {', '.join(values)}.")
        return {} if values[key] is None else {path: values[key]}

    return rule


def only(*values: str) -> Callable[[Any], Settings]:
    """The rule of a choice of which these values alone have a meaning here, and need nothing said."""

    def rule(value: Any) -> Settings:
        if str(value).lower() not in values:
            raise RecipeError(f"{value!r} has no equivalent.")
        return {}

    return rule


def share_or_count(share: str, count: str) -> Callable[[Any], Settings]:
    """The rule of a number that is a share below 1 and a count from there on; 0 says nothing."""

    def rule(value: Any) -> Settings:
        number = as_number(value)
        return {} if number == 0 else {share: number} if number < 1 else {count: int(number)}

    return rule


def is_on(value: Any) -> bool:
    """Whether a switch is on, as other tools write it."""
    return str(value).strip().lower() not in ("false", "no", "off", "0", "none", "null", "")


def as_number(value: Any) -> float | int:
    """The number that a value is, or is the text of.

    Raises:
        RecipeError: it is none.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    try:
        return float(value) if any(sign in str(value).lower() for sign in ".e") else int(value)
    except (TypeError, ValueError):
        raise RecipeError(f"{value!r} is not a number.") from None
