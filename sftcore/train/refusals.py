"""What transformers would find in the first step, the first evaluation or the last save, found before all of them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from sftcore.config.fields import config_fields
from sftcore.config.near_names import unknown_key
from sftcore.config.settings.combined import metric_problems, package_problems, sample_problems
from sftcore.config.settings.older_names import use_current_names
from sftcore.core.errors import (
    CheckError,
    ConflictError,
    DataError,
    ModelError,
    nearest,
)
from sftcore.core.types import Problem
from sftcore.data.mixing.mixture import has_length
from sftcore.data.ranks import shares_of_batches
from sftcore.model.unwrap import is_peft_model
from sftcore.train.arguments import model_argument
from sftcore.train.own.given import refuse_kinds, uncallable
from sftcore.train.own.hooks import hook_lost_in_shards, per_sample_wrapper
from sftcore.train.record.compiled import compile_problems
from sftcore.train.trackers.usable import unusable_trackers
from sftcore.util.foreign import in_our_words
from sftcore.util.warned import warn

if TYPE_CHECKING:
    from sftcore.config.sft_config import SFTConfig

OF_FROM_PRETRAINED = (
    "load_in_8bit", "load_in_4bit", "torch_dtype", "dtype", "device_map", "attn_implementation", "revision",
)  # fmt: skip
"""Arguments of `from_pretrained` that older trainers took themselves."""


def accepted(given: Mapping[str, Any]) -> tuple[Any, SFTConfig, Any]:
    """A trainer's model, configuration and processing class, with what was given under an older name or elsewhere.

    Args:
        given: the arguments of the constructor by name, `older` those that it does not have.

    Raises:
        OptionTypeError: an argument is of another kind than the trainer takes.
        ConflictError: an argument has two values.
        UnknownKeyError: nobody knows an argument's name.
    """
    from sftcore.config.sft_config import as_sft_config

    refuse_kinds(given)
    refuse_per_sample(given["model"], (given["optimizers"] or [None])[0])
    model, processing_class, tokenizer = model_argument(given["model"]), given["processing_class"], given["tokenizer"]
    if tokenizer is not None:
        if processing_class is not None:
            raise ConflictError("tokenizer and processing_class are the same argument.", fix="Keep processing_class.")
        warn("tokenizer= is now processing_class=.", FutureWarning)
    name = model if isinstance(model, str) else getattr(model.config, "_name_or_path", "") or "model"
    made = as_sft_config(given["args"], name)
    if made.optimizer_in_backward:
        given_one = given["optimizers"][0] is not None or given["optimizer_cls_and_kwargs"] is not None
        refuse_in_backward(own=not given_one, copies=False)
    if given["older"]:
        made = copy.copy(made)  # the user's own may be another trainer's too
        _put_in_place(made, given["older"], given.keys() - {"self", "older", "__class__"})
        made.settle()
    return model, made, processing_class if processing_class is not None else tokenizer


def _put_in_place(args: SFTConfig, older: Mapping[str, Any], own: Iterable[str]) -> None:
    """Set arguments of other trainers where they belong, with a warning."""
    current = dict(older)
    use_current_names(current, where="SFTTrainer")
    for name, value in current.items():
        if name in OF_FROM_PRETRAINED:
            inside = args.model_init_kwargs if isinstance(args.model_init_kwargs, dict) else {}
            before, now, place = inside.get(name), {**inside, name: value}, "model_init_kwargs"
            spelled = f"SFTConfig(model_init_kwargs={{{name!r}: …}})"
        elif name in config_fields():
            default = type(args).__dataclass_fields__[name].default
            before, now, place = getattr(args, name), value, name
            before = None if before == default else before
            spelled = f"SFTConfig({name}=…)"
        else:
            known = (*own, *config_fields(), *OF_FROM_PRETRAINED)
            raise unknown_key(name, known, where="SFTTrainer")
        if before is not None and before != value:
            raise ConflictError(
                f"{name} is {value!r} here, and {before!r} in args.", where="SFTTrainer", fix="Keep args."
            )
        if name in older:
            warn(f"SFTTrainer: {name} goes in args={spelled}.", FutureWarning)
        setattr(args, place, now)


def run_problems(
    args: SFTConfig, train_dataset: Any, eval_dataset: Any, own_metrics: bool, callbacks: Any
) -> Iterator[Problem]:
    """Problems of the settings with what the trainer was given.

    Args:
        args: of the run.
        train_dataset, eval_dataset: as they were given.
        own_metrics: whether something of the user's adds metrics to those of an evaluation.
        callbacks: of the user, or None.
    """
    settings = args.to_settings()
    missing = [*package_problems(settings)]
    yield from missing
    if not missing:
        yield from unusable_trackers(args.report_to)
    for name in ("evals_per_epoch", "saves_per_epoch"):
        if not has_length(train_dataset) and getattr(args, name) is not None:
            yield Problem(
                f"{name} counts epochs, and how many rows a stream has is not known before its end.",
                fix=f"Set {name.partition('s_')[0]}_steps.",
            )
    yield from compile_problems(settings, args.device.type)
    if not has_length(train_dataset) and args.max_steps < 1:
        yield Problem(
            "how many rows a stream has is not known before its end, so epochs have no length.", fix="Set max_steps."
        )
    if isinstance(eval_dataset, Mapping) and not eval_dataset:
        eval_dataset = None
    yield from sample_problems(settings, evaluates=eval_dataset is not None)
    if eval_dataset is None and (strategy := str(args.eval_strategy.value)) != "no":
        yield Problem(
            f'eval_strategy is "{strategy}", and there is no eval_dataset.', fix="Pass eval_dataset, or drop it."
        )
    elif eval_dataset is None and args.eval_on_start:
        yield Problem("eval_on_start is set, and there is no eval_dataset.", fix="Pass eval_dataset, or drop it.")
    elif not own_metrics:
        sets = tuple(map(str, eval_dataset)) if isinstance(eval_dataset, Mapping) else None
        yield from metric_problems(settings, sets)
    elif isinstance(eval_dataset, Mapping) and settings.get("metric_for_best_model"):
        yield from _of_no_set(str(settings["metric_for_best_model"]), tuple(map(str, eval_dataset)))
    yield from callback_problems(args, callbacks or ())


def _of_no_set(metric: str, sets: tuple[str, ...]) -> Iterator[Problem]:
    """A metric of the user's that none of several sets has: each one's begin with its name."""
    bare = metric.removeprefix("eval_")
    if not any(bare.startswith(f"{one}_") for one in sets):
        yield Problem(
            f'there are several evaluation sets, and "{metric}" is of none of them.',
            "metric_for_best_model",
            f"Write the name of the set before it: {' or '.join(f'{one}_{bare}' for one in sets)}.",
        )


def callback_problems(args: SFTConfig, callbacks: Iterable[Any]) -> Iterator[Problem]:
    """Callbacks that would stop the run at its start, or when they are called first."""
    from transformers import EarlyStoppingCallback

    for one in callbacks:
        yield from uncallable(one)
        kind = one if isinstance(one, type) else type(one)
        if not issubclass(kind, EarlyStoppingCallback):
            continue
        metric: str | None = args.metric_for_best_model
        if metric is None:
            yield Problem(
                "early stopping needs to know what is best.",
                "EarlyStoppingCallback",
                'Set metric_for_best_model, such as "loss".',
            )
        if str(args.eval_strategy.value) == "no":
            yield Problem(
                'early stopping follows evaluations, and eval_strategy is "no".',
                "EarlyStoppingCallback",
                'Set eval_strategy to "steps" or "epoch".',
            )


def adds_metrics(trainer: type, base: type, compute_metrics: Any, callbacks: Any) -> bool:
    """Whether a user's code adds to the metrics of an evaluation: a function, a method or a callback of their own."""
    methods = ("evaluate", "evaluation_loop", "log", "prediction_step", "compute_loss")
    if compute_metrics is not None or any(getattr(trainer, name) is not getattr(base, name) for name in methods):
        return True
    kinds = [one if isinstance(one, type) else type(one) for one in callbacks or ()]
    owners = [next((base for base in kind.__mro__ if "on_evaluate" in vars(base)), kind) for kind in kinds]
    return any(owner.__module__.partition(".")[0] not in ("transformers", "sftcore") for owner in owners)


