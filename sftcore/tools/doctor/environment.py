"""Variables of the environment that contradict each other or the machine: of launchers, CUDA and Triton."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from sftcore.tools.doctor.line import Line, found_in
from sftcore.tools.doctor.machine import Machine
from sftcore.util.triton import triton_is_interpreted

_LAUNCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
_UNSET = "Start it with sftcore train --nproc N or torchrun, which set them all, or unset"
_OPTIONS = (
    "backend", "max_split_size_mb", "roundup_power2_divisions", "garbage_collection_threshold", "expandable_segments",
    "pinned_use_cuda_host_register", "pinned_num_register_threads", "pinned_use_background_threads",
    "max_non_split_rounding_mb", "release_lock_on_cudamalloc", "graph_capture_record_stream_reuse",
    "per_process_memory_fraction", "pinned_reserve_segment_size_mb", "roundup_bypass_threshold_mb",
)  # fmt: skip


def environment_lines(machine: Machine) -> list[Line]:
    """What is wrong with the launcher's variables, and with those of CUDA and Triton."""
    numbers = _numbers()
    size = numbers.get("WORLD_SIZE")
    launched = f"a launcher has started {size} processes" if size else "no launcher"
    return [
        *found_in("launcher", _launcher_faults(numbers, machine), launched),
        *found_in("environment", _variable_faults(machine), "nothing contradicts this machine"),
    ]


def _numbers() -> dict[str, int]:
    given = {name: os.environ[name] for name in _LAUNCH if name in os.environ}
    return {name: int(text) for name, text in given.items() if re.fullmatch(r"\s*-?\d+\s*", text)}


def _launcher_faults(numbers: dict[str, int], machine: Machine) -> Iterator[Line]:
    def fault(what: str, *names: str, fix: str = "") -> Line:
        return Line("launcher", "error", what, fix or f"{_UNSET} {' and '.join(names)}.")

    odd = [name for name in _LAUNCH if name in os.environ and name not in numbers]
    for name in odd:
        yield fault(f"{name} is {os.environ[name]!r}, which is not a number.", name)
    least = {"WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "RANK": 0, "LOCAL_RANK": 0, "MASTER_PORT": 0}
    below = [name for name, lowest in least.items() if numbers.get(name, lowest) < lowest]
    for name in below:
        yield fault(f"{name} is {numbers[name]}, and the least is {least[name]}.", name)
    if odd or below:
        return
    size, local_size = numbers.get("WORLD_SIZE"), numbers.get("LOCAL_WORLD_SIZE")
    rank, local_rank = numbers.get("RANK"), numbers.get("LOCAL_RANK")
    if rank is not None and size is None:
        yield fault(f"RANK is {rank}, and WORLD_SIZE is not set.", "RANK")
    if size is not None and size > 1 and rank is None:
        yield fault(f"WORLD_SIZE is {size}, and RANK is not set, so all would be the first.", "WORLD_SIZE")
    for high, low in (
        (("RANK", rank), ("WORLD_SIZE", size)),
        (("LOCAL_RANK", local_rank), ("LOCAL_WORLD_SIZE", local_size)),
    ):
        if high[1] is not None and low[1] is not None and high[1] >= low[1]:
            yield fault(f"{high[0]} is {high[1]}, and of {low[1]} processes ({low[0]}) the last is {low[1] - 1}.",
                        high[0], low[0])  # fmt: skip
    if size is not None and local_size is not None and local_size > size:
        yield fault(f"LOCAL_WORLD_SIZE is {local_size}, more than WORLD_SIZE, {size}.", "LOCAL_WORLD_SIZE")
    if rank is not None and local_rank is not None and local_rank > rank:
        yield fault(f"LOCAL_RANK is {local_rank}, more than RANK, {rank}.", "LOCAL_RANK")
    if size is not None and size > 1:
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
        if missing:
            yield fault(f"WORLD_SIZE is {size}, and {' and '.join(missing)} not set, so they cannot meet.",
                        "WORLD_SIZE")  # fmt: skip
    if numbers.get("MASTER_PORT", 0) > 65535:
        yield fault(f"MASTER_PORT is {numbers['MASTER_PORT']}, and the highest port is 65535.", "MASTER_PORT")
    if machine.uses_gpu and local_size is not None and local_size > len(machine.visible):
        count = len(machine.visible)
        yield fault(f"LOCAL_WORLD_SIZE is {local_size}, and {count} GPUs are visible.", fix=f"Start {count} at most.")
    chosen = [name for name in ("FSDP", "DEEPSPEED") if os.environ.get(f"ACCELERATE_USE_{name}") == "true"]
    if len(chosen) > 1:
        yield fault("the launcher has chosen FSDP and DeepSpeed.", fix="Keep one: unset ACCELERATE_USE_FSDP or "
                    "ACCELERATE_USE_DEEPSPEED.")  # fmt: skip


def _variable_faults(machine: Machine) -> Iterator[Line]:
    yield from _visible_devices(machine)
    if triton_is_interpreted() and machine.uses_gpu:
        yield _fault("TRITON_INTERPRET is set, so Triton's kernels would run in Python, thousands of times slower.",
                     "Unset TRITON_INTERPRET.")  # fmt: skip
    if machine.uses_gpu and os.environ.get("CUDA_LAUNCH_BLOCKING", "0") not in ("", "0"):
        yield Line("environment", "warning", "CUDA_LAUNCH_BLOCKING is set, so the host waits for each kernel.",
                   "Unset CUDA_LAUNCH_BLOCKING, unless you look for a fault.")  # fmt: skip
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        for part in filter(None, re.sub(r"\[.*?\]", "[]", os.environ.get(name, "")).split(",")):
            key, colon, value = (one.strip() for one in part.partition(":"))
            if not colon or not value or key not in _OPTIONS:
                yield _fault(f"{name} has {part.strip()!r}, which torch refuses.",
                             f"Write NAME:VALUE, as in {name}=expandable_segments:True, or unset it.")  # fmt: skip
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads is not None and not all(one.strip().isdigit() and int(one) > 0 for one in threads.split(",")):
        yield _fault(f"OMP_NUM_THREADS is {threads!r}, which is not a number of threads.", "Set a number, or unset it.")


def _visible_devices(machine: Machine) -> Iterator[Line]:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    words = [word.strip() for word in (chosen or "").split(",")]
    if chosen is None or words[0] in ("", "-1", "none", "NoDevFiles"):
        if chosen is not None and machine.gpus:
            yield Line("environment", "warning", f"CUDA_VISIBLE_DEVICES is {chosen!r}, which hides all GPUs.",
                       "Unset it to train on them.")  # fmt: skip
        return
    name = f"CUDA_VISIBLE_DEVICES is {chosen!r}"
    if not machine.gpus:
        yield _fault(f"{name}, and there is no NVIDIA GPU here, or no driver for it.", "Unset it, or mend the driver.")
    elif wrong := [word for word in words if word.isdigit() and int(word) >= len(machine.gpus)]:
        last = len(machine.gpus) - 1
        yield _fault(f"{name}, and there is no GPU {wrong[0]}: the last is {last}.", "Name GPUs that are there.")
    elif len({*words}) < len(words):
        yield _fault(f"{name}, which names one twice; CUDA then sees none.", "Name each once.")


def _fault(what: str, fix: str) -> Line:
    return Line("environment", "error", what, fix)
