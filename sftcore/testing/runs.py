"""Short training runs of a tiny model, from a recipe, in the process of the test."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftcore.config.recipe import parse_recipe
from sftcore.testing.tiny import save_tiny

if TYPE_CHECKING:
    from sftcore.train.run import Outcome

ROWS = tuple({"prompt": f"say {i}:", "completion": " hello world" * (1 + i % 4)} for i in range(8))
"""Documents of different lengths."""

SHORT: dict[str, Any] = {
    "max_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 2, "max_length": 64, "save_strategy": "no",
    "report_to": "none", "gradient_checkpointing": False, "dataset_cache": False, "seed": 0,
}  # fmt: skip


def run_recipe(folder: Path, data: str | Path | Sequence[Mapping[str, Any]] = ROWS, **recipe: Any) -> Outcome:
    """Check a recipe and train as `sftcore train` does.

    Args:
        folder: where the tiny model, the rows and what the run writes are put.
        data: a file, or rows.
        recipe: keys of the recipe, which go before those of two short steps: `loss="focal"`, `packing=True`,
            `model=` a folder instead of the tiny Llama.

    Returns:
        The trainer, the logged losses, and the folder with the trained model.

    Raises:
        SFTCoreError: the run is refused, as it would be on the command line.
    """
    from rich.console import Console

    from sftcore.train.run import check_recipe
    from sftcore.train.run import run_recipe as run

    model = recipe.pop("model", None) or folder / "tiny-model"
    if not Path(str(model)).exists():
        save_tiny(Path(str(model)))
    if not isinstance(data, (str, Path)):
        rows, data = data, folder / "rows.jsonl"
        data.write_text("".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    keys = {"model": str(model), "data": str(data), "output_dir": str(folder / "trained"), **SHORT, **recipe}
    checked = check_recipe(parse_recipe(keys, place="the test's recipe"))
    return run(checked, Console(file=io.StringIO()))
