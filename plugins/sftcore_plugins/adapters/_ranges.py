"""Numbers of tokens and layers in an adapter's configuration, compared with those that the model has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from numbers import Integral
from typing import Any

from sftcore import Problem


def beyond_model(config: Mapping[str, Any], model: Any) -> Iterator[Problem]:
    """Problems with rows and layers that the model does not have: PEFT meets them as an IndexError, or in a forward.

    Args:
        config: a PEFT configuration as plain values.
        model: whose embeddings and layers are counted.
    """
    indices = config.get("trainable_token_indices")
    for name, ids in (indices if isinstance(indices, Mapping) else {"": indices}).items():
        rows, place = _rows(model, name), f" of {name}" if name else ""
        wrong = [one for one in _each(ids) if not isinstance(one, Integral) or not 0 <= int(one) < rows]
        if rows and wrong:
            yield Problem(
                f"trainable_token_indices{place} names {wrong[0]!r}, and there are {rows:,} rows.",
                fix=f"Name ids from 0 to {rows - 1}.",
            )
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", 0)
    for pair in _each(config.get("layer_replication")):
        numbers = pair if isinstance(pair, (list, tuple)) and all(isinstance(one, Integral) for one in pair) else ()
        if layers and (len(numbers) != 2 or not 0 <= numbers[0] < numbers[1] <= layers):
            yield Problem(
                f"layer_replication names the layers {pair!r}, and the model has {layers}.",
                fix=f"Write pairs of the first layer and the one behind the last: [[0, {layers}]].",
            )


def _each(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, Iterable) else [value]


def _rows(model: Any, name: str) -> int:
    """How many rows the embedding or the head of this name has, or the model's embedding; 0 where it is not known."""
    named = [one for path, one in model.named_modules(remove_duplicate=False) if name and path.endswith(name)]
    layer = named[0] if named else model.get_input_embeddings()
    return int(getattr(layer, "num_embeddings", getattr(layer, "out_features", 0)))
