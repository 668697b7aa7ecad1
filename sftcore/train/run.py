"""A run from a recipe: check while everything is light, then load, train, save."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from attrs import frozen

from sftcore.config.fields import default_output_dir
from sftcore.config.probe import probe_run
from sftcore.config.processes import world_size
from sftcore.config.recipe import AUTO, LAST, Recipe
from sftcore.config.settings.combined import metric_problems, package_problems, sample_problems
from sftcore.config.settings.rhythm import per_epoch
from sftcore.config.setup import check, set_up_recipe
from sftcore.core.errors import ConflictError, RecipeError
from sftcore.core.types import KINDS
from sftcore.core.visible import visible
from sftcore.data.source.several import inspect_set, problems_of_formats
from sftcore.display.choice import view_for
from sftcore.display.environment import bars_wanted
from sftcore.display.figures import seconds
from sftcore.display.stages import shown_by, stage
from sftcore.train.checked import Checked
from sftcore.train.checkpoint.folders import choose, refuse_absent
from sftcore.train.checkpoint.other_run import OutputFolder, held_model
from sftcore.train.parts.callbacks import check_callbacks
from sftcore.train.row_locations import named_by_file, sets_by_name, sources_by_name
from sftcore.util.disk import cache_folder

if TYPE_CHECKING:
    from rich.console import Console

    from sftcore.display.view import View
    from sftcore.train.trainer import SFTTrainer


@frozen
class Outcome:
    """What a run gave: its logged losses (of a short run their mean), seconds of its steps, and where the model is.

    Of a resumed run that is what it did itself, behind the `first_step` steps of the runs before it.
    """

    trainer: SFTTrainer
    first_step: int
    losses: tuple[float, ...]
    seconds: float
    folder: Path

    @property
    def sentence(self) -> str:
        """The outcome in one line."""
        if self.trainer.nothing_left:
            return f"{self.trainer.nothing_left}; the model is in {self.folder}"
        spelled = " to ".join(f"{loss:.4f}" for loss in (*self.losses[:1], *self.losses[1:][-1:]))
        spelled = f"loss {spelled}" if spelled else "no loss was logged"
        state = self.trainer.state
        if self.first_step:
            spelled = f"steps {self.first_step + 1:,} to {state.global_step:,}: {spelled}"
        if state.global_step < state.max_steps:
            spelled = f"ended at step {state.global_step:,} of {state.max_steps:,}: {spelled}"
        best = ""
        if self.trainer.args.load_best_model_at_end and state.best_model_checkpoint:
            best = f"the model of step {state.best_global_step:,}, the best, is "
        watchdog = self.trainer.guard.watchdog
        found = (self.trainer.nonfinite.sentence(), watchdog.sentence() if watchdog is not None else "")
        said = "".join(f"; {one}" for one in found if one)
        return f"{spelled} in {seconds(self.seconds)} of training; {best}saved in {self.folder}{said}"


def check_recipe(recipe: Recipe) -> Checked:
    """Everything that can be found wrong without torch: plugins, settings, files, the first rows of the data.

    Raises:
        SFTCoreError: with what is wrong, where, and how to mend it.
    """
    setup = set_up_recipe(recipe)
    strategy = {**recipe.training, **per_epoch(recipe.training)}.get("eval_strategy")
    has_eval = recipe.data.evaluates
    if strategy not in (None, "no") and not has_eval:
        raise ConflictError(
            f'eval_strategy is "{strategy}", and the data have no evaluation set.',
            where=recipe.place,
            fix="Add data.eval, data.eval_fraction or data.eval_rows, or remove eval_strategy.",
        )
    if recipe.data.streaming and (recipe.training.get("max_steps") or 0) < 1:
        raise ConflictError(
            "how many rows a stream has is not known before its end, so epochs have no length.",
            where=recipe.place,
            fix="Add max_steps, or drop data.streaming.",
        )
    check_callbacks(recipe.training, evaluates=has_eval and strategy != "no", where=recipe.place)
    _checkpoint(recipe)
    names = tuple(recipe.data.eval_sets)
    sets = None if names in ((), ("",)) else names
    formats = problems_of_formats(recipe.data, setup, setup.plan, probe_run(setup.plan.model))
    samples = sample_problems(recipe.settings, evaluates=has_eval)
    check(setup, also=[*package_problems(recipe.settings), *metric_problems(recipe.settings, sets), *samples, *formats])
    train = inspect_set(recipe.data.sources, setup, recipe.data.stop)
    evaluated = {name: inspect_set(one, setup, recipe.data.stop) for name, one in recipe.data.eval_sets.items()}
    return Checked(recipe, setup, train, evaluated)


def refuse_folder(recipe: Recipe) -> None:
    """Refuse an output folder that is the model's own or holds another run, and a checkpoint that is none."""
    _output_folder(recipe).refuse()
    refuse_absent(_checkpoint(recipe), output_dir(recipe))


