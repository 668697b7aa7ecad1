"""A verb that is called from a program leaves the program's environment as it found it."""

from __future__ import annotations

import logging
import os

import pytest
from click.testing import CliRunner

from sftcore.cli import cli


@pytest.mark.parametrize("words", [["merge", "nowhere"], ["quantize", "nowhere"], ["train", "model=nowhere"]])
def test_no_environment_variable_or_level_is_left_behind(words, monkeypatch):
    for name in ("TQDM_DISABLE", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.delenv(name, raising=False)
    before, level = dict(os.environ), logging.getLogger("bitsandbytes").level
    result = CliRunner().invoke(cli, words)
    assert result.exit_code != 0
    # pytest keeps the running test's name there
    assert {**os.environ, "PYTEST_CURRENT_TEST": ""} == {**before, "PYTEST_CURRENT_TEST": ""}
    assert logging.getLogger("bitsandbytes").level == level


def test_what_the_user_set_is_not_changed(monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    CliRunner().invoke(cli, ["merge", "nowhere"])
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"
