"""The samples of a run side by side: what was asked, and the answers by step, or by run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sftcore.report.elements import shortened, text
from sftcore.report.run import Entry, Run

PROMPT, ANSWER = 600, 1200
"""Characters of a prompt and of an answer that are shown."""
_CHARACTERS = 400_000
"""Characters of all answers on a page: of a longer run, steps at even distances are shown."""
_AT_ONCE, _OPEN = 4, 12
"""Steps that are shown at first, and up to how many the choice of steps is open."""

_Key = tuple[str, str, int]
"""Which sample it is: its row, its prompt, and how many of the same were asked before it."""


def samples_section(run: Run) -> str:
    """The answers of one run by step."""
    steps = _by_step(run)
    size = sum(min(len(str(one.get("answer", ""))), ANSWER) for found in steps.values() for one in found.values())
    kept = _evenly([*steps], max(2, len(steps) * _CHARACTERS // max(size, _CHARACTERS)))
    at_first = _evenly(kept, _AT_ONCE)
    boxes = "".join(
        f'<label><input type="checkbox" value="{at}"{" checked" if step in at_first else ""}> {step:,}</label>'
        for at, step in enumerate(kept)
    )
    choice = (
        f"<details{' open' if len(kept) <= _OPEN else ''}><summary>Steps shown</summary>"
        f'<fieldset id="sample-steps" class="controls" aria-label="Steps shown">{boxes}</fieldset></details>'
    )
    table = _table({f"step {step:,}": steps[step] for step in kept})
    return (choice if len(kept) > 1 else "") + table if kept else ""


def samples_of_several(runs: Sequence[Run]) -> str:
    """The last answers of several runs to the same prompts."""
    last = {}
    for run in runs:
        if steps := _by_step(run):
            step = max(steps)
            last[f"{run.name}, step {step:,}"] = steps[step]
    return _table(last) if last else ""


def _by_step(run: Run) -> dict[int, dict[_Key, Entry]]:
    """The samples of each step, in their order."""
    found: dict[int, dict[_Key, Entry]] = {}
    for entry in run.samples:
        if not math.isfinite(entry["step"]):
            continue
        of = found.setdefault(int(entry["step"]), {})
        said = str(entry.get("row", "")), str(entry.get("prompt", ""))
        key = (*said, sum(one[:2] == said for one in of))
        of[key] = entry
    return dict(sorted(found.items()))


def _evenly(steps: Sequence[int], count: int) -> list[int]:
    """So many of the steps at even distances, the first and the last among them.

    >>> _evenly([1, 2, 3, 4, 5], 3), _evenly([1, 2], 4)
    ([1, 3, 5], [1, 2])
    """
    if len(steps) <= count:
        return [*steps]
    return [steps[round(at * (len(steps) - 1) / (count - 1))] for at in range(count)]


def _table(columns: Mapping[str, Mapping[_Key, Entry]]) -> str:
    keys = list(dict.fromkeys(key for found in columns.values() for key in found))
    top = "".join(f'<th scope="col">{text(name)}</th>' for name in ("asked", *columns))
    body = "".join(f"<tr>{_asked(key)}{''.join(_answer(of.get(key)) for of in columns.values())}</tr>" for key in keys)
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="Table of samples"><table class="samples"><thead>'
        f"<tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _asked(key: _Key) -> str:
    of = f"<small>{text(key[0])}</small>" if key[0] else ""
    return f'<th scope="row">{text(shortened(key[1], PROMPT))}{of}</th>'


def _answer(entry: Entry | None) -> str:
    if entry is None:
        return "<td></td>"
    tokens = entry.get("tokens")
    how = f"{tokens:,} tokens, " if isinstance(tokens, int) else ""
    how += "ended" if entry.get("ended") else "cut off"
    return f"<td>{text(shortened(str(entry.get('answer', '')), ANSWER))}<small>{how}</small></td>"
