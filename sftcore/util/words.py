"""Words of a command line that a launcher gets: without secrets, which `ps` would show; those go by the environment."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

import yaml

from sftcore.util.secrets import NOT_WRITTEN, masked

HIDDEN = "SFTCORE_HIDDEN_WORDS"
"""The environment variable with the words that stand masked on the command line, by their place from its end."""


def without_secrets_in(words: Sequence[str]) -> list[str]:
    """The words as they may be shown: values of settings and options that hold a token or a key are left out.

    >>> without_secrets_in(["run.yaml", "hub_token=abc", "--hub_token", "abc", "seed=1"])
    ['run.yaml', 'hub_token=<not written>', '--hub_token', '<not written>', 'seed=1']
    """
    found = []
    for before, word in zip(["", *words], words, strict=False):
        name, equals, value = word.partition("=")
        if not equals:
            name, value = (before if before.startswith("-") and "=" not in before else ""), word
        safe = _safe(name.lstrip("-").rpartition(".")[2], value)
        found.append(f"{name}={safe}" if equals else safe)
    return found


def hidden(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The words for the end of a command, and what of the environment brings back those that hold a secret."""
    shown = without_secrets_in(words)
    pairs = enumerate(zip(shown, words, strict=True))
    secrets = {str(len(words) - place): word for place, (safe, word) in pairs if safe != word}
    return shown, {HIDDEN: json.dumps(secrets)} if secrets else {}


def bring_back() -> None:
    """Put the words that a launcher has hidden back into `sys.argv`, for this process alone."""
    for place, word in json.loads(os.environ.pop(HIDDEN, "{}")).items():
        sys.argv[-int(place)] = word


def _safe(name: str, value: str) -> str:
    safe = masked({name: value})[name]
    if safe != value or not value.lstrip().startswith(("{", "[")):
        return str(safe)
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        return value
    return value if masked(parsed) == parsed else NOT_WRITTEN
