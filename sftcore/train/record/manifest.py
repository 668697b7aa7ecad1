"""What a run was: versions, plugins with their options, settings, data, seeds. Enough to run it again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from sftcore.util.disk import replace_text
from sftcore.util.plain import describe_plugin, plain

if TYPE_CHECKING:
    from datasets import Dataset

    from sftcore.config.setup import Setup

SCHEMA = 1


def describe(setup: Setup) -> dict[str, Any]:
    """The plan and its plugins as plain values."""
    return {
        "model": plain(attrs.asdict(setup.plan.model)),
        "plugins": [describe_plugin(one) for one in setup.plugins.bound],
        "settings": plain(dict(setup.plan.settings)),
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
