"""What a tracker is told of a run beside transformers' settings: its plugins, its plan, and what became of its rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attrs import define, field

from sftcore.train.record.facts import plugins_of
from sftcore.train.record.summary import plan_lines
from sftcore.util.secrets import without_secrets
from sftcore.util.versions import version_of

if TYPE_CHECKING:
    from sftcore.train.view import RunView

Facts = dict[str, "str | int"]
PREFIX = "sftcore"


def facts_of(trainer: RunView) -> Facts:
    """Plugins with their versions, the counts of every data set that was prepared, and the plan, by name."""
    facts: Facts = {f"{PREFIX}/version": version_of("sftcore") or ""}
    for one in plugins_of(trainer):
        key, said = f"{PREFIX}/plugins/{one['kind']}", f"{one['name']} ({one['distribution']} {one['version']})"
        facts[key] = f"{facts[key]}, {said}" if key in facts else said
    for ledger in trainer.data.ledgers:
        facts |= _counts(
            ledger.name, rows=ledger.rows_in, rows_kept=ledger.rows_kept, rows_cut=ledger.rows_cut,
            rows_dropped=sum(ledger.dropped.values()), tokens_kept=ledger.tokens_kept, tokens_cut=ledger.tokens_cut,
            tokens_dropped=ledger.tokens_dropped, tokens_supervised=ledger.tokens_supervised,
        )  # fmt: skip
    return {**facts, f"{PREFIX}/plan": without_secrets("\n".join(plan_lines(trainer)))}


def facts_of_streams(trainer: RunView) -> Facts:
    """The same counts of the run's streams, which are known once it has read them."""
    facts: Facts = {}
    for stream in trainer.data.streams.values():
        if (one := stream.total) is not None:
            facts |= _counts(
                one.name, rows=one.rows_read, rows_kept=one.rows_kept, rows_cut=one.rows_cut,
                rows_dropped=sum(one.dropped.values()), tokens_kept=one.tokens_kept, tokens_cut=one.tokens_cut,
                tokens_dropped=one.tokens_in - one.tokens_kept - one.tokens_cut,
                tokens_supervised=one.tokens_supervised,
            )  # fmt: skip
    return facts


def _counts(name: str, **counts: int) -> Facts:
    return {f"{PREFIX}/data/{name}/{key}": int(count) for key, count in counts.items()}


@define
class Names:
    """Names as a tracker takes them: two that it could not tell apart get different ones, the same at every call.

    >>> names = Names(lambda name: name.replace("?", "_"))
    >>> names("a?"), names("a_"), names("a?")
    ('a_', 'a__2', 'a_')
    """

    spelled: Callable[[str], str]
    _known: dict[str, str] = field(factory=dict, init=False)

    def __call__(self, name: str) -> str:
        """The tracker's name for this one."""
        if name not in self._known:
            taken, first = set(self._known.values()), self.spelled(name)
            found, number = first, 1
            while found in taken:
                number += 1
                found = f"{first}_{number}"
            self._known[name] = found
        return self._known[name]

    def of(self, values: dict[str, Any] | None) -> dict[str, Any]:
        """The values under the tracker's names."""
        return {self(str(name)): value for name, value in (values or {}).items()}
