"""Handles models whose weights DeepSpeed's ZeRO-3 partitions across all processes as soon as they are loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def num_weights(parameter: torch.nn.Parameter) -> int:
    """The number of elements, even if ZeRO-3 has partitioned the parameter and left none here."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


@contextlib.contextmanager
def callable_in_parts(model: torch.nn.Module) -> Iterator[None]:
    """Make a model that ZeRO-3 has partitioned callable before DeepSpeed runs it, by all processes, without gradients.

    The weights of each module are gathered while it runs, so that no process ever holds the whole model.
    """
    own = {module: list(module.parameters(recurse=False)) for module in model.modules()}
    taken_apart = {module: kept for module, kept in own.items() if any(hasattr(one, "ds_id") for one in kept)}
    if not taken_apart:
        yield
        return
    from deepspeed.runtime.zero import GatheredParameters

    running: list[tuple[torch.nn.Module, Any]] = []

    def before(module: torch.nn.Module, _: Any) -> None:
        running.append((module, GatheredParameters(taken_apart[module])))
        running[-1][1].__enter__()

    def after(module: torch.nn.Module, *_: Any) -> None:
        while running:  # more than one after a failed forward pass
            last, gathered = running.pop()
            gathered.__exit__(None, None, None)
            if last is module:
                break

    hooks = [module.register_forward_pre_hook(before, prepend=True) for module in taken_apart]
    hooks += [module.register_forward_hook(after, always_call=True) for module in taken_apart]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for _, gathered in reversed(running):
            gathered.__exit__(None, None, None)
