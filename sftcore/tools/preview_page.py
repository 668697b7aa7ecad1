"""Show previews as one self-contained HTML page, without scripts or anything loaded from elsewhere."""

from __future__ import annotations

import base64
import html
import io
import sys
from collections.abc import Iterator, Sequence

from sftcore.core.visible import visible
from sftcore.data.images.pictures import Picture
from sftcore.data.images.reference import open_image
from sftcore.report.pieces import Piece
from sftcore.tools.preview import CUT_SHOWN, Document, Preview

THUMBNAIL = 320
"""The longer side of an image on the page, in pixels."""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{
  color-scheme: light dark;
  --page: #fbfbfa; --card: #fff; --line: #e3e3df; --text: #1f2328; --soft: #6a6f76;
  --learn: #c9efd0; --learn-text: #0c3d1a; --light: #e9f2c4; --stop: #9adcaa; --mark: #e8e6f5; --mark-text: #4b3fa0;
  --gone: #b3402f; --warn: #fff4d6;
}}
@media (prefers-color-scheme: dark) {{
  :root {{
    --page: #15171a; --card: #1d2024; --line: #33383e; --text: #e4e6e8; --soft: #969ca4;
    --learn: #1d4d2b; --learn-text: #d5f7dd; --light: #434a1a; --stop: #2f6f43; --mark: #35305c; --mark-text: #cfc8ff;
    --gone: #f0907f; --warn: #463a16;
  }}
}}
* {{ box-sizing: border-box }}
body {{ margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem; background: var(--page); color: var(--text);
  font: 15px/1.6 system-ui, -apple-system, "Segoe UI", sans-serif }}
h1 {{ font-size: 1.25rem; margin: 0 0 .75rem; overflow-wrap: anywhere }}
h2 {{ font-size: 1rem; margin: 2rem 0 .25rem }}
p {{ margin: .25rem 0; color: var(--soft) }}
.note {{ background: var(--warn); color: var(--text); border-radius: 6px; padding: .4rem .75rem }}
.legend {{ display: flex; flex-wrap: wrap; gap: .5rem 1.25rem; color: var(--soft); font-size: .875rem }}
.text {{ margin: .75rem 0; padding: 1rem 1.25rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; white-space: pre-wrap; overflow-wrap: anywhere; color: var(--soft);
  font: 14px/1.75 ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace }}
.border {{ display: flex; align-items: center; gap: .75rem; margin: 1.25rem 0 -.25rem; color: var(--soft);
  font-size: .8125rem; font-variant-numeric: tabular-nums }}
.border::after {{ content: ""; flex: 1; border-top: 1px dashed var(--line) }}
mark {{ background: var(--learn); color: var(--learn-text); padding: .1em 0 }}
mark.light {{ background: var(--light) }}
b {{ font-weight: 400; background: var(--mark); color: var(--mark-text); border-radius: 4px; padding: .1em .2em;
  font-size: .9em }}
mark b {{ background: var(--stop); color: inherit }}
mark.light b {{ background: none }}
del, del mark, del b {{ color: var(--gone); background: none }}
sub {{ color: var(--learn-text); background: var(--light); font-size: .7em }}
figure {{ display: inline-block; margin: .5rem .75rem .5rem 0; vertical-align: top; white-space: normal }}
figure img {{ display: block; max-width: 20rem; border: 1px solid var(--line); border-radius: 6px }}
figcaption {{ max-width: 20rem; font-size: .75rem; line-height: 1.4; color: var(--soft); overflow-wrap: anywhere }}
span:hover {{ outline: 1px solid var(--soft); border-radius: 2px }}
</style>
</head>
<body>
<h1>{title}</h1>
<div class="legend"><span><mark>supervised</mark>: trained on</span><span>unmarked: context only</span>
<span><b>special token</b></span>{legend}</div>
{previews}
</body>
</html>
"""


def html_page(previews: Sequence[Preview], title: str) -> str:
    """A self-contained HTML page; pointing at a piece of text shows its tokens, position and weight."""
    segments = [segment for one in previews for segment in one.segments]
    legend = ""
    if any(0 < segment.weight < 1 for segment in segments):
        legend += '<span><mark class="light">supervised<sub>0.5</sub></mark>: trained on with this weight</span>'
    if any(segment.cut for segment in segments):
        legend += "<span><del>cut away</del> by max_length</span>"
    body = "\n".join(line for one in previews for line in _preview(one))
    return _PAGE.format(title=html.escape(title), legend=legend, previews=body)


def _preview(one: Preview) -> Iterator[str]:
    yield f"<h2>{html.escape(one.caption)}</h2>"
    if one.dropped:
        yield f'<p class="note">A run drops this row: {html.escape(one.dropped)}.</p>'
    yield from (f"<p>{html.escape(note)}</p>" for note in (*one.notes, *one.proof))
    for index, document in enumerate(one.documents):
        if one.capacity is not None:
            heading = document_heading(index, document, len(one.documents))
            yield f'<div class="border">{html.escape(heading)}</div>'
        yield f'<div class="text">{"".join(map(_piece, _with_runs(document.pieces)))}</div>'
    if one.cut > CUT_SHOWN:
        yield f"<p>{one.cut - CUT_SHOWN:,} more tokens are cut away.</p>"


def document_heading(index: int, document: Document, count: int) -> str:
    """The heading of a document in a packed block."""
    end = document.start + document.length - 1
    return (
        f"document {index + 1} of {count}: {document.length} tokens, {document.start} to {end} of the block, "
        f"positions 0 to {document.length - 1}"
    )


def thumbnail(picture: Picture) -> str:
    """The image as a data URL, scaled down to at most THUMBNAIL pixels in width and height."""
    image = open_image(picture.source, sys.maxsize)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _with_runs(pieces: Sequence[Piece]) -> Iterator[tuple[Piece, bool]]:
    """Each piece, and whether it is the last of a run of pieces with the same weight."""
    for piece, following in zip(pieces, [*pieces[1:], None], strict=True):
        yield piece, following is None or following.weight != piece.weight


def _piece(pair: tuple[Piece, bool]) -> str:
    piece, ends = pair
    ids = ", ".join(map(str, piece.ids))
    weight = f", weight {piece.weight:g}" if piece.weight else ""
    hint = f"token{'s' if len(piece.ids) > 1 else ''} {ids}, position {piece.position}{weight}"
    text = html.escape(piece.text)
    if piece.picture is not None:
        caption = f"{text}<br>{html.escape(visible(str(piece.picture)))}"
        return f'<figure><img src="{thumbnail(piece.picture)}" alt=""><figcaption>{caption}</figcaption></figure>'
    if piece.medium is not None:
        text = f"{text} {html.escape(visible(str(piece.medium)))}"
    if piece.special:
        text = f"<b>{text}</b>"
    light = 0 < piece.weight < 1
    if light and ends:
        text += f"<sub>{piece.weight:g}</sub>"
    text = f'<span title="{hint}">{text}</span>'
    if piece.weight:
        text = f"<mark{' class=light' if light else ''}>{text}</mark>"
    return f"<del>{text}</del>" if piece.cut else text
