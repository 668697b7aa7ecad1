"""Secrets on a command line: not shown, not in the words of the processes that are started, and there all the same."""

from __future__ import annotations

import os
import sys

import pytest

from sftcore.train.processes import launch
from sftcore.util.words import HIDDEN, bring_back, hidden, without_secrets_in

SECRET = "s3cr3t-value"


@pytest.mark.parametrize(
    "word",
    [
        f"hub_token={SECRET}",
        f"--hub_token={SECRET}",
        f"model.init_kwargs.token={SECRET}",
        f"model.init_kwargs={{token: {SECRET}}}",
        f"model.init_kwargs={{'proxies': {{password: {SECRET}}}, revision: main}}",
        f"data=https://me:{SECRET}@example.org/rows.jsonl",
        f"loader.own.api_key={SECRET}",
        "hub_token=12345678",
    ],
)
def test_a_secret_goes_by_the_environment_and_comes_back(word, monkeypatch):
    words = ["run.yaml", word, "seed=1", "data=[a.jsonl, b.jsonl]", "--block=loss:nll"]
    shown, environment = hidden(words)
    assert SECRET not in " ".join(shown)
    assert "12345678" not in " ".join(shown)
    assert [shown[place] for place in (0, 2, 3, 4)] == [words[place] for place in (0, 2, 3, 4)]
    monkeypatch.setenv(HIDDEN, environment[HIDDEN])
    monkeypatch.setattr(sys, "argv", ["sftcore", "train", *shown])
    bring_back()
    assert sys.argv == ["sftcore", "train", *words]
    assert HIDDEN not in os.environ


def test_an_option_before_its_value_names_it():
    assert without_secrets_in(["--hub_token", SECRET, "--seed", "1"]) == ["--hub_token", "<not written>", "--seed", "1"]


def test_words_without_secrets_are_as_they_were():
    words = ["run.yaml", "eos_token=<|im_end|>", "max_length=512", "model={name: a}", "data=[a", "--nproc", "2"]
    assert hidden(words) == (words, {})


def test_the_launch_line_and_the_words_of_the_processes_hold_no_secret(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(os, "execve", lambda *given: seen.append(given))
    monkeypatch.setenv("WORLD_SIZE", "1")
    launch.launch(2, ["run.yaml", f"hub_token={SECRET}"], {"use_cpu": True})
    [(_, started, environment)] = seen
    assert SECRET not in " ".join(started)
    assert SECRET not in capsys.readouterr().err
    assert SECRET in environment[HIDDEN]
