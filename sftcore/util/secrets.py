"""What must not be written into a run's files: tokens, passwords, addresses with credentials."""

from __future__ import annotations

import os
import re
from typing import Any

NOT_WRITTEN = "<not written>"
"""What stands in a secret's place."""

_KEYS = re.compile(
    r"(?:^|_)(?:passwords?|passwd|pwd|passphrase|secrets?|api_?key|access_?key(?:_?id)?|secret_?key|private_?key|"
    r"credentials?|connection_string|cookie|bearer|authorization|(?:hub|hf|auth|access|refresh|bearer|api|github|gitlab|"
    r"wandb|session|security|secret|sas|use_auth)_?tokens?)$|^(?:token|auth)$",
    re.IGNORECASE,
)
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[-.\s]+")
_VARIABLES = re.compile(r"(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|CREDENTIALS?)$", re.IGNORECASE)
_TEXTS = re.compile(
    r"(?<=://)[^/\s?#'\"]+(?=@)"  # user:password@ in an address
    r"|\b(?:hf|api_org|npm)_[A-Za-z0-9]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}"
    r"|\bsk-[A-Za-z0-9_-]{20,}|\bAKIA[0-9A-Z]{16}\b|\bxox[abprs]-[A-Za-z0-9-]{10,}|\bglpat-[A-Za-z0-9_-]{20,}"
    r"|\bAIza[A-Za-z0-9_-]{30,}|\bya29\.[A-Za-z0-9_-]{20,}|\bpypi-[A-Za-z0-9_-]{20,}"
    r"|\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+"  # a JSON web token
    r"|(?<=\bBearer )[^\s'\"]{8,}|(?<=\bBasic )[A-Za-z0-9+/=]{8,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
_PAIRS = re.compile(r"([?&]?)\b([A-Za-z][\w-]*)=([^\s&'\",;]+)")
_IN_ADDRESSES = frozenset({"key", "sig", "signature", "awsaccesskeyid", "x_amz_signature", "x_amz_credential"})


def is_secret(key: str) -> bool:
    """Whether a key's value is a secret; `eos_token` and its kind are none.

    >>> [is_secret(key) for key in ("token", "hub-token", "apiKey", "WANDB_API_KEY", "eos_token", "max_tokens")]
    [True, True, True, True, False, False]
    """
    return _KEYS.search(_WORDS.sub("_", key)) is not None


def hides(key: object, value: object) -> bool:
    """Whether this value of this key is not written: a number in the place of a token counts something."""
    if not is_secret(str(key)) or value is None or isinstance(value, bool):
        return False
    if isinstance(value, (int, float)):
        return "token" not in str(key).lower()
    return not isinstance(value, (str, bytes, list, tuple, dict)) or len(value) > 0


def without_secrets(text: str) -> str:
    """The text without what looks like a secret, and without the values of the environment's own.

    >>> without_secrets("https://me:hunter2@example.org/data.jsonl?sig=abc&page=1")
    'https://<not written>@example.org/data.jsonl?sig=<not written>&page=1'
    """
    for name, value in os.environ.items():
        if len(value) >= 8 and value in text and _VARIABLES.search(name):
            text = text.replace(value, NOT_WRITTEN)
    return _PAIRS.sub(_pair, _TEXTS.sub(NOT_WRITTEN, text)) if "=" in text else _TEXTS.sub(NOT_WRITTEN, text)


def _pair(found: re.Match[str]) -> str:
    mark, key, value = found.groups()
    in_address = bool(mark) and _WORDS.sub("_", key).lower() in _IN_ADDRESSES
    return f"{mark}{key}={NOT_WRITTEN}" if (in_address or is_secret(key)) and value != "<not" else found[0]


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