def of_transformers() -> AbstractContextManager[None]:
    """Around transformers' constructor, whose errors become ours."""
    return in_our_words("transformers does not take these arguments", ConflictError, where="SFTTrainer")


@contextmanager
def until_first_step(args: SFTConfig, callbacks: Iterable[Any]) -> Iterator[None]:
    """Around a training: what stops it before its first step is said in our words.

    Raises:
        CheckError: a callback that was added since the trainer was made would stop it.
        ModelError: a library did.
    """
    if found := list(callback_problems(args, callbacks)):
        raise CheckError(found)
    # what a checkpoint holds that is not data is said where checkpoints are read
    leaves = (pickle.UnpicklingError,)
    with in_our_words("the training cannot begin", ModelError, until="_run_epoch", leaves=leaves):
        yield


def refuse_no_batch(args: SFTConfig, train_dataset: Any, eval_dataset: Any) -> None:
    """Refuse prepared data that give no batch, because the last one is dropped where it is not full.

    Raises:
        DataError: with the name of the data set.
    """
    if not args.dataloader_drop_last:
        return
    evaluated = eval_dataset if isinstance(eval_dataset, Mapping) else {"eval_dataset": eval_dataset}
    evaluated = evaluated if args.eval_strategy != "no" else {}
    for name, rows, size in (
        ("train_dataset", train_dataset, args.per_device_train_batch_size),
        *((str(name), rows, args.per_device_eval_batch_size) for name, rows in evaluated.items()),
    ):
        full = size * shares_of_batches(args)[1]
        if isinstance(rows, Sized) and len(rows) < full:
            raise DataError(
                f"dataloader_drop_last leaves no batch: {len(rows)} rows, and a batch of all processes has {full}.",
                where=name,
                fix="Drop dataloader_drop_last, or use smaller batches.",
            )


