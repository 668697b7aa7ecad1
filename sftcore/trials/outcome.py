"""What a trial found."""

from __future__ import annotations

from attrs import frozen


@frozen
class Outcome:
    """The result of one trial.

    fault: what is wrong, with the figure and its bound; empty where the claim holds. fix: how its author mends it.
    notes: what a run should say of the plugin although nothing is wrong, such as a difference that it declares.
    """

    fault: str = ""
    fix: str = ""
    notes: tuple[str, ...] = ()


PASSED = Outcome()
