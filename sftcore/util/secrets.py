"""What must not be written into a run's files: tokens, passwords, addresses with credentials."""

from __future__ import annotations

import functools
import os
import re
from typing import Any

NOT_WRITTEN = "<not written>"
"""What stands in a secret's place."""

_NAME = (
    r"(?:pass(?:word|wd|phrase)s?|pwd|secrets?|(?:api|access|secret|private)[_. -]?key(?:[_. -]?id)?|credentials?|"
    r"connection[_. -]?string|cookie|bearer|authorization|(?:hub|hf|auth|access|refresh|bearer|api|github|gitlab|wandb|"
    r"session|security|secret|sas)[_. -]?tokens?)"
)
_KEY = re.compile(rf"{_NAME}$|^(?:token|auth)$", re.IGNORECASE)
_VARIABLE = re.compile(r"(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|CREDENTIALS?)$", re.IGNORECASE)
_PAIR = re.compile(
    rf"((?:{_NAME}|(?<![\w-])(?:token|auth)|[?&](?:[\w-]*[_-])?(?:key|sig|signature))=)"
    rf"(?:{NOT_WRITTEN}|[^\s&'\",;]+)",
    re.IGNORECASE,
)
_SHAPE = re.compile(
    r"(?<=://)[^/\s?#'\"]+(?=@)"  # user:password@ in an address
    r"|\b(?:hf|api_org|npm|gh[pousr])_[A-Za-z0-9]{20,}|\b(?:github_pat_|sk-|glpat-|ya29\.|pypi-|AIza)[\w-]{20,}"
    r"|\bAKIA[0-9A-Z]{16}\b|\bxox[abprs]-[\w-]{10,}|(?<![\w-])eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+"
    r"|(?<=\bBearer )[^\s'\"]{8,}|(?<=\bBasic )[A-Za-z0-9+/=]{8,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)


def hides(key: object, value: object) -> bool:
    """Whether this value of this key is not written; `eos_token` and its kind are, and so are numbers of tokens.

    >>> [hides(key, "abc") for key in ("token", "hub-token", "apiKey", "WANDB_API_KEY", "eos_token", "max_tokens")]
    [True, True, True, True, False, False]
    """
    counts = str(key).lower() == "token" or str(key).lower().endswith("tokens")
    is_number = isinstance(value, (int, float)) and counts
    return _KEY.search(str(key)) is not None and not (value is None or isinstance(value, bool) or is_number)


@functools.lru_cache(maxsize=1024)
def _holds_secret(variable: str) -> bool:
    return _VARIABLE.search(variable) is not None


def without_secrets(text: str) -> str:
    """The text without what looks like a secret, and without the values of the environment's own.

    >>> without_secrets("https://me:hunter2@example.org/data.jsonl?sig=abc&page=1")
    'https://<not written>@example.org/data.jsonl?sig=<not written>&page=1'
    """
    for value in map(os.environ.__getitem__, filter(_holds_secret, os.environ)):
        if len(value) >= 8:
            text = text.replace(value, NOT_WRITTEN)
    return _PAIR.sub(rf"\1{NOT_WRITTEN}", _SHAPE.sub(NOT_WRITTEN, text))


def masked(value: Any) -> Any:
    """The value without its secrets; mappings, lists and tuples are copied, all else is as it was.

    >>> masked({"token": "abc", "sizes": [1, 2]})
    {'token': '<not written>', 'sizes': [1, 2]}
    """
    if type(value) is str:
        return without_secrets(value)
    if type(value) is dict:
        return {key: NOT_WRITTEN if hides(key, part) else masked(part) for key, part in value.items()}
    return type(value)(masked(part) for part in value) if type(value) in (list, tuple) else value