def _output_folder(recipe: Recipe) -> OutputFolder:
    overwrite = bool(recipe.training.get("overwrite_output_dir"))
    return OutputFolder(output_dir(recipe), _checkpoint(recipe), overwrite, recipe.model.name)


def output_dir(recipe: Recipe) -> Path:
    """The folder that the recipe's run writes to."""
    return Path(config_of(recipe)["output_dir"]).expanduser()


def dry_run(checked: Checked, console: Console) -> None:
    """Load and prepare everything, show the plan of the run as `run_recipe` would, and train and write nothing.

    What the run would remove is said too.
    """
    from sftcore.train.record.dry_run import WRITES_NOTHING, PlanShownError, StopBeforeTraining

    folder = output_dir(checked.recipe)
    resume = _checkpoint(checked.recipe)
    found = choose(resume, folder).folder if resume in (AUTO, LAST) else resume
    checked.setup.plugins.all("prepare", plan=checked.setup.plan)
    view = view_of(checked.recipe, console, draws=bars_wanted())
    with named_by_file(checked), _aside() as aside, shown_by(view):
        trainer = _trainer(checked, {**WRITES_NOTHING, "output_dir": aside})
        trainer.remove_callback(trainer.recorder)
        trainer.add_callback(StopBeforeTraining(trainer, str(folder)))
        with suppress(PlanShownError):
            trainer.train(resume_from_checkpoint=found)
    if trainer.is_world_process_zero() and (gone := _output_folder(checked.recipe).replaced()):
        named = ", ".join(path.name for path in gone)
        print(visible(f"output     {folder}: would remove {named}"), file=sys.stderr)


@contextmanager
def _aside() -> Iterator[str]:
    """A folder that is gone afterwards, the same for all processes of a launch, which may share files through it."""
    if world_size() == 1:
        with tempfile.TemporaryDirectory() as folder:
            yield folder
        return
    shared = cache_folder() / f"dry-run-{os.environ.get('MASTER_PORT', '')}-{os.environ.get('TORCHELASTIC_RUN_ID', '')}"
    try:
        yield str(shared)
    finally:
        shutil.rmtree(shared, ignore_errors=True)


def run_recipe(
    checked: Checked,
    console: Console,
    *,
    before_training: Callable[[SFTTrainer], None] | None = None,
    changed: Mapping[str, Any] | None = None,
    view: View | None = None,
) -> Outcome:
    """Load, train and save.

    Args:
        checked: from `check_recipe`.
        console: where progress is shown.
        before_training: called with the trainer when model and data are ready.
        changed: settings with which the run differs from its recipe.
        view: what shows the run, if that is not what fits the console.
    """
    # before torch and transformers are imported, which some plugins have to be ahead of
    checked.setup.plugins.all("prepare", plan=checked.setup.plan)

    from sftcore.train.loop_callback import ReplaceOtherRun
    from sftcore.train.reporting.progress import RichProgress

    view = view or view_of(checked.recipe, console, draws=bars_wanted())
    with _no_empty_folder(output_dir(checked.recipe)), named_by_file(checked), shown_by(view):
        trainer = _trainer(checked, changed)
        trainer.add_callback(progress := RichProgress(console, trainer.metrics, view=view))
        if before_training is not None:
            before_training(trainer)
        trainer.add_callback(ReplaceOtherRun(_output_folder(checked.recipe)))
        with trainer.checkpoints.owned():
            result = trainer.train(resume_from_checkpoint=_checkpoint(checked.recipe))
            if not trainer.nothing_left or not held_model(Path(trainer.args.output_dir)):
                trainer.save_model()
    first = trainer.recorder.first_step
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry and entry["step"] > first]
    if not losses and not first:  # of a resumed run, transformers divides by steps that it has not taken
        losses = [result.training_loss]
    return Outcome(trainer, first, tuple(losses), progress.clock.seconds_of_steps, Path(trainer.args.output_dir))


@contextmanager
def _no_empty_folder(folder: Path) -> Iterator[None]:
    """Leave no new folder, nor new ones above it, behind a run that is refused before it writes anything."""
    new = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        yield
    finally:
        with suppress(OSError):  # the first that is not empty
            for one in new:
                one.rmdir()


