"""Callbacks that settings name: early stopping, transformers' own, and those of installed distributions."""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from sftcore.config.settings.declared import source
from sftcore.core.errors import (
    BrokenPluginError,
    ConflictError,
    DuplicatePluginError,
    OptionTypeError,
    RecipeError,
    UnknownPluginError,
    nearest,
    quoted,
)

if TYPE_CHECKING:
    from transformers import TrainerCallback

GROUP = "sftcore.callback"
"""The entry points by which a distribution offers callbacks. No module is imported that none of them names."""
_BASES = ("TrainerCallback", "CallbackHandler", "DefaultFlowCallback")


def parse_callbacks(given: Any, *, where: str) -> dict[str, dict[str, Any]]:
    """The options of each callback: from a name, a list of names and mappings, or a mapping of names to options.

    >>> parse_callbacks(["a", {"b": {"x": 1}}], where="")
    {'a': {}, 'b': {'x': 1}}
    """
    found: dict[str, dict[str, Any]] = {}
    for one in given if isinstance(given, (list, tuple)) else [given]:
        pairs = {one: None} if isinstance(one, str) else {} if one is None else one
        if not isinstance(pairs, Mapping):
            raise OptionTypeError(
                f"a callback is a name, or a mapping of a name to its options, got {one!r}.", where=where
            )
        for name, options in pairs.items():
            if not isinstance(options or {}, Mapping):
                raise OptionTypeError(f"the options of {name} are a mapping, got {options!r}.", where=where)
            found[str(name)] = dict(options or {})
    return found


def check_callbacks(settings: Mapping[str, Any], *, evaluates: bool, where: str) -> None:
    """Find wrong names, and early stopping that nothing could end, before anything heavy is imported.

    Raises:
        SFTCoreError: with the setting.
    """
    patience = settings.get("early_stopping_patience")
    if patience is not None and not evaluates:
        raise ConflictError(
            "early_stopping_patience counts evaluations, and this run makes none.",
            where=where,
            fix="Give evaluation data and an eval_strategy, or drop it.",
        )
    for name in parse_callbacks(settings.get("callbacks"), where=f"{where}: callbacks"):
        _offered(name, where=f"{where}: callbacks")


def callbacks_of(args: Any) -> list[TrainerCallback]:
    """The callbacks that an SFTConfig asks for.

    Raises:
        SFTCoreError: with the setting that is wrong.
    """
    from transformers import EarlyStoppingCallback

    where = "SFTConfig"
    settings = {"early_stopping_patience": args.early_stopping_patience, "callbacks": args.callbacks}
    check_callbacks(settings, evaluates=args.eval_strategy != "no", where=where)
    made: list[TrainerCallback] = []
    if args.evals_per_epoch is not None or args.saves_per_epoch is not None:
        from sftcore.train.reporting.rhythm import PerEpoch

        made.append(PerEpoch(args.evals_per_epoch, args.saves_per_epoch))
    if args.early_stopping_patience is not None:
        made.append(EarlyStoppingCallback(args.early_stopping_patience, args.early_stopping_threshold))
    given = parse_callbacks(args.callbacks, where=f"{where}: callbacks")
    return [*made, *(_made(name, options, where=f"{where}: callbacks") for name, options in given.items())]


def _made(name: str, options: Mapping[str, Any], *, where: str) -> TrainerCallback:
    import transformers

    offered = _offered(name, where=where)
    if offered is None:
        kind = getattr(transformers, name)
    else:
        try:
            kind = offered.load()
        except Exception as error:  # a third party's module may raise anything
            raise BrokenPluginError(
                f"the callback {name} cannot be imported from {offered.value}: {type(error).__name__}: {error}.",
                where=where,
            ) from error
    if not (inspect.isclass(kind) and issubclass(kind, transformers.TrainerCallback)):
        raise BrokenPluginError(f"{name} is not a subclass of transformers.TrainerCallback.", where=where)
    try:
        inspect.signature(kind).bind(**options)
    except TypeError as error:
        known = [one for one in inspect.signature(kind).parameters if one not in ("args", "kwargs")]
        offer = f" It takes: {', '.join(known)}." if known else " It takes no options."
        raise RecipeError(f"{name}: {error}.{offer}", where=where) from error
    return kind(**options)


def _offered(name: str, *, where: str) -> EntryPoint | None:
    """The entry point of a callback; None where it is transformers' own."""
    plain, _, distribution = name.partition("@")
    every = entry_points(group=GROUP)
    found = [one for one in every if one.name == plain and distribution in ("", one.dist and one.dist.name)]
    if len({one.dist and one.dist.name for one in found}) > 1:
        offers = quoted(f"{plain}@{one.dist.name}" for one in found if one.dist)
        raise DuplicatePluginError(f'several distributions offer the callback "{plain}".', where=where, fix=offers)
    if found:
        return found[0]
    if name in _of_transformers():
        return None
    names = {*(one.name for one in every), *_of_transformers()}
    raise UnknownPluginError(
        f'there is no callback named "{name}".{nearest(name, names)}',
        where=where,
        fix=f'Known are {quoted(sorted(names))}; a distribution offers its own as an entry point of "{GROUP}".',
    )


@functools.cache
def _of_transformers() -> tuple[str, ...]:
    """The callbacks of the installed transformers, read from its source: to import it takes seconds."""
    tree = ast.parse(source("transformers.trainer_callback"))
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    return tuple(name for name in classes if name.endswith("Callback") and name not in _BASES)
