"""The model card of a quantised model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sftcore.train.record.card import TAGS, is_hub_id, made_by, public_name, save_card

if TYPE_CHECKING:
    from sftcore.tools.quantization.outcome import Options, Outcome
    from sftcore.tools.saved import SavedRun


def write_quantised_card(folder: Path, run: SavedRun, outcome: Outcome, options: Options) -> None:
    """Write `README.md` of a quantised model into `folder`."""
    base = run.base.name or ""
    merged = " with an adapter merged into it," if run.adapter else ""
    origin = (
        f"`{public_name(base)}`{merged} quantised to {options.bits} bits in groups of {outcome.group_size} "
        f"({options.method}) by {made_by()}.\n\n"
        "transformers loads it where the package `compressed-tensors` is installed."
    )
    before, after, rows = outcome.before, outcome.after, len(outcome.calibration.held_out)
    facts = [
        f"Calibrated on {len(outcome.calibration.rows):,} rows, {outcome.calibration.num_tokens:,} tokens",
        f"Perplexity on {rows} rows, supervised tokens: {before.supervised:.3f} before, {after.supervised:.3f} after",
        f"Perplexity on {rows} rows, all tokens: {before.every:.3f} before, {after.every:.3f} after",
    ]
    relation = {"base_model_relation": "quantized"} if is_hub_id(base) else {}
    tags = [*TAGS, options.method]
    save_card(folder, name=outcome.folder.name, base=base, origin=origin, facts=facts, tags=tags, **relation)
