"""What must not be written into a run's files: tokens, passwords, addresses with credentials."""

from __future__ import annotations

import os
import re
from typing import Any

NOT_WRITTEN = "<not written>"
"""What stands in a secret's place."""

_KEYS = re.compile(
    r"(?:^|_)(?:password|passwd|passphrase|secret|secrets|api_?key|access_?key|secret_?key|private_?key|credentials?|"
    r"(?:hub|hf|auth|access|refresh|bearer|api|github|wandb|use_auth)_?token|authorization)$|^token$|^use_auth_token$",
    re.IGNORECASE,
)
_VARIABLES = re.compile(r"(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|CREDENTIALS?)$", re.IGNORECASE)
_TEXTS = re.compile(
    r"(?<=://)[^/\s@'\"]+(?=@)"  # user:password@ in an address
    r"|\b(?:hf|api_org)_[A-Za-z0-9]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bsk-[A-Za-z0-9_-]{20,}"
    r"|\bAKIA[0-9A-Z]{16}\b|\bxox[abprs]-[A-Za-z0-9-]{10,}|\bglpat-[A-Za-z0-9_-]{20,}"
    r"|(?<=[?&]token=)[^&\s'\"]+|(?<=[?&]access_token=)[^&\s'\"]+|(?<=[?&]X-Amz-Signature=)[^&\s'\"]+"
)


def is_secret(key: str) -> bool:
    """Whether a key's value is a secret; `eos_token` and its kind are none.

    >>> [is_secret(key) for key in ("token", "hub_token", "WANDB_API_KEY", "eos_token", "max_tokens", "pad_token")]
    [True, True, True, False, False, False]
    """
    return _KEYS.search(key) is not None


def without_secrets(text: str) -> str:
    """The text without what looks like a secret, and without the values of the environment's own.

    >>> without_secrets("https://me:hunter2@example.org/data.jsonl")
    'https://<not written>@example.org/data.jsonl'
    """
    for name, value in os.environ.items():
        if len(value) >= 8 and value in text and _VARIABLES.search(name):
            text = text.replace(value, NOT_WRITTEN)
    return _TEXTS.sub(NOT_WRITTEN, text)


def masked(value: Any) -> Any:
    """The value without its secrets; mappings and lists are copied where they hold some, all else is as it was.

    >>> masked({"token": "abc", "sizes": [1, 2]})
    {'token': '<not written>', 'sizes': [1, 2]}
    """
    if type(value) is str:
        return without_secrets(value)
    if type(value) is dict:
        return {
            key: NOT_WRITTEN if isinstance(part, str) and part and is_secret(str(key)) else masked(part)
            for key, part in value.items()
        }
    return [masked(part) for part in value] if type(value) is list else value
