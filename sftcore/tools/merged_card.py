"""The model card of a merged model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sftcore.train.record.card import made_by, public_name, save_card

if TYPE_CHECKING:
    from sftcore.tools.agreement import Agreement
    from sftcore.tools.saved import SavedRun


def write_merged_card(
    folder: Path, run: SavedRun, *, name: str, dtype: str, compared_on: str, agreements: Iterable[Agreement]
) -> None:
    """Write `README.md` of a merged model into `folder`."""
    base = run.base.name or ""
    origin = (
        f"`{public_name(base)}` with an adapter merged into it, by {made_by()}. Merged in float32, saved in {dtype}."
    )
    ledgers = (run.manifest.get("data") or {}).get("ledgers") or ()
    facts = [f"{one['rows_kept']:,} rows, {one['tokens_supervised']:,} tokens supervised" for one in ledgers[:1]]
    facts += [f"{run.manifest['steps']} steps"] if run.manifest.get("steps") else []
    facts += [f"Compared with the unmerged model on {compared_on}"]
    facts += [f"{str(one)[:1].upper()}{str(one)[1:]}" for one in agreements]
    save_card(folder, name=name, base=base, origin=origin, facts=facts)
