"""The most bytes that a run's tensors take on the CPU, as torch's own allocator reports them.

Nothing here knows shapes: the profiler sees each allocation and each release while the run trains.
"""

from __future__ import annotations

import gc
from typing import Any

from torch.profiler import ProfilerActivity, profile

from sftcore.train.run import trainer_of

ALONE = {"report_to": "none", "save_strategy": "no", "logging_steps": 1000, "dataset_cache": False}


def peak_of_run(checked: Any, folder: Any, **changed: Any) -> int:
    """Train the run of a recipe, and return the most bytes that were taken at one time, its weights included."""
    trainer = trainer_of(checked, {**ALONE, "output_dir": str(folder), **changed})
    trainer.prove()
    before = sum(_held(trainer.model).values())
    gc.collect()
    gc.disable()  # what an earlier test left must not be released within the measurement
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            trainer.train()
    finally:
        gc.enable()
    events = [one for one in profiled.profiler.kineto_results.events() if one.name() == "[memory]"]
    now = peak = 0
    for one in sorted(events, key=lambda event: event.start_ns()):
        now += one.nbytes()
        peak = max(peak, now)
    return before + peak


def _held(model: Any) -> dict[int, int]:
    """The bytes of each storage of a model's, with the scales of quantised weights."""
    tensors = [*model.parameters(), *model.buffers()]
    for one in list(tensors):
        state = getattr(one, "quant_state", None)
        if state is not None:
            nested = getattr(state, "state2", None)
            tensors += [state.absmax, *([] if nested is None else [nested.absmax])]
    return {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
