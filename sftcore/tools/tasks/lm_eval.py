"""Score a finished run on tasks of lm-eval, by its own `simple_evaluate` on the model as the run loads it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import asdict, frozen

from sftcore.config.settings.combined import installed
from sftcore.core.errors import ModelError, RecipeError, SFTCoreError, nearest, quoted, said_by
from sftcore.tools.saved import SavedRun
from sftcore.util.disk import replace_text, writing
from sftcore.util.foreign import out_of_memory
from sftcore.util.versions import version_of

PACKAGE = "lm-eval"
SCORES = "tasks.json"
"""The file in the run's folder that holds the scores of each task."""


@frozen
class TaskScore:
    """What a model scores on a task, or a group of them.

    Attributes:
        metrics: by lm-eval's names, such as `acc,none` and `acc_stderr,none`.
        samples: how many were asked; None for a group.
        num_fewshot: how many examples stood before each; None for a group.
        version: of the task.
    """

    metrics: Mapping[str, float]
    samples: int | None
    num_fewshot: int | None
    version: Any


@frozen
class Asked:
    """How to ask: see `lm_eval.simple_evaluate` for the names."""

    tasks: tuple[str, ...]
    include_path: tuple[str, ...] = ()
    limit: float | None = None
    num_fewshot: int | None = None
    batch_size: int = 1
    apply_chat_template: bool = False


def names_of(given: str) -> tuple[str, ...]:
    """The tasks in a text with commas between them, each once.

    >>> names_of("hellaswag, arc_easy,hellaswag")
    ('hellaswag', 'arc_easy')

    Raises:
        RecipeError: it names none.
    """
    found = tuple(dict.fromkeys(filter(None, map(str.strip, given.split(",")))))
    if not found:
        raise RecipeError("it names no task.", where="--tasks", fix="Write names with commas between them.")
    return found


def task_manager(asked: Asked) -> Any:
    """lm-eval's own list of tasks, with those of the user's folders; nothing of the run is read before.

    Raises:
        RecipeError: lm-eval is not installed, a folder or a task is not there, or a task's file is wrong.
    """
    if not installed("lm_eval"):
        raise RecipeError(f"it needs {PACKAGE}.", where="--tasks", fix=f'Install: pip install "{PACKAGE}[hf]"')
    for folder in asked.include_path:
        if not Path(folder).is_dir():
            raise RecipeError(f"there is no folder {folder}.", where="--include-path")
    with _said_by_lm_eval("lm-eval cannot read its tasks", "--tasks"):
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=list(asked.include_path) or None)
        unknown = [name for name in asked.tasks if not manager.match_tasks([name])]
    if unknown:
        near = nearest(unknown[0], manager.all_tasks)
        raise RecipeError(
            f"lm-eval has no task {quoted(unknown)}.{near}", where="--tasks", fix="List them: lm-eval ls tasks"
        )
    return manager


def score(run: SavedRun, asked: Asked, *, dtype: str = "auto", adapter: bool = True) -> dict[str, TaskScore]:
    """The scores of each task and group by name.

    Raises:
        SFTCoreError: the tasks or the model cannot be had, or lm-eval says why a task cannot be evaluated.
    """
    manager = task_manager(asked)
    import torch

    from sftcore.tools.evaluate import loaded

    model, processor, _ = loaded(run, dtype, adapter)
    tokenizer = getattr(processor, "tokenizer", processor)
    if asked.apply_chat_template and not getattr(tokenizer, "chat_template", None):
        raise ModelError("its tokenizer has no chat template.", where=run.place, fix="Drop --apply-chat-template.")
    if torch.accelerator.is_available() and next(model.parameters()).device.type == "cpu":
        model = model.to(torch.accelerator.current_accelerator())
    with _said_by_lm_eval("lm-eval cannot evaluate the tasks", run.place):
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        found = simple_evaluate(
            model=HFLM(pretrained=model.eval(), tokenizer=tokenizer, batch_size=asked.batch_size),
            tasks=list(asked.tasks), task_manager=manager, limit=asked.limit, num_fewshot=asked.num_fewshot,
            apply_chat_template=asked.apply_chat_template, log_samples=False,
        )  # fmt: skip
    return _scores(found)


@contextmanager
def _said_by_lm_eval(what: str, where: str) -> Iterator[None]:
    """Around lm-eval, which raises whatever a task, its data or the hub raises."""
    try:
        yield
    except Exception as error:
        if isinstance(error, SFTCoreError) or out_of_memory(error):
            raise
        raise ModelError(f"{what}: {said_by(error)}.", where=where) from error


def _scores(found: Mapping[str, Any]) -> dict[str, TaskScore]:
    """What `simple_evaluate` gives, as plain values."""
    scores = {}
    for name, metrics in {**found["results"], **(found.get("groups") or {})}.items():
        numbers = {key: float(value) for key, value in metrics.items() if _is_number(value) and "," in key}
        counts = (found.get("n-samples") or {}).get(name) or {}
        shots = (found.get("n-shot") or {}).get(name)
        scores[name] = TaskScore(numbers, counts.get("effective"), shots, (found.get("versions") or {}).get(name))
    return scores


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, (bool, str)) and not math.isnan(float(value))
    except (TypeError, ValueError):
        return False


def keep(run: SavedRun, asked: Asked, scores: Mapping[str, TaskScore]) -> Path | None:
    """Write the scores into the run's folder, in the place of older ones of these tasks; None where it has no folder.

    Raises:
        WriteError: the folder cannot be written to.
    """
    if run.folder is None or not run.folder.is_dir():
        return None
    path = run.folder / SCORES
    try:
        known = json.loads(path.read_text(encoding="utf-8"))["tasks"]
    except (OSError, ValueError, LookupError, TypeError):
        known = {}
    how = {"limit": asked.limit, "apply_chat_template": asked.apply_chat_template}
    of = {"steps": run.manifest.get("steps"), "lm_eval": version_of(PACKAGE)}
    for name, one in scores.items():
        known[name] = {**asdict(one), **how, **of}
    with writing("the scores", path):
        replace_text(path, json.dumps({"schema": 1, "tasks": known}, indent=2, ensure_ascii=False) + "\n")
    return path


def lines_of(scores: Mapping[str, TaskScore]) -> Sequence[str]:
    """A line for each metric: task, metric, its value and standard error, and how it was asked."""
    lines = []
    for name, one in scores.items():
        for key, value in one.metrics.items():
            metric, _, kind = key.partition(",")
            if metric.endswith("_stderr"):
                continue
            error = one.metrics.get(f"{metric}_stderr,{kind}")
            shown = metric if kind == "none" else f"{metric} ({kind})"
            off = "" if error is None else f" ± {error:.4f}"
            shots = "" if one.num_fewshot is None else f", {one.num_fewshot}-shot"
            asked = "" if one.samples is None else f"  ({one.samples:,} samples{shots})"
            lines.append(f"{name:<24} {shown:<20} {value:.4f}{off}{asked}")
    return lines