def view_of(recipe: Recipe, console: Console, *, draws: bool) -> View | None:
    """What shows the run of a recipe on a console; with `disable_tqdm` it is plain lines."""
    return view_for(console, draws=draws and not recipe.training.get("disable_tqdm"))


def _trainer(checked: Checked, changed: Mapping[str, Any] | None = None) -> SFTTrainer:
    from sftcore.util.plain import plain

    recipe = checked.recipe
    trainer: SFTTrainer = trainer_of(checked, changed)
    files = data_digests(checked)
    trainer.recorder.train_files_sha256 = [files[str(path)] for path in checked.train.paths]
    trainer.recorder.extra |= {
        "recipe": plain({**recipe.raw, **({"block": list(recipe.block)} if recipe.block else {})}),
        "data_files_sha256": files,
        "data_sources": {name: one.record() for name, one in sources_by_name(checked).items()},
    }
    return trainer


def trainer_of(
    checked: Checked, changed: Mapping[str, Any] | None = None, *, kind: type[SFTTrainer] | None = None
) -> Any:
    """The trainer of a recipe's run, which shows no progress: of the class `kind`, with settings that are `changed`."""
    from transformers import PrinterCallback, ProgressCallback

    from sftcore.config.sft_config import SFTConfig
    from sftcore.data.source.several import load_set, split_set
    from sftcore.train.trainer import SFTTrainer

    recipe = checked.recipe
    args = SFTConfig(**{**config_of(recipe), **(changed or {})})
    with stage("Reading the data"):
        train = load_set(checked.train, streaming=recipe.data.streaming)
        sets = {name: load_set(one) for name, one in checked.eval.items()}
    evaluation = sets.get("", sets or None)
    if recipe.data.held_back is not None:
        train, evaluation = split_set(train, recipe.data.held_back, args.seed)
    trainer = (kind or SFTTrainer)(
        str(Path(recipe.model.name).expanduser()) if recipe.model.name else "",
        args=args,
        train_dataset=train,
        eval_dataset=evaluation,
    )
    trainer.data.labels |= {name: one.label for name, one in checked.train.names_in("train_dataset").items()}
    trainer.data.files |= {
        name: source.source.files
        for set_name, given in sets_by_name(checked).items()
        for name, source in given.names_in(set_name).items()
    }
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer


def data_digests(checked: Checked) -> dict[str, str]:
    """The name of each local data file with a digest: of its bytes, or of samples of them where it is streamed.

    A stream may be larger than what can be read before the first step.
    """
    from sftcore.train.record.environment import sampled_sha256
    from sftcore.train.record.manifest import sha256_of_files

    train, evaluation = checked.train.paths, [path for one in checked.eval.values() for path in one.paths]
    if checked.recipe.data.streaming:
        found = {str(path): sampled_sha256(path) for path in train}
    else:
        found = sha256_of_files(train)
    return {**found, **sha256_of_files(evaluation)}


def _checkpoint(recipe: Recipe) -> str | None:
    """What the recipe resumes from: "last", "auto" or a folder, which must exist."""
    wanted: str | None = recipe.training.get("resume_from_checkpoint")
    if wanted not in (None, AUTO, LAST) and not Path(str(wanted)).is_dir():
        raise RecipeError(
            f"there is no folder {wanted}.",
            where=f"{recipe.place}: resume_from_checkpoint",
            fix=f'Name a checkpoint in output_dir, or "{LAST}", or "{AUTO}", which may start from scratch.',
        )
    return wanted


def _data_folder(recipe: Recipe) -> str | None:
    """The folder of the training file, from which the relative image paths of its rows begin."""
    if not recipe.data.sources:
        return None
    source = recipe.data.sources[0].path
    first = Path(source if isinstance(source, str) else source[0]).expanduser()
    return str(first.parent.resolve()) if first.is_file() else None


def config_of(recipe: Recipe) -> dict[str, Any]:
    """The fields of SFTConfig for this recipe, so that recipes take the same way as Python users."""
    fields = {**recipe.training, "disable_tqdm": True}
    fields.setdefault("output_dir", default_output_dir(recipe.model.name or "model"))
    if recipe.data.evaluates and "eval_strategy" not in per_epoch(fields):
        fields.setdefault("eval_strategy", "epoch")
    if "image_folder" not in fields and (folder := _data_folder(recipe)):
        fields["image_folder"] = folder
    model = {key: value for key, value in attrs.asdict(recipe.model).items() if key in ("revision", "dtype") and value}
    return {
        **fields,
        "model_init_kwargs": {**model, **recipe.model.init_kwargs},
        "plugins": {kind: recipe.raw[kind] for kind in KINDS if recipe.raw.get(kind) is not None},
        "block": list(recipe.block),
    }
