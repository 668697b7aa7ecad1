"""The arguments of a trainer: each is of the kind that the trainer takes, and is called as it expects."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sftcore.core.errors import OptionTypeError, UnknownKeyError
from sftcore.core.types import Problem
from sftcore.util.shown import shortened

_CALLED: dict[str, tuple[str, ...]] = {
    "data_collator": ("rows",),
    "compute_loss_func": ("outputs", "labels", "num_items_in_batch"),
    "compute_metrics": ("prediction",),
    "preprocess_logits_for_metrics": ("logits", "labels"),
    "formatting_func": (),
}
"""Arguments that are called, and with what; nothing where a row names what is wrong with the call."""

_BY_KEYWORD: dict[str, dict[str, Any]] = {"compute_loss_func": {"num_items_in_batch": None}}
"""Which of it goes by its name."""

_HANDED = ("model", "processing_class", "optimizer", "lr_scheduler", "train_dataloader", "eval_dataloader")
"""What transformers' CallbackHandler calls each method of a callback with, behind args, state and control."""

_HANDED_AT = {"on_log": ("logs",), "on_evaluate": ("metrics",), "on_predict": ("metrics",)}

_MAY_FOLLOW: dict[str, dict[str, Any]] = {
    "compute_loss_func": {"weights": None},
    "compute_metrics": {"compute_result": True},
}
"""What is passed only to a function that takes it."""


def refuse_kinds(given: Mapping[str, Any]) -> None:
    """Refuse arguments of the trainer that are of another kind than it takes.

    Raises:
        OptionTypeError: with the name of the argument.
    """
    expected = {name: ("something that is called", callable(given[name])) for name in _CALLED}
    callbacks, optimizers, made = given["callbacks"], given["optimizers"], given["optimizer_cls_and_kwargs"]
    expected["callbacks"] = ("a list of callbacks", isinstance(callbacks, (list, tuple)))
    expected["optimizers"] = ("an optimizer and a schedule", _is_pair(optimizers))
    pair = _is_pair(made) and callable(made[0]) and isinstance(made[1], Mapping)
    expected["optimizer_cls_and_kwargs"] = ("a class and a mapping", pair)
    if expected["callbacks"][1] and (wrong := [one for one in callbacks if not _is_callback(one)]):
        raise OptionTypeError(
            f"callbacks are TrainerCallbacks, got {type(wrong[0]).__name__} {shortened(wrong[0])}.",
            where="SFTTrainer",
            fix="Pass names in SFTConfig(callbacks=…)." if isinstance(wrong[0], str) else "",
        )
    for name, (what, right) in expected.items():
        if given[name] is not None and not right:
            place = _place_of(given[name])
            shown = "" if place else f" {shortened(given[name])}"
            raise OptionTypeError(
                f"{name} is {what}, got {type(given[name]).__name__}{shown}.",
                where="SFTTrainer",
                fix=f"Pass it by its name: {place}=…, since others stand before it." if place else "",
            )
    for name in _CALLED:
        _refuse_call(name, given[name])
    for name in _unknown_of(*made) if made is not None else ():
        known = inspect.signature(made[0]).parameters
        raise UnknownKeyError(name, known.keys() - {"params", "self"}, where="optimizer_cls_and_kwargs")


def _place_of(value: Any) -> str:
    """The argument that takes such a value, which was given in another's place; empty where it is not known."""
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase, ProcessorMixin, TrainingArguments

    kinds: list[tuple[Any, str]] = [
        ((Dataset, IterableDataset), "train_dataset"),
        (TrainingArguments, "args"),
        ((PreTrainedTokenizerBase, ProcessorMixin), "processing_class"),
    ]
    return next((name for kind, name in kinds if isinstance(value, kind)), "")


def _refuse_call(name: str, called: Any) -> None:
    """Refuse a class in place of its object, and a function that does not take what it will be called with.

    Raises:
        OptionTypeError: with what it is called with; some are called for the first time after hours.
    """
    if isinstance(called, type):
        raise OptionTypeError(
            f"{name} is the class {called.__name__}.", where="SFTTrainer", fix=f"Pass an object: {called.__name__}(…)."
        )
    if called is None or not _CALLED[name]:
        return
    by_keyword = _BY_KEYWORD.get(name, {})
    positional = [None for one in _CALLED[name] if one not in by_keyword]
    for more in ({}, _MAY_FOLLOW.get(name, {})):
        if _takes(called, *positional, **by_keyword, **more):
            return
    spelled = getattr(called, "__name__", type(called).__name__)
    raise OptionTypeError(
        f"{name} is called with {', '.join(_CALLED[name])}, and {spelled} cannot be called so.",
        where="SFTTrainer",
        fix=f"Write it with these parameters: ({', '.join(_CALLED[name])}).",
    )


def uncallable(callback: Any) -> Iterator[Problem]:
    """Methods of a callback, or of a class of one, that cannot take what transformers calls them with."""
    from transformers import TrainerCallback

    kind = callback if isinstance(callback, type) else type(callback)
    for moment in (name for name in vars(TrainerCallback) if name.startswith("on_")):
        method = getattr(kind, moment, None)
        if method is None or method is getattr(TrainerCallback, moment):
            continue
        bound = isinstance(inspect.getattr_static(kind, moment), (staticmethod, classmethod))
        positional = (None,) * (3 if bound else 4)
        if not _takes(method, *positional, **dict.fromkeys((*_HANDED, *_HANDED_AT.get(moment, ())))):
            yield Problem(
                f"transformers calls {kind.__name__}.{moment} with keywords that it does not take, such as model.",
                "callbacks",
                f"Write it as def {moment}(self, args, state, control, **kwargs).",
            )


def of_mapping(compute: Callable[..., Any]) -> Callable[..., Any]:
    """The user's `compute_metrics`, whose result has to be a mapping wherever it is read."""

    def compute_metrics(found: Any, **kwargs: Any) -> Any:
        metrics = compute(found, **kwargs)
        if kwargs.get("compute_result", True) and not isinstance(metrics, Mapping):
            returned = "None" if metrics is None else f"{type(metrics).__name__} {shortened(metrics)}"
            raise OptionTypeError(
                f"compute_metrics returned {returned}.",
                where="SFTTrainer",
                fix='Return a mapping of names to numbers, such as {"accuracy": 0.5}.',
            )
        return metrics

    return compute_metrics


def _takes(called: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    """Whether it can be called so; also where it does not say with what it is called."""
    try:
        inspect.signature(called).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def _is_pair(given: Any) -> bool:
    return isinstance(given, (tuple, list)) and len(given) == 2


def _is_callback(one: Any) -> bool:
    return callable(getattr(one, "on_init_end", None))


def _unknown_of(optimizer: Any, kwargs: Mapping[str, Any]) -> list[str]:
    """Arguments that an optimizer's class does not take."""
    try:
        known = inspect.signature(optimizer).parameters
    except (TypeError, ValueError):  # it is not called, or does not say with what
        return []
    if any(one.kind is one.VAR_KEYWORD for one in known.values()):
        return []
    return [name for name in kwargs if name not in known]
