"""What a run was: versions, plugins with their options, settings, data, seeds. Enough to run it again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import re
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from sftcore.util.disk import replace_text
from sftcore.util.secrets import NOT_WRITTEN, hides, without_secrets

if TYPE_CHECKING:
    from datasets import Dataset

    from sftcore.config.setup import Setup
    from sftcore.core.registry import Bound

SCHEMA = 1
LIBRARIES = (
    "sftcore",
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "accelerate",
    "peft",
    "safetensors",
    "pluggy",
)


def versions() -> dict[str, str]:
    """Python, the platform, and every library that can change a result."""
    found = {name: version for name in LIBRARIES if (version := _version(name))}
    return {"python": platform.python_version(), "platform": platform.platform(), **found}


def describe(setup: Setup) -> dict[str, Any]:
    """The plan and its plugins as plain values."""
    return {
        "model": plain(attrs.asdict(setup.plan.model)),
        "plugins": [describe_plugin(one) for one in setup.plugins.bound],
        "settings": plain(dict(setup.plan.settings)),
    }


def describe_plugin(one: Bound) -> dict[str, Any]:
    """Which plugin, from which version of which distribution, with which options."""
    return {
        "kind": one.entry.kind,
        "name": one.entry.name,
        "distribution": one.entry.distribution,
        "version": one.entry.version,
        "options": plain(dict(one.selection.options)),
        "default": one.selection.default,
    }


def write(folder: Path, content: Mapping[str, Any]) -> Path:
    """Write `manifest.json` into `folder`."""
    path = folder / "manifest.json"
    replace_text(path, json.dumps(plain({"schema": SCHEMA, **content}), indent=2, ensure_ascii=False) + "\n")
    return path


def sha256_of_files(paths: Iterable[Path]) -> dict[str, str]:
    """File name to the SHA-256 of its bytes."""
    found = {}
    for path in paths:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        found[str(path)] = digest.hexdigest()
    return found


def weights_sha256(folder: Path) -> dict[str, str]:
    """Name to SHA-256 of the weights' files in a folder."""
    found = sha256_of_files(sorted(folder.glob("*.safetensors")))
    return {Path(name).name: digest for name, digest in found.items()}


def sha256_of_rows(dataset: Dataset) -> str:
    """SHA-256 over the token rows: ids and labels, in order."""
    import numpy as np

    digest = hashlib.sha256()
    columns = [name for name in ("input_ids", "labels", "weights") if name in dataset.column_names]
    for table in dataset.with_format("arrow").iter(1000):
        for name in columns:
            column = table[name].combine_chunks()
            lengths = column.value_lengths().fill_null(-1)  # a row without weights
            digest.update(np.asarray(lengths).astype("int64").tobytes())
            digest.update(np.asarray(column.flatten()).astype("float64").tobytes())
    return digest.hexdigest()


def plain(value: Any) -> Any:
    """A value as JSON can hold it: secrets are left out, what has no plain form becomes its text."""
    if isinstance(value, Mapping):
        return {str(key): NOT_WRITTEN if hides(key, part) else plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(part) for part in value]
    if isinstance(value, Enum):
        return plain(value.value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return without_secrets(value)
    if callable(getattr(value, "to_dict", None)):
        return plain(value.to_dict())
    return without_secrets(str(value))


def public(value: Any) -> Any:
    """Plain values without the folders of this machine: of every absolute path only the last part is left.

    >>> public({"data": "/home/me/rows.jsonl", "note": "read from /data/a/b.json, twice"})
    {'data': 'rows.jsonl', 'note': 'read from b.json, twice'}
    """
    if isinstance(value, Mapping):
        return {public(key): public(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [public(part) for part in value]
    return _PATH.sub(lambda found: re.split(r"[/\\]", found[0])[-1], value) if isinstance(value, str) else value


_PATH = re.compile(r"(?<![\w:/.\\-])(?:~|[A-Za-z]:)?(?:[/\\][^\s\"',;:()/\\]+){2,}")
"""An absolute path of at least two parts inside a text; `1/2`, `owner/name` and addresses are none."""


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
