"""A feature for values of any kind, which come back as they were: `datasets`' own rounds numbers to ten digits, takes a
text that looks like JSON for what it says, and refuses big integers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import datasets  # noqa: TID253 - imported where rows are loaded alone
import pyarrow as pa


class ExactJson(datasets.Json):  # type: ignore[misc]
    """Values held as JSON text, null as null."""

    def encode_example(self, example_data: Any) -> str | None:
        """The value as JSON."""
        return None if example_data is None else json.dumps(example_data, ensure_ascii=False)

    def decode_example(self, example_data: str | None, token_per_repo_id: Any = None) -> Any:
        """The value that the JSON says."""
        return None if example_data is None else json.loads(example_data)

    def cast_storage(self, storage: pa.Array) -> pa.Array:
        """Encoded values as Arrow's JSON."""
        return storage if isinstance(storage, pa.JsonArray) else pa.array(storage.to_pylist(), pa.json_())


def encoded(values: Iterable[Any]) -> pa.Array:
    """Values of any kind as Arrow's JSON."""
    feature = ExactJson()
    return pa.array([feature.encode_example(value) for value in values], pa.json_())
