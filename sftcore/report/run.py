"""Reads what a run leaves in its folder: the log, the speed, the manifest, the ledger and the facts of its page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import Factory, frozen

from sftcore.core.errors import RecipeError
from sftcore.report.rows.hurting import HurtingRows, hurting_of

PAGE = "report.html"
LOG, SPEED, FACTS, SAMPLES = "metrics.jsonl", "speed.jsonl", "report.json", "samples.jsonl"
"""The names of the files: what was logged, how fast it was, what the page says beside the curves, and samples."""

Entry = Mapping[str, Any]
"""One line of a log: numbers by name, with the `step` after which they were logged."""


@frozen
class Run:
    """A run as its page shows it.

    Attributes:
        name: what the run is called on the page.
        log: the lines of `metrics.jsonl`, in order.
        speed: the lines of `speed.jsonl`: `step`, `seconds` of training since its start, `tokens_per_second`,
            `supervised_per_second` and `memory_mib`, the most memory that was held so far.
        facts: `report.json`: state, plan, plugins with reasons, lengths, rows and warnings.
        ledgers: what became of the rows of each data set, as `ledger.json` holds it.
        manifest: `manifest.json`.
        samples: the lines of `samples.jsonl`: `step`, `prompt`, `answer`, `tokens`, `ended`, and of a row its `row`.
        hurting: the rows whose losses stay high, fall late or jump; see `sftcore.report.rows.hurting`.
    """

    name: str
    log: tuple[Entry, ...] = ()
    speed: tuple[Entry, ...] = ()
    facts: Mapping[str, Any] = Factory(dict)
    ledgers: tuple[Mapping[str, Any], ...] = ()
    manifest: Mapping[str, Any] = Factory(dict)
    samples: tuple[Entry, ...] = ()
    hurting: tuple[HurtingRows, ...] = ()

    @property
    def is_running(self) -> bool:
        """Whether the run had not ended when it was read."""
        return bool(self.facts.get("state") == "running")


def read_run(folder: Path, name: str = "") -> Run:
    """The run in a folder. Lines that are broken, as the last one of a run that was killed may be, are left out.

    Raises:
        RecipeError: the folder holds no log of a run.
    """
    if not (folder / LOG).is_file():
        raise RecipeError(
            f"there is no {LOG} in this folder, so it does not hold a run.",
            where=str(folder),
            fix="Name the output_dir of a run.",
        )
    ledger = _object(folder / "ledger.json")
    found = [*_listed(ledger.get("ledgers")), *_listed(ledger.get("streams"))]
    manifest = _object(folder / "manifest.json")
    settings = manifest.get("settings")
    is_public = bool(settings.get("push_to_hub")) if isinstance(settings, dict) else False
    return Run(
        name or folder.resolve().name,
        tuple(read_lines(folder / LOG)),
        tuple(read_lines(folder / SPEED)),
        _object(folder / FACTS),
        tuple(found),
        manifest,
        tuple(read_lines(folder / SAMPLES)),
        hurting_of(folder, with_texts=not is_public),
    )


def read_lines(path: Path) -> Iterator[Entry]:
    """The entries of a log that can be read and say their step."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                if isinstance(entry, dict) and _is_number(entry.get("step")):
                    yield entry
    except OSError:
        return


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _listed(value: Any) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
