"""The section of the page with the rows that hurt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sftcore.report.elements import shortened, text
from sftcore.report.rows.hurting import HurtingRow, HurtingRows

CHARACTERS = 400
"""How much of a row is shown."""
_KINDS = {
    "worst": "whose loss stays highest",
    "late": "whose loss falls last",
    "jumps": "whose loss jumps from one epoch to the next",
}


def hurting_section(found: Sequence[HurtingRows]) -> str:
    """A table for each kind of rows, of which one is shown at a time, and of those the rows of one source or all."""
    if not found:
        return ""
    sources = list(dict.fromkeys(row.source for one in found for row in one.rows))
    kinds = "".join(f'<option value="{one.what}">{text(_KINDS[one.what])}</option>' for one in found)
    of = "".join(f'<option value="{text(name)}">{text(name)}</option>' for name in sources)
    chosen = f'<label>Source <select id="hurt-source"><option value="">all</option>{of}</select></label>'
    controls = (
        f'<form class="controls" aria-label="Which rows"><label>Rows <select id="hurt-what">{kinds}</select></label>'
        f"{chosen if len(sources) > 1 else ''}</form>"
    )
    notes = "".join(f'<p class="hint">{text(note)}.</p>' for note in found[0].notes)
    said = (
        "<p>Rows that a model cannot learn are often mislabelled, cut, duplicated or in another language. "
        "<code>sftcore rows</code> lists more of them, and those that were cut or dropped.</p>"
    )
    return said + controls + notes + "".join(_table(one, several=len(sources) > 1) for one in found)


def _table(found: HurtingRows, *, several: bool) -> str:
    title = f"Rows {_KINDS[found.what]}"
    epochs = max(len(row.losses) for row in found.rows)
    head = ["row", *(["source"] if several else []), *(f"loss {n}" if epochs > 1 else "loss" for n in _to(epochs)),
            "tokens", "text"]  # fmt: skip
    top = "".join(f'<th scope="col">{text(one)}</th>' for one in head)
    body = "".join(
        f'<tr data-source="{text(row.source)}">{"".join(_cells(row, epochs, several))}</tr>' for row in found.rows
    )
    whole = f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return (
        f'<div class="hurt" data-what="{found.what}"><h3>{text(title)}</h3>'
        f'<div class="wide" tabindex="0" role="region" aria-label="{text(title)}">{whole}</div></div>'
    )


def _to(count: int) -> range:
    return range(1, count + 1)


def _cells(row: HurtingRow, epochs: int, several: bool) -> Iterator[str]:
    losses = [f"{one:.3f}" for one in row.losses] + [""] * (epochs - len(row.losses))
    supervised = "" if row.supervised is None else f"{row.supervised:,}"
    for value in (row.place, *([row.source] if several else []), *losses, supervised):
        yield f"<td>{text(value)}</td>"
    yield f'<td class="text">{text(shortened(row.text or "", CHARACTERS))}</td>'
