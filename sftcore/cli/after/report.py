"""`sftcore report`: the page of a run made anew, or one that compares several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sftcore.core.visible import visible


@click.command("report")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
    help="Where a page of several runs goes. Default: report.html in this folder.",
)  # fmt: skip
def command(runs: tuple[Path, ...], output: Path | None) -> None:
    """Make the page of RUN anew, in its folder; of several RUNs, make one page that compares them.

    RUN is the output_dir of a run, which may still be going on. The page of several shows their curves drawn into each
    other, and the settings in which they differ. It needs no network, and loads nothing from elsewhere.
    """
    from sftcore.util.disk import replace_text, writing

    if len(runs) == 1:
        path = output or runs[0] / "report.html"
        pages = _page_of_one(runs[0])
    else:
        path = output or Path("report.html")
        pages = {"": _page_of_several(runs)}
    with writing("the page", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for name, text in pages.items():
            replace_text(path.with_name(name) if name else path, text)
    click.echo(visible(f"written: {path}"))


def _page_of_one(folder: Path) -> dict[str, str]:
    """The page of a run, and the curve of its loss beside it."""
    import attrs

    from sftcore.report.curves import charts_of
    from sftcore.report.page import page_of
    from sftcore.report.run import read_run
    from sftcore.report.svg import drawing
    from sftcore.train.checkpoint.owner import is_owned

    run = read_run(folder)
    if run.is_running and not is_owned(folder):
        run = attrs.evolve(run, facts={**run.facts, "state": "stopped without saying so, as a run that is killed"})
    losses = [chart for chart in charts_of([run]) if chart.name == "loss"]
    return {"": page_of(run), **({"loss.svg": drawing(losses[0])} if losses else {})}


def _page_of_several(folders: tuple[Path, ...]) -> str:
    from sftcore.report.page import page_of_several
    from sftcore.report.run import read_run

    names = [folder.resolve().name for folder in folders]
    if len({*names}) < len(names):
        names = [str(folder) for folder in folders]
    found = [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]
    return page_of_several(found, _differences(folders))


def _differences(folders: tuple[Path, ...]) -> list[tuple[str, list[str]]]:
    """The settings that are not the same in all runs, each with its value in every run."""
    from sftcore.config.described.origins import MISSING, values_of
    from sftcore.core.errors import SFTCoreError

    runs: list[dict[str, Any]] = []
    for folder in folders:
        try:
            runs.append({path: one.value for path, one in values_of(str(folder)).items()})
        except SFTCoreError:  # a run without a manifest has curves to compare all the same
            runs.append({})
    paths = sorted({path for run in runs for path in run})
    rows = [(path, [str(run.get(path, MISSING)) for run in runs]) for path in paths]
    return [(path, values) for path, values in rows if len({*values}) > 1]
