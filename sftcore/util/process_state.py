"""What belongs to the whole process, and a plugin's code may have changed in passing: put back, and told."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sftcore.util.warned import warn_of_plugin


@contextmanager
def left_as_found(who: str) -> Iterator[None]:
    """Around a call of a plugin's code: torch's defaults and the working folder are those from before.

    Args:
        who: the plugin with what is called of it, as in `loss "focal@acme" 1.2 in make_loss`.

    Raises:
        BrokenPluginError: something was changed, and SFTCORE_STRICT is set.
    """
    before = [(what, get, put, get()) for what, get, put in _settings()]
    yield
    for what, get, put, was in before:
        if (now := get()) != was:
            put(was)
            warn_of_plugin(f"{who} changes {what} from {was} to {now}, for everything in the process; it is put back.")


def _settings() -> Iterator[tuple[str, Callable[[], Any], Callable[[Any], Any]]]:
    yield "the working folder", _folder, os.chdir
    if (torch := sys.modules.get("torch")) is not None and hasattr(torch, "get_default_dtype"):
        yield "torch's default dtype", torch.get_default_dtype, torch.set_default_dtype
        yield "torch's grad mode", torch.is_grad_enabled, torch._C._set_grad_enabled


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return ""