def refuse_in_backward(*, own: bool, copies: bool) -> None:
    """Refuse steps within the backward pass of an optimizer that the user has made, or that steps on master copies.

    Raises:
        ConflictError: with what it is.
    """
    if own and not copies:
        return
    what = "master copies of the weights, which are stepped on all at once"
    what = what if own else "an optimizer of its own, and only one that it makes itself can step so"
    raise ConflictError(f"the run has {what}.", where="optimizer_in_backward", fix="Drop optimizer_in_backward.")


def refuse_no_set(known: Any, asked: Any) -> None:
    """Refuse an evaluation of no rows, or of a set that the trainer does not have.

    Args:
        known: the trainer's evaluation sets.
        asked: what `evaluate` was given: a data set, the name of one, or None for the trainer's own.

    Raises:
        DataError: with the names that there are.
    """
    names = list(known) if isinstance(known, Mapping) else []
    if asked is None and known is None:
        raise DataError("there is no eval_dataset.", where="evaluate", fix="Pass one, here or to SFTTrainer.")
    if isinstance(asked, str) and asked not in names:
        offer = f"{nearest(asked, names)} Its names: {', '.join(names)}." if names else " Pass the data set itself."
        raise DataError(f'eval_dataset has no set named "{asked}".{offer}', where="evaluate")


def refuse_per_sample(model: Any, optimizer: Any) -> None:
    """Refuse what takes a gradient for every row: rows share one sum here, and its bound on each would not hold.

    Raises:
        ConflictError: with what was found.
    """
    if found := per_sample_wrapper(model, optimizer):
        raise ConflictError(
            f"{found} takes gradients by rows, and SFTTrainer sums the losses of tokens over rows, packed rows and "
            "accumulated batches: what it clips and adds noise to would not be one row's.",
            where="SFTTrainer",
            fix="Train with a loop of Opacus' own, or pass the model and the optimizer that it has not made private.",
        )


def refuse_lost_hooks(model: Any, *, sharded: bool) -> None:
    """Refuse hooks on parameters that FSDP would drop without a word.

    Raises:
        ConflictError: with the first such hook.
    """
    if sharded and (found := hook_lost_in_shards(model)):
        raise ConflictError(
            f"{found} would never be called: FSDP puts shards in the place of parameters, without their hooks.",
            where="fsdp",
            fix="Change gradients in a callback's on_pre_optimizer_step, or register_post_accumulate_grad_hook on the "
            "shards in on_train_begin.",
        )


def refuse_unsavable(model: Any) -> None:
    """Refuse a generation configuration that transformers would not save with the model, after all of the training.

    Raises:
        ModelError: with what transformers finds wrong.
    """
    config = getattr(model, "generation_config", None)
    if config is None or is_peft_model(model):
        return
    try:
        config.validate(strict=True)
    except ValueError as error:
        said = " ".join(str(error).split())
        raise ModelError(
            f"the model's generation configuration could not be saved with it: {said}",
            where="generation_config",
            fix="Set model.generation_config.do_sample = True, or mend the model's generation_config.json.",
        ) from error
