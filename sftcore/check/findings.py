"""What a report can find: every finding has a stable id, a severity, and the rows that it concerns."""

from __future__ import annotations

from typing import Literal, TypeAlias

from attrs import define, evolve, field, frozen

Severity: TypeAlias = Literal["error", "warning", "info"]

SHOWN = 10
"""How many locations of each finding are kept."""
_REASONS = 30
"""How many different texts one id may have; the rest are counted together."""

# id: what it is (empty if each finding says it), how to fix it.
_ERRORS = {
    "unreadable": ("the file cannot be read.", "Write the file again."),
    "no-rows": ("there are no rows.", "Give a file with at least one row."),
    "broken-json": ("broken JSON.", "Correct or delete it."),
    "broken-csv": ("broken CSV.", "Correct or delete the line."),
    "not-a-row": ("this is not a row of named columns.", "Write each row as a mapping."),
    "not-utf8": ("the text is not UTF-8.", "Save the file as UTF-8."),
    "lone-surrogate": ("half a surrogate pair, which is not a character.", "Correct or delete it."),
    "no-format": ("", ""),
    "mixed-formats": ("", "Check and train the files separately, or give them the same columns."),
    "tokenizer": ("", ""),
    "null-content": ("", "Fill it in, or drop the row."),
    "unknown-role": ("", ""),
    "refused": ("", ""),
    "missing-answer": ("the row has no answer.", "Drop the row, or give it an answer."),
    "nothing-left": ("no row is left to train on.", "Fix the problems above."),
}
_WARNINGS = {
    "format-suggested": ("", ""),
    "cut": ("", "Raise max_length, or split these rows."),
    "dropped": ("", "Look at one with: sftcore preview DATA --model M --row N."),
    "duplicate-rows": ("the same as an earlier row.", "Keep one of each."),
    "same-prompt": ("the same prompt as an earlier row, with another answer.", "Check whether both are intended."),
    "also-in-training": ("the same as a row that is trained on.", "Remove it from one of the two sets."),
    "nearly-in-training": (
        "nearly the same words as a row that is trained on.",
        "Check whether it belongs in both: an evaluation on what was learned by heart looks too good.",
    ),
    "two-in-a-row": ("one role speaks twice in a row.", "Join the turns, or check what is missing between them."),
    "assistant-first": ("the assistant speaks first.", "Many templates refuse this; drop the turn."),
    "system-not-first": ("a system turn after other turns.", "Move it to the front; many templates refuse this."),
    "tool-without-call": ("a tool answers, but nobody called it.", "Add the assistant's call before it."),
    "ends-unanswered": ("the conversation ends without an answer.", "Drop what follows the last answer."),
    "empty-turn": ("a turn without words.", "Drop the turn or the row."),
    "long-turn": ("", "Split it, or check whether it belongs here."),
    "huge-row": ("much longer than the other rows.", "Check whether it belongs here."),
    "replacement-character": ("characters that were lost (U+FFFD).", "Read the source again as UTF-8."),
    "mojibake": ("UTF-8 that was read as Windows-1252.", "Read the source again as UTF-8."),
    "control-characters": ("control characters.", "Remove them."),
    "bom-inside": ("a byte-order mark inside a text.", "Remove it."),
    "special-tokens": (
        "the tokenizer's special tokens inside a message: the model reads them as structure.",
        "Remove or rewrite them.",
    ),
}
_INFOS = {
    "special-tokens-in-texts": (
        "the tokenizer's special tokens stand in the text.",
        "This is fine if you put them there.",
    ),
    "html-entities": ("HTML entities.", "Unescape them if the data are not HTML."),
    "invisible-characters": ("zero-width, direction or tag characters.", "Check whether they are intended."),
    "sparse-columns": ("", ""),
    "unread-column": ("", "Map it in format's options, or leave it."),
    "note": ("", ""),
}
KINDS: dict[str, tuple[Severity, str, str]] = {
    **{kind: ("error", *words) for kind, words in _ERRORS.items()},
    **{kind: ("warning", *words) for kind, words in _WARNINGS.items()},
    **{kind: ("info", *words) for kind, words in _INFOS.items()},
}
"""The severity of each kind of finding, what it is, and how to fix it."""


@frozen
class Location:
    """A row that a finding concerns: its number in the data set from 0, its file, and its line there from 1."""

    row: int | None = None
    file: str = ""
    line: int | None = None
    detail: str = ""


@frozen
class Finding:
    """One finding: `count` is the number of rows (or files) that have it, `rows` the first of them."""

    id: str
    severity: Severity
    what: str
    fix: str
    count: int = 0
    rows: tuple[Location, ...] = ()


@define
class Findings:
    """Collects findings; a row is counted once for each finding."""

    _found: dict[tuple[str, str], Finding] = field(factory=dict)
    _last: dict[tuple[str, str], Location] = field(factory=dict)

    def add(self, kind: str, location: Location, detail: str = "", *, what: str = "", fix: str = "") -> None:
        """Count one more location, with a detail; `what` and `fix` replace those of the kind."""
        severity, general, mend = KINDS[kind]
        key = kind, what or general
        if key not in self._found and sum(one == kind for one, _ in self._found) >= _REASONS:
            key = kind, "further reasons."
        found = self._found.get(key) or Finding(kind, severity, key[1], fix or mend)
        last = self._last.get(key)
        if last is not None and location.row is not None and (last.row, last.file) == (location.row, location.file):
            return
        self._last[key] = location
        rows = (*found.rows, evolve(location, detail=detail)) if len(found.rows) < SHOWN else found.rows
        self._found[key] = evolve(found, count=found.count + 1, rows=rows)

    def all(self) -> tuple[Finding, ...]:
        """Errors first, then warnings, then the rest; each in the order of the kinds."""
        kinds = list(KINDS)
        return tuple(sorted(self._found.values(), key=lambda one: (kinds.index(one.id), -one.count)))
