"""What all code of a process shares is put back after a plugin's code, and the plugin is named."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings

import pytest
import torch

from sftcore.core.errors import BrokenPluginError
from sftcore.util.process_state import left_as_found

WHO = 'kernel "fast@acme" 1.0 in patch_kernels'


class Silent:
    """A stream that swallows what is written."""

    def write(self, text):
        return len(text)

    def flush(self):
        """Nothing is held back."""


CHANGES = {
    "sys.excepthook": (lambda: setattr(sys, "excepthook", print), lambda: sys.excepthook),
    "sys.unraisablehook": (lambda: setattr(sys, "unraisablehook", print), lambda: sys.unraisablehook),
    "threading.excepthook": (lambda: setattr(threading, "excepthook", print), lambda: threading.excepthook),
    "sys.stdout": (lambda: setattr(sys, "stdout", Silent()), lambda: sys.stdout),
    "sys.stderr": (lambda: setattr(sys, "stderr", Silent()), lambda: sys.stderr),
    "warnings.showwarning": (lambda: setattr(warnings, "showwarning", print), lambda: warnings.showwarning),
    "the filters of warnings": (lambda: warnings.simplefilter("ignore"), lambda: warnings.filters[:]),
    "the level below which logging": (lambda: logging.disable(logging.CRITICAL), lambda: logging.root.manager.disable),
    "what happens on SIGINT": (
        lambda: signal.signal(signal.SIGINT, lambda *_: None), lambda: signal.getsignal(signal.SIGINT)),
    "what happens on SIGTERM": (
        lambda: signal.signal(signal.SIGTERM, lambda *_: None), lambda: signal.getsignal(signal.SIGTERM)),
    "torch's default device from None to meta": (
        lambda: torch.set_default_device("meta"), lambda: torch.empty(1).device),
    "torch's default dtype from torch.float32 to torch.float16": (
        lambda: torch.set_default_dtype(torch.float16), torch.get_default_dtype),
    "torch's grad mode from True to False": (lambda: torch.set_grad_enabled(False), torch.is_grad_enabled),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_what_was_changed_is_put_back_and_told(what):
    change, look = CHANGES[what]
    before = look()
    with pytest.warns(UserWarning, match=f"^{WHO} changes {what}.*it is put back"), left_as_found(WHO):
        change()
    assert look() == before


@pytest.mark.parametrize("what", CHANGES)
def test_it_is_put_back_where_an_error_is_raised_which_alone_is_told(what):
    change, look = CHANGES[what]
    before = look()

    def fail():
        change()
        raise ZeroDivisionError

    with warnings.catch_warnings(record=True) as seen:
        with pytest.raises(ZeroDivisionError), left_as_found(WHO):
            fail()
        assert look() == before
    assert seen == []


@pytest.mark.parametrize("action", ["ignore", "error"])
@pytest.mark.parametrize("given", [{}, {"category": UserWarning}, {"message": ".*"}])
def test_no_filter_of_a_plugin_hides_the_warnings_of_all(action, given):
    with pytest.warns(UserWarning, match="the filters of warnings"), left_as_found(WHO):
        warnings.filterwarnings(action, **given)
    with pytest.warns(UserWarning, match="seen"):
        warnings.warn("seen", stacklevel=1)


@pytest.mark.parametrize(
    "given", [{"category": FutureWarning}, {"message": "one message"}, {"module": "a_library"}, {"append": True}]
)
def test_filters_of_a_message_a_module_or_another_category_are_left(given):
    with warnings.catch_warnings(record=True) as seen:
        with left_as_found(WHO):
            warnings.filterwarnings("ignore", **{"category": DeprecationWarning, **given})
        count = len(seen)
    assert count == 0


def test_filters_that_were_there_stay():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("ignore")
        kept = warnings.filters[:]
        with left_as_found(WHO):
            warnings.resetwarnings()
        assert warnings.filters[:1] == kept[:1]
    assert seen == []  # the user wants none


@pytest.mark.parametrize("name", ["_exit", "abort"])
def test_the_process_is_not_ended_without_a_word(name):
    own = getattr(os, name)
    with pytest.raises(BrokenPluginError, match=rf"^{WHO} calls os\.{name}, which ends"), left_as_found(WHO):
        getattr(os, name)(*([0] if name == "_exit" else []))
    assert getattr(os, name) is own


def test_another_thread_and_a_child_may_end_as_they_do(monkeypatch):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with left_as_found(WHO):
        thread = threading.Thread(target=os._exit, args=[1])
        thread.start()
        thread.join()
        monkeypatch.setattr(os, "getpid", lambda: -1)  # as in a child
        os._exit(2)
    assert ended == [1, 2]


def test_who_kept_the_function_has_the_real_one_afterwards(monkeypatch):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with left_as_found(WHO):
        kept = os._exit
    kept(3)
    assert ended == [3]


def test_it_may_be_entered_in_any_thread():
    faults = []

    def call():
        try:
            with left_as_found(WHO):
                pass
        except BaseException as error:
            faults.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert faults == []
