"""Errors of libraries become ours; a user's own, and what callers look for by class, stay as they are."""

from __future__ import annotations

import json

import pytest
import torch

from sftcore.core.errors import ModelError, RecipeError
from sftcore.util.foreign import in_our_words


def test_an_error_of_a_library_is_one_of_ours_with_its_cause():
    code = compile("def f():\n    with words:\n        json.loads('{')", "ours.py", "exec")
    scope = {"__name__": "sftcore.somewhere", "json": json, "words": in_our_words("no", RecipeError, where="here")}
    exec(code, scope)
    with pytest.raises(RecipeError, match="here: no: JSONDecodeError: Expecting property name") as caught:
        scope["f"]()
    assert isinstance(caught.value.__cause__, json.JSONDecodeError)


def test_an_error_of_the_users_is_left_alone():
    with pytest.raises(ZeroDivisionError), in_our_words("no", ModelError):
        1 / 0  # noqa: B018


def test_the_end_of_a_devices_memory_is_left_alone():
    with pytest.raises(torch.OutOfMemoryError), in_our_words("no", ModelError):
        raise torch.OutOfMemoryError


def test_what_happens_inside_the_named_function_is_left_alone():
    code = compile("def steps():\n    json.loads('{')\ndef f():\n    with words:\n        steps()", "ours.py", "exec")
    scope = {"__name__": "sftcore.somewhere", "json": json, "words": in_our_words("no", ModelError, until="steps")}
    exec(code, scope)
    with pytest.raises(json.JSONDecodeError):
        scope["f"]()
