"""The page of a run, or of several: one HTML file that loads nothing from elsewhere and shows all text as text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files

from sftcore.core.visible import visible
from sftcore.report.curves import Chart, charts_of
from sftcore.report.elements import table, text
from sftcore.report.run import Run
from sftcore.report.samples import samples_of_several
from sftcore.report.sections import sections_of

RELOAD = 20
"""Seconds after which the page of a run that goes on is read again."""
_TABLE_ROWS = 50
"""Rows of the table under a chart: of a longer curve, these many at even distances."""

_PAGE = """<!doctype html>
<html lang="en" data-reload="{reload}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="state">{state}</p>
<nav aria-label="Sections">{links}</nav>
</header>
<main>
<section id="curves" aria-labelledby="curves-title">
<h2 id="curves-title">Curves</h2>
<form class="controls" aria-label="How curves are drawn">
<label>Smoothing <input id="smoothing" type="range" min="0" max="0.99" step="0.01" value="0"></label>
<label><input id="log" type="checkbox"> Logarithmic scale</label>
<label>Colours <select id="theme"><option value="">of the system</option><option value="light">light</option>\
<option value="dark">dark</option></select></label>
<button id="whole" type="button">Show all steps</button>
{follow}
</form>
<p class="hint">Drag across a chart to zoom in on steps, and double-click to see all of them. With the keyboard: \
focus a chart, and the arrow keys move along its points.</p>
<div class="charts">
{charts}
</div>
</section>
{sections}
</main>
<script type="application/json" id="data">{data}</script>
<script>{uplot}</script>
<script>{script}</script>
</body>
</html>
"""
_CHART = """<figure class="chart" data-name="{name}">
<figcaption>{title}</figcaption>
<div class="plot" tabindex="0" role="group" aria-roledescription="chart" aria-label="{label}"></div>
<p class="read" aria-live="polite"></p>
<details><summary>{title} as a table</summary>{table}</details>
</figure>"""
_FOLLOW = '<label><input id="follow" type="checkbox" checked> Read again as the run goes on</label>'


def page_of(run: Run) -> str:
    """The page of one run."""
    return _page(f"Run {run.name}", _state(run), charts_of([run]), sections_of(run), reload=run.is_running)


def page_of_several(runs: Sequence[Run], differences: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A page that compares runs: their curves drawn into each other, and the settings in which they differ.

    Args:
        runs: at least two, each with a name of its own.
        differences: settings by their paths, each with the value in every run.
    """
    head = ["setting", *(run.name for run in runs)]
    said = table(head, [[path, *values] for path, values in differences]) if differences else "<p>None.</p>"
    sections = {"Settings that differ": said}
    if samples := samples_of_several(runs):
        sections["Samples"] = samples
    for run in runs:
        sections[f"Run {run.name}"] = f'<p class="state">{_state(run)}</p>'
    return _page(" and ".join(run.name for run in runs), "", charts_of(runs), sections, reload=False)


def _page(title: str, state: str, charts: Sequence[Chart], sections: Mapping[str, str], *, reload: bool) -> str:
    named = {f"part-{number}": (name, body) for number, (name, body) in enumerate(sections.items())}
    links = [("curves", "Curves"), *((key, name) for key, (name, _) in named.items())]
    return _PAGE.format(
        reload=RELOAD if reload else 0,
        title=text(title),
        state=state,
        links="".join(f'<a href="#{key}">{text(name)}</a>' for key, name in links),
        follow=_FOLLOW if reload else "",
        charts="\n".join(map(_figure, charts)) or "<p>Nothing has been logged yet.</p>",
        sections="\n".join(
            f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{text(name)}</h2>{body}</section>'
            for key, (name, body) in named.items()
        ),
        data=_data(charts),
        style=_asset("uPlot.min.css") + _asset("report.css"),
        uplot=_asset("uPlot.iife.min.js"),
        script=_asset("report.js"),
    )


def _state(run: Run) -> str:
    steps = run.manifest.get("max_steps")
    last = int(max((entry["step"] for entry in run.log), default=0))
    of = f" of {steps:,}" if isinstance(steps, int) else ""
    return text(f"{run.facts.get('state', 'state unknown')}; logged up to step {last:,}{of}")


def _figure(chart: Chart) -> str:
    rows = []
    for curve in chart.curves:
        every = -(-len(curve.steps) // _TABLE_ROWS)
        points = [*zip(curve.steps, curve.values, strict=True)]
        kept = points[::every] + ([points[-1]] if (len(points) - 1) % every else [])
        rows += [[curve.label, f"{step:g}", f"{value:.5g}"] for step, value in kept]
    label = f"{chart.title}. {chart.summary()}"
    return _CHART.format(
        name=text(chart.name), title=text(chart.title), label=text(label), table=table(["curve", "step", "value"], rows)
    )


def _data(charts: Sequence[Chart]) -> str:
    """The points for the script, five digits each; curves on the same steps hold these once."""
    steps: dict[tuple[float, ...], int] = {}
    drawn = []
    for chart in charts:
        curves = [
            {
                "label": visible(curve.label),
                "steps": steps.setdefault(curve.steps, len(steps)),
                "values": [_short(value) for value in curve.values],
            }
            for curve in chart.curves
        ]
        drawn.append({"name": chart.name, "curves": curves})
    found = {"steps": [[_short(step, 12) for step in one] for one in steps], "charts": drawn}
    # what ends a script, or begins a comment in one, is spelt in another way that means the same
    return json.dumps(found, separators=(",", ":")).replace("<", "\\u003c").replace("&", "\\u0026")


def _short(value: float, digits: int = 5) -> float | int:
    found = float(f"{value:.{digits}g}")
    return int(found) if found.is_integer() and abs(found) < 2**53 else found


@cache
def _asset(name: str) -> str:
    return (files("sftcore.report") / "assets" / name).read_text(encoding="utf-8")
