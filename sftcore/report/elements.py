"""Pieces of HTML in which text of data and runs is always shown as text."""

from __future__ import annotations

import html
from collections.abc import Sequence

from sftcore.core.visible import visible


def text(value: object) -> str:
    """A text of data or of a run as HTML that shows it as it is, codes and tags included."""
    return html.escape(visible(str(value)))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table that scrolls sideways within itself where it is wider than the page."""
    top = "".join(f'<th scope="col">{text(one)}</th>' for one in head)
    body = "".join(f"<tr>{''.join(f'<td>{text(one)}</td>' for one in row)}</tr>" for row in rows)
    label = text(f"Table: {', '.join(head)}")
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{label}"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def shortened(value: str, limit: int) -> str:
    """The beginning of a text, with a sign where it was longer.

    >>> shortened("abcdef", 3), shortened("abc", 3)
    ('abc …', 'abc')
    """
    return value if len(value) <= limit else f"{value[:limit]} …"
