"""Check combinations, and train those that pass, in one fresh process: `python -m tests.pairs.worker SPEC OUT`.

SPEC is JSON: `combinations`, `train`, and `folder`, in which model and rows stand. OUT gets [state, reason] for each.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from sftcore.testing.libraries import spare_libraries

ROOT = Path(__file__).parents[2]
STAND_INS = {"flash-attn": "2.8.3", "liger-kernel": "0.8.5", "unsloth": "2026.10.9", "bitsandbytes": "0.50.2"}
"""Distributions of which `check` reads that they are there; the first is a double, which trains too."""


def stand_in(folder: Path) -> None:
    """Metadata of what is not installed, and the double of flash-attn in place of the package."""
    import importlib.metadata

    import attrs
    from sftcore_plugins.attention import flash2

    for name, version in STAND_INS.items():
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    sys.path[:0] = [str(folder), str(ROOT / "tests" / "plugins" / "attention" / "doubles")]
    flash2.BACKEND = attrs.evolve(flash2.BACKEND, devices=())


def let_the_double_run() -> None:
    """What asks for the GPU that the real package needs is answered."""
    import transformers.modeling_flash_attention_utils as utils
    from transformers import PreTrainedModel

    utils.is_flash_attn_2_available = lambda *args, **kwargs: True
    PreTrainedModel._flash_attn_can_dispatch = lambda *args, **kwargs: True


def verdict(combination: tuple[str, ...], folder: Path, *, train: bool) -> tuple[str, str]:
    """`trains`, `passes` (check alone was asked), `check` or `loading` with the reason of a refusal, or `crash`."""
    from sftcore import SFTCoreError
    from sftcore.config.recipe import parse_recipe
    from sftcore.train.run import check_recipe
    from tests.pairs.grid import recipe

    with tempfile.TemporaryDirectory() as output:
        asked = recipe(combination, model=str(folder / "model"), data=str(folder / "rows.jsonl"), output=output)
        try:
            checked = check_recipe(parse_recipe(asked))
        except SFTCoreError as error:
            return "check", _reason(error)
        if not train:
            return "passes", ""
        try:
            return _two_steps(checked)
        except SFTCoreError as error:
            return "loading", _reason(error)
        except Exception as error:  # what a combination that nobody refused may end in
            return "crash", f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


def _two_steps(checked: Any) -> tuple[str, str]:
    import math

    from rich.console import Console

    from sftcore.train.run import run_recipe

    before: dict[str, Any] = {}

    def remember(trainer: Any) -> None:
        before.update(
            {name: one.detach().clone() for name, one in trainer.model.named_parameters() if one.requires_grad}
        )

    outcome = run_recipe(checked, Console(quiet=True), before_training=remember)
    now = dict(outcome.trainer.model.named_parameters())
    moved = sum(not one.equal(now[name]) for name, one in before.items())
    steps = outcome.trainer.state.global_step
    if steps != 2 or not moved or not all(math.isfinite(loss) for loss in outcome.losses):
        return "crash", f"{steps} steps, losses {outcome.losses}, {moved} of {len(before)} parameters moved"
    return "trains", ""


def _reason(error: Any) -> str:
    """The first problem, with the plugin that has it where it names one."""
    first = next(iter(getattr(error, "problems", ())), error)
    told = f"{first.where}: {first.what}" if getattr(error, "problems", None) and first.where else first.what
    return " ".join(told.split())


def main() -> None:
    warnings.simplefilter("ignore")
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    asked = [tuple(one) for one in spec["combinations"]]
    with tempfile.TemporaryDirectory() as folder:
        stand_in(Path(folder))
        if spec["train"]:
            if any("unsloth" in one for one in asked):
                import unsloth  # noqa: F401  # before transformers, as its own plugin does
            let_the_double_run()
        found = []
        for one in asked:
            found.append(verdict(one, Path(spec["folder"]), train=spec["train"]))
            spare_libraries()
            if os.environ.get("PAIRS_SHOWN"):
                print(*one, *found[-1], file=sys.stderr)
    Path(sys.argv[2]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
