"""A recipe that passed every check that needs no torch."""

from __future__ import annotations

from attrs import frozen

from sftcore.config.recipe import Recipe
from sftcore.config.setup import Setup
from sftcore.data.source.load import Source


@frozen
class Checked:
    """A recipe that passed `check`: nothing heavy has been imported yet."""

    recipe: Recipe
    setup: Setup
    train: Source
    eval: Source | None
