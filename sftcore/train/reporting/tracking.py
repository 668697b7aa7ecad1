"""The environment in which trackers read where they file a run, for as long as the run trains."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sftcore.config.settings.tracker import environment_for


@contextmanager
def tracked(args: Any) -> Iterator[None]:
    """Around what may start a tracker: what `tracker` of these settings says is in the environment, and gone after."""
    wanted = environment_for({"tracker": args.tracker, "report_to": args.report_to})
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
