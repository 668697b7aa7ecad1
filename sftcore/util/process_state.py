"""What belongs to the whole process, and a plugin's code may have changed in passing: put back, and told."""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from attrs import frozen

from sftcore.core.errors import BrokenPluginError
from sftcore.util.warned import warn_of_plugin

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGPIPE", "SIGCHLD", "SIGTSTP")
"""Those by which a user, a scheduler or a library speaks to a process: all would cost more than most hooks."""


@frozen
class _Setting:
    """`get` reads it and `put` writes it; `shown` says whether its values are words that a reader knows."""

    what: str
    get: Callable[[], Any]
    put: Callable[[Any], Any]
    shown: bool = False


@contextmanager
def left_as_found(who: str) -> Iterator[None]:
    """Around a call of a plugin's code: what all code of the process shares is as before, and the process goes on.

    Args:
        who: the plugin with what is called of it, as in `loss "focal@acme" 1.2 in make_loss`.

    Raises:
        BrokenPluginError: it would end the process at once, or something was changed and SFTCORE_STRICT is set.
    """
    before = [(one, one.get()) for one in (*_of_python(), *_of_torch())]
    told = False
    try:
        with _kept_alive(who):
            yield
        told = True
    finally:
        changed = [(one, was, now) for one, was in before if (now := one.get()) is not was and _differs(now, was)]
        for one, was, _ in changed:
            one.put(was)
        for one, was, now in changed if told else ():  # after an error, that one is told
            values = f" from {was} to {now}" if one.shown else ""
            warn_of_plugin(f"{who} changes {one.what}{values}, for everything in the process; it is put back.")


@functools.cache
def _of_python() -> tuple[_Setting, ...]:
    found = [
        _Setting("the working folder", _folder, os.chdir, shown=True),
        _Setting("the filters of warnings, so that nobody sees one", _hiding, _put_filters),
        _Setting("the level below which logging is off", lambda: logging.root.manager.disable, logging.disable, True),
    ]
    for module, name in (
        (sys, "excepthook"), (sys, "unraisablehook"), (sys, "displayhook"), (sys, "stdin"), (sys, "stdout"),
        (sys, "stderr"), (threading, "excepthook"), (warnings, "showwarning"),
    ):  # fmt: skip
        found.append(
            _Setting(f"{module.__name__}.{name}", partial(getattr, module, name), partial(setattr, module, name))
        )
    for name in _SIGNALS:
        if (number := getattr(signal, name, None)) is not None:  # some systems have few
            get, put = partial(signal.getsignal, number), partial(_handle, number)
            found.append(_Setting(f"what happens on {name}", get, put))
    return tuple(found)


def _of_torch() -> tuple[_Setting, ...]:
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "get_default_dtype"):  # not imported, or not yet whole
        return ()
    return (
        _Setting("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype, shown=True),
        _Setting("torch's grad mode", torch.is_grad_enabled, torch._C._set_grad_enabled, shown=True),
        _Setting("torch's default device", _default_device, torch.set_default_device, shown=True),
    )


def _differs(now: Any, was: Any) -> bool:
    """Whether a value is another; torch's own hook for errors, which names the process of several, may come."""
    return bool(now != was) and not str(getattr(now, "__module__", "")).startswith("torch.distributed")


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return ""


def _default_device() -> Any:
    """The device that was set; None where none was, which is not the same as the CPU: setting one slows each call."""
    import torch

    return getattr(getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None), "device", None)


def _handle(number: int, handler: Any) -> None:
    # a handler that was not made by Python cannot be put back by it, nor can another thread set one
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)


def _hiding() -> list[Any]:
    """Filters by which no warning of any module is seen, or each is an error; those of one message or module may be."""
    return [
        one
        for one in warnings.filters
        if one[0] in ("ignore", "error") and not one[3] and not one[4] and issubclass(UserWarning, one[2])
        if one[1] is None or one[1].pattern in ("", ".*")
    ]


def _put_filters(was: list[Any]) -> None:
    for one in _hiding():
        if one not in was:
            warnings.filters.remove(one)  # type: ignore[attr-defined]
    for one in was:
        if one not in warnings.filters:
            warnings.filters.insert(0, one)  # type: ignore[attr-defined]


@contextmanager
def _kept_alive(who: str) -> Iterator[None]:
    """Inside, what would end the process without a word, in this thread, is an error that names the plugin."""
    process, thread, inside = os.getpid(), threading.get_ident(), [True]

    def refusing(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def end(*args: Any) -> Any:
            if not inside or os.getpid() != process or threading.get_ident() != thread or _asked_by_sftcore():
                return own(*args)
            raise BrokenPluginError(
                f"{who} calls os.{name}, which ends the process before anything is saved or told.",
                fix="Let its author raise an error instead.",
            )

        return end

    ends = {name: getattr(os, name) for name in ("_exit", "abort")}
    for name, own in ends.items():
        setattr(os, name, refusing(name, own))
    try:
        yield
    finally:
        inside.clear()  # who kept one of them has what it stands for
        for name, own in ends.items():
            setattr(os, name, own)


def _asked_by_sftcore() -> bool:
    return str(sys._getframe(2).f_globals.get("__name__", "")).startswith("sftcore.")
