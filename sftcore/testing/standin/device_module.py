"""What `torch.standin` answers to torch, accelerate and transformers: memory, random states, streams and events."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from sftcore.testing.standin.waits import wait


class Stream:
    """A stream in which everything is done already when it is asked for."""

    def __init__(self, device: Any = None, priority: int = 0, **kwargs: Any) -> None:
        self.device, self.priority = torch.device("standin:0"), priority

    def synchronize(self) -> None:
        wait("stream.synchronize")

    def query(self) -> bool:
        return True

    def record_event(self, event: Event | None = None) -> Event:
        return Event() if event is None else event

    def wait_event(self, event: Event) -> None:
        """The device waits, not the host."""

    def wait_stream(self, stream: Stream) -> None:
        """The device waits, not the host."""

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: Any) -> None:
        """Back in the stream before, which is the same."""


class Event:
    """An event that has happened already."""

    def __init__(self, enable_timing: bool = False, **kwargs: Any) -> None:
        self.enable_timing = enable_timing

    def record(self, stream: Stream | None = None) -> None:
        """Nothing is left to be done before it."""

    def wait(self, stream: Stream | None = None) -> None:
        """The device waits, not the host."""

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        wait("event.synchronize")

    def elapsed_time(self, other: Event) -> float:
        return 0.0


class _Memory:
    """Memory that nobody counts."""

    empty_cache = reset_peak_memory_stats = reset_max_memory_allocated = staticmethod(lambda *_: None)
    memory_allocated = max_memory_allocated = memory_reserved = max_memory_reserved = staticmethod(lambda *_: 0)
    mem_get_info = staticmethod(lambda *_: (1 << 34, 1 << 34))
    memory_stats = staticmethod(lambda *_: {})


class DeviceModule(_Memory):
    """One device, with random numbers from the CPU's generator, so that a run draws the same on both."""

    Stream, Event = Stream, Event
    memory = _Memory
    _initialized = True
    is_available = is_initialized = staticmethod(lambda: True)
    init = _lazy_init = staticmethod(lambda: None)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    set_device = staticmethod(lambda *_: None)
    get_device_name = staticmethod(lambda *_: "stand-in")
    get_device_capability = staticmethod(lambda *_: (0, 0))
    synchronize = staticmethod(lambda *_: wait("synchronize"))
    current_stream = default_stream = staticmethod(lambda *_: Stream())
    set_stream = staticmethod(lambda *_: None)
    _is_in_bad_fork = staticmethod(lambda: False)
    manual_seed = manual_seed_all = staticmethod(lambda seed: None)
    get_rng_state = staticmethod(lambda *_: torch.get_rng_state())
    set_rng_state: Callable[..., Any] = staticmethod(lambda state, *_: torch.set_rng_state(state))
    get_rng_state_all = staticmethod(lambda: [torch.get_rng_state()])
    set_rng_state_all = staticmethod(lambda states: torch.set_rng_state(states[0]))
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16])
    is_bf16_supported = staticmethod(lambda *_: True)

    @staticmethod
    def stream(stream: Any) -> Any:
        return contextlib.nullcontext(stream)

    @staticmethod
    def device(device: Any) -> Any:
        return contextlib.nullcontext(device)
