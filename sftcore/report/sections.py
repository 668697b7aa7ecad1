"""What the page of a run says beside its curves: plan, plugins, rows, lengths, warnings, and how to repeat the run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sftcore.report.elements import table, text
from sftcore.report.rows.section import hurting_section
from sftcore.report.run import Run
from sftcore.report.samples import samples_section


def sections_of(run: Run) -> dict[str, str]:
    """The sections of the page by their titles, as HTML; what the run left nothing for is left out."""
    facts, manifest = run.facts, run.manifest
    found = {
        "Warnings": _list(facts.get("warnings")),
        "Samples": samples_section(run),
        "Rows that hurt": hurting_section(run.hurting),
        "Plan": _plan(facts.get("plan")),
        "Plugins": _plugins(facts.get("plugins")),
        "Rows": _ledgers(run.ledgers),
        "Lengths": _lengths(facts.get("lengths")),
        "Rows as the model sees them": _rows(facts.get("rows")),
        "Repeat this run": _repeat(run),
        "Manifest": f"<details><summary>manifest.json</summary>{_json(manifest)}</details>" if manifest else "",
    }
    return {title: body for title, body in found.items() if body}


def _list(lines: Any) -> str:
    found = "".join(f"<li>{text(line)}</li>" for line in lines or ())
    return f'<ul class="warnings">{found}</ul>' if found else ""


def _plan(lines: Any) -> str:
    """The plan, whose lines begin with what they are about."""
    rows = [[*str(line).partition(" ")[::2]] for line in lines or ()]
    return table(["about", "plan"], [[about, said.strip()] for about, said in rows]) if rows else ""


def _plugins(plugins: Any) -> str:
    rows = [
        [one.get("kind", ""), one.get("name", ""), f"{one.get('distribution', '')} {one.get('version', '')}",
         one.get("why", "")]
        for one in plugins or ()
    ]  # fmt: skip
    return table(["kind", "plugin", "from", "chosen because"], rows) if rows else ""


def _ledgers(ledgers: Sequence[Mapping[str, Any]]) -> str:
    """What became of rows and tokens, and of each reason for which rows were dropped the count."""
    if not ledgers:
        return ""
    head = ["set", "rows", "kept", "cut", "dropped", "tokens", "supervised"]
    rows, reasons = [], []
    for one in ledgers:
        dropped = one.get("dropped") or {}
        kept, tokens = one.get("rows_kept", 0), one.get("tokens_kept", 0)
        share = f"{one.get('tokens_supervised', 0):,} ({100 * one.get('tokens_supervised', 0) / max(tokens, 1):.0f}%)"
        counts = [one.get("rows_in", 0), kept, one.get("rows_cut", 0), sum(dropped.values()), tokens]
        rows.append([one.get("name", ""), *(f"{count:,}" for count in counts), share])
        reasons += [f"{one.get('name')}: {count:,} rows dropped, {why}" for why, count in dropped.items()]
        reasons += [f"{one.get('name')}: {count:,} rows: {note}" for note, count in (one.get("notes") or {}).items()]
    return table(head, rows) + "".join(f"<p>{text(line)}</p>" for line in reasons)


def _lengths(lengths: Any) -> str:
    """A histogram: bars with their counts, drawn as SVG."""
    if not lengths or not lengths.get("histogram"):
        return ""
    bins, unit = lengths["histogram"], lengths["of"]
    most, width = max(one["rows"] for one in bins), 600 / len(bins)
    bars = []
    for number, one in enumerate(bins):
        height, end = 140 * one["rows"] / most, one["end"]
        span = f"{one['start']:,} tokens and more" if end is None else f"{one['start']:,} to {end - 1:,} tokens"
        bars.append(
            f'<rect x="{number * width + 1:.1f}" y="{150 - height:.1f}" width="{max(width - 2, 1):.1f}" '
            f'height="{height:.1f}" fill="currentColor"><title>{span}: {one["rows"]:,} {unit}</title></rect>'
            f'<text x="{number * width + 1:.1f}" y="166">{one["start"]:,}</text>'
        )
    quantiles = ", ".join(f"{name} {value:,}" for name, value in lengths["quantiles"].items())
    label = f"{sum(one['rows'] for one in bins):,} {unit}, {lengths['total']:,} tokens; tokens of each: {quantiles}"
    picture = f'<svg class="bars" viewBox="0 0 600 172" role="img" aria-label="{text(label)}">{"".join(bars)}</svg>'
    return f"<p>{text(label)}</p>{picture}"


def _rows(rows: Any) -> str:
    """Rows with what is trained on marked."""
    if not rows:
        return ""
    said = "<p><mark>Marked</mark> text is trained on; the rest is context. <b>Special tokens</b> stand out.</p>"
    for row in rows:
        pieces = "".join(map(_piece, row["pieces"]))
        cut = f"<p>{row['left_out']:,} more tokens are not shown.</p>" if row.get("left_out") else ""
        said += f'<h3>{text(row["caption"])}</h3><div class="row">{pieces}</div>{cut}'
    return said


def _piece(piece: Mapping[str, Any]) -> str:
    """A stretch of text of the same kind: its words, its weight in the loss, and whether it is a special token."""
    words = text(piece["text"])
    words = f"<b>{words}</b>" if piece.get("special") else words
    weight = piece.get("weight", 0.0)
    if not weight:
        return words
    light = f' class="light" title="weight {weight:g}"' if weight < 1 else ""
    return f"<mark{light}>{words}</mark>"


def _repeat(run: Run) -> str:
    """How to train the run again; of one that was started from Python, its script is needed."""
    recipe = run.manifest.get("recipe")
    if not isinstance(recipe, dict):
        return ""
    said = (
        "trains it again from manifest.json, and compares weights and losses bit by bit. The recipe, as it was given:"
    )
    return f"<p><code>sftcore replay {text(run.name)}</code> {said}</p>{_json(recipe)}"


def _json(value: Any) -> str:
    return f'<pre tabindex="0">{text(json.dumps(value, indent=2, ensure_ascii=False))}</pre>'
