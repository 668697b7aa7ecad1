"""A recipe in the making: what a peer's settings become, why, and an account of every line of its file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

from attrs import define, evolve, field, frozen

from sftcore.config.data.parse import SECTION_KEYS
from sftcore.config.fields import config_fields, wrong_fields
from sftcore.core.types import KINDS
from sftcore.importers.read.source import FILL, UNKNOWN, Key, Place, Source, dotted, leaves, value_at
from sftcore.util.secrets import hides, masked
from sftcore.util.shown import shortened

Outcome: TypeAlias = Literal["used", "equivalent", "named"]
SECTIONS = ("model", "data", *KINDS, "block")
_SECRETS = ("api_key", "hub_token", "webhook", "password", "secret", "smtp")


@frozen
class Line:
    """What became of one setting: used under keys of the recipe, equivalent to what holds anyway, or named."""

    place: Place
    shown: str
    outcome: Outcome
    words: str = ""


@frozen
class Entry:
    """One value of the recipe, with what is to be said of it."""

    value: Any
    note: str = ""


@define
class Draft:
    """What the importers fill in.

    A setting is named by its key, or by a tuple that reaches into mappings and lists. `peer` is the tool, `version` the
    one whose defaults are written out, and `asked` the setting that was looked at last. Without a GPU, what needs one
    is left out and named.
    """

    source: Source
    peer: str
    version: str
    without_gpu: bool = False
    entries: dict[str, Entry] = field(factory=dict)
    account: list[Line] = field(factory=list)
    left_of_gpu: list[str] = field(factory=list)
    asked: Key = ()
    _done: dict[Key, tuple[Outcome, str]] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        for leaf, value in [*leaves(self.source.values)]:
            if value is not None and is_secret(leaf, value):
                self._done[leaf] = ("named", "a secret, which is not carried over: set it where you train")
                _drop(self.source.values, leaf)

    # --- reading ---
    def get(self, key: str | Key, default: Any = None) -> Any:
        """What the file says under a key, or the default where it says nothing (or null)."""
        self.asked = _key(key)
        found = value_at(self.source.values, self.asked)
        return default if found is None else found

    def has(self, key: str | Key) -> bool:
        """Whether the file says anything but null under a key."""
        return self.get(key) is not None

    def knows(self, key: Key) -> bool:
        """Whether a setting, or one that it lies in, has been dealt with."""
        return any(key[:size] in self._done for size in range(1, len(key) + 1))

    def first(self, *keys: str) -> str:
        """The first of these keys under which the file says anything; the first of all where it does under none."""
        return next((key for key in keys if self.has(key)), keys[0])

    # --- writing ---
    def put(self, ours: str, value: Any, *of: str | Key, note: str = "") -> None:
        """Write a value, which the settings `of` say."""
        self.entries[ours] = Entry(value, note if value != FILL else note or UNKNOWN)
        for key in of:
            self._mark(_key(key), "used", ours)

    def use(self, ours: str, *of: str | Key) -> None:
        """Settings that are part of a value which is written as a whole."""
        for key in of:
            self._mark(_key(key), "used", ours)

    def default(self, ours: str, value: Any, note: str = "") -> None:
        """Write a default of the peer's, unless its file says something else."""
        if ours not in self.entries:
            self.entries[ours] = Entry(value, note or f"{self.peer}'s default")

    def put_gpu(self, ours: str, value: Any, *of: str | Key, what: str, note: str = "") -> None:
        """Write what needs a GPU; without one it is left out and named."""
        if not self.without_gpu:
            self.put(ours, value, *of, note=note)
            return
        self.left_of_gpu.append(f"{what} ({ours}: {shortened(value)})")
        for key in of:
            self._mark(_key(key), "named", f"{what} needs a GPU, and was left out")

    def remark(self, ours: str, note: str) -> None:
        """Say something of a value that is written."""
        if ours in self.entries:
            before = self.entries[ours].note
            if note in before:
                return
            self.entries[ours] = evolve(self.entries[ours], note=f"{before}; {note}" if before else note)

    def same(self, why: str, *keys: str | Key) -> None:
        """Settings that say what holds here anyway."""
        for key in keys:
            self._mark(_key(key), "equivalent", why)

    def left(self, why: str, *keys: str | Key) -> None:
        """Settings that have no equivalent."""
        for key in keys:
            self._mark(_key(key), "named", why)

    def _mark(self, key: Key, outcome: Outcome, words: str) -> None:
        before = self._done.get(key)
        if before and before[0] == outcome == "used" and words not in before[1].split(", "):
            words = f"{before[1]}, {words}"
        self._done[key] = (outcome, words)

    # --- the end ---
    def finish(self) -> None:
        """Take out what a recipe does not take, and account for every setting."""
        self._refuse_wrong()
        for name, what in (("model.name", "model"), ("data.train", "data")):
            if name not in self.entries or self.entries[name].value in (None, "", []):
                self.entries[name] = Entry(FILL, f"the file names no {what} in a way that can be read")
        for leaf, place in self.source.places.items():
            outcome, words = self._of(leaf)
            value = value_at(self.source.values, leaf)
            if leaf in self.source.unknown:
                where = f": fill in {words}" if outcome == "used" else ""
                self.account.append(Line(place, _without_secret(self.source.unknown[leaf]), "named", UNKNOWN + where))
                continue
            shown = f"{dotted(leaf)}: {_spelled(value)}" if words[:8] != "a secret" else f"{dotted(leaf)}: (not shown)"
            self.account.append(Line(place, shown, outcome, words))
        for one in self.source.unread:
            self.account.append(Line(one.place, _without_secret(one.shown), "named", one.why))
        self.account.sort(key=lambda one: (one.place.file, one.place.line))

    def _of(self, leaf: Key) -> tuple[Outcome, str]:
        for size in range(len(leaf), 0, -1):
            if leaf[:size] in self._done:
                return self._done[leaf[:size]]
        inside = [made for key, made in self._done.items() if key[: len(leaf)] == leaf]
        return inside[0] if inside else ("named", self._unknown(leaf))

    def _unknown(self, leaf: Key) -> str:
        if value_at(self.source.values, leaf) is None:
            return f"says nothing; not known to this import of {self.peer} {self.version}"
        return f"not known to this import of {self.peer} {self.version}"

    def _refuse_wrong(self) -> None:
        """Name values that the recipe would be refused for, in place of writing them."""
        known = config_fields()
        for ours in [*self.entries]:
            section, _, inner = ours.partition(".")
            if section in SECTIONS and (section != "data" or inner in SECTION_KEYS):
                continue
            value = self.entries[ours].value
            if value == FILL:
                continue
            name = section if section in known else ours
            wrong = ["there is no such setting"] if name not in known else []
            wrong = wrong or ([] if inner else [one.what for one in wrong_fields({ours: value}, where="")])
            if wrong:
                self._take_out(ours, f"{ours}: {shortened(value)} is not taken: {wrong[0]}")
        report = self.entries.get("report_to")
        if report is None or report.value in (None, "none", [], ["none"]):
            for ours in [one for one in self.entries if one.startswith("tracker.")]:
                self._take_out(ours, "report_to names no tracker")

    def _take_out(self, ours: str, why: str) -> None:
        """Take a value out of the recipe, and name the settings that nothing else of it says."""
        del self.entries[ours]
        for key, (outcome, words) in self._done.items():
            if outcome == "used" and ours in words.split(", "):
                rest = [one for one in words.split(", ") if one != ours]
                self._done[key] = ("used", ", ".join(rest)) if rest else ("named", why)

    def of_outcome(self, outcome: Outcome) -> Iterator[Line]:
        """The lines of the account with this outcome."""
        return (one for one in self.account if one.outcome == outcome)


def is_secret(key: Key, value: Any) -> bool:
    """Whether a setting is a token, a password or an address with one."""
    name = str(key[-1]).lower()
    if isinstance(value, bool):
        return False
    named = hides(key[-1], value) or any(part in name for part in _SECRETS) or name.endswith(("_key_id", "webhook_url"))
    return named or masked(value) != value


def _without_secret(shown: str) -> str:
    """What is shown of something that was not read: neither the value of a secret's key nor what `login` is given."""
    key = shown.partition(":")[0]
    if key != shown and is_secret((key,), "a value"):
        return f"{key}: (not shown)"
    words = shown.split()
    if any("login" in word or "token" in word.lower() or "key" in word.lower() for word in words[:4]):
        return " ".join([*words[:2], *(["…"] if len(words) > 2 else [])])
    return str(masked(shown))


def _key(key: str | Key) -> Key:
    return (key,) if isinstance(key, str) else key


def _drop(values: Any, leaf: Key) -> None:
    owner = value_at(values, leaf[:-1]) if len(leaf) > 1 else values
    if isinstance(owner, dict):
        owner[leaf[-1]] = None


def _spelled(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return shortened(value) if not isinstance(value, str) else shortened(value).strip("'\"") or '""'
