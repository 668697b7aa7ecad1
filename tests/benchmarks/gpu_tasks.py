"""Tasks that fail in the ways in which tasks on a GPU do."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from gpu_run.worker import NotRun


def right(value: int = 1) -> dict[str, int]:
    return {"value": value}


def wrong() -> None:
    raise AssertionError("the losses are others")


def impossible() -> None:
    raise NotRun("no kernel")


def fatal() -> None:
    os._exit(3)


def endless() -> Iterator[int]:
    yield 1
    time.sleep(600)
