"""A recipe that passed every check that needs no torch."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen

from sftcore.config.recipe import Recipe
from sftcore.config.setup import Setup
from sftcore.data.source.several import GivenSet


@frozen
class Checked:
    """A recipe that passed `check`: nothing heavy has been imported yet."""

    recipe: Recipe
    setup: Setup
    train: GivenSet
    eval: Mapping[str, GivenSet] = field(factory=dict)
    """The evaluation sets by name; the name is empty where there is only one."""
