"""Regular expressions that came with somebody else's files, tried under a limit before a library matches them.

Python's matcher cannot be stopped from inside, and an expression such as `(.*.*)*x` needs longer than anybody waits. So
each is tried in a process of its own, which ends when its time is up.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sftcore.chat.sandbox.limits import SECONDS
from sftcore.core.errors import ModelError, quoted

_BUSY = 20
"""How many times as long as its own processor time the process may take on a machine that does other work."""
_PLAIN = re.compile(r"[\w.\-]*")
_NO_EXPRESSIONS = ("base_model_name_or_path", "revision")
_FORMS = ("{}", r"(.*\.)?({})$", r"(^|.*\.){}($|\..*)", r"(?:^|.*?\.){}\.(\d+)\.")
"""How PEFT matches the whole names of modules, patterns of ranks, modules that are saved, and lists of layers."""
_TRIED = """
import json, re, signal, sys
given = json.load(sys.stdin)
if hasattr(signal, "setitimer"):
    signal.setitimer(signal.ITIMER_PROF, given["seconds"])
for text in given["expressions"]:
    try:
        expression = re.compile(text)
    except Exception:
        continue
    for name in given["names"]:
        expression.match(name)
        expression.fullmatch(name)
"""


def refuse_endless(config: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    """Try the regular expressions in the configuration of a saved adapter on the modules' names, as PEFT will.

    Args:
        config: a PEFT configuration as plain values.
        names: of the model's modules, as in `named_modules`.
        where: what an error names as the place.

    Raises:
        ModelError: they take longer than a chat template may.
    """
    found = {option: texts for option, texts in _expressions(config) if texts}
    if not found or not sys.executable:
        return
    told = {"names": list(names), "seconds": SECONDS, "expressions": [one for texts in found.values() for one in texts]}
    try:
        ended = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _TRIED],
            input=json.dumps(told),
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_BUSY * SECONDS,
        )
    except subprocess.TimeoutExpired:
        stopped = True
    else:
        stopped = ended.returncode != 0
    if stopped:
        raise ModelError(
            f"the adapter's regular expressions ({quoted(found)} of adapter_config.json) take longer than {SECONDS:g} "
            "s to match, and were stopped.",
            where=where,
            fix="Write the names of the modules as a list there, if you trust the adapter otherwise.",
        )


def _expressions(config: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """What PEFT makes of an option's texts, whether it holds one, a list, or keys; plain names cannot take long."""
    for option, value in config.items():
        texts = value if isinstance(value, (list, tuple, set, Mapping)) else [value]
        suspect = [one for one in texts if isinstance(one, str) and not _PLAIN.fullmatch(one)]
        if option not in _NO_EXPRESSIONS:
            yield option, [form.replace("{}", one) for one in suspect for form in _FORMS]
