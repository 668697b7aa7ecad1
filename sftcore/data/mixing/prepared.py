"""Prepares a mixture: each of its sources by itself, then all of them in the order of the mixture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sftcore.core.errors import DataError
from sftcore.data.mixing.mixed import Mixed, concatenated, mixed_ledger, packed_mixture
from sftcore.data.mixing.mixture import Mixture
from sftcore.data.mixing.order import Order
from sftcore.data.store.stream import packed_stream
from sftcore.util.warned import warn


def prepared_mixture(run: Any, mixture: Mixture, name: str) -> Any:
    """The token rows of several sources: one after another, or mixed by their weights.

    `run` is the `sftcore.data.sets.DataPreparation` that prepares each of them; it comes above.
    """
    from datasets import IterableDataset

    names = mixture.names_in(name)
    streamed = [isinstance(one.dataset, IterableDataset) for one in mixture.sources]
    if len(set(streamed)) > 1:
        raise DataError(
            f"{names[streamed.index(True)]} is a stream, and {names[streamed.index(False)]} is not.",
            where=name,
            fix="Stream all of them (dataset.to_iterable_dataset()), or none.",
        )
    order = Order.of(mixture.weights, _seed_of(run.setup.plan.settings), mixture.stop)
    parts = [
        run.prepared_source(source, one, place)
        for place, (source, one) in enumerate(zip(mixture.sources, names, strict=True))
    ]
    if streamed[0]:
        return _mixed_stream(run, parts, order, names, name)
    whole, packing, seed = concatenated(parts), run.packing_of(name), run.shuffle_seed_of(name)
    mixed = Mixed.of(names, [len(one) for one in parts], order, None if packing else seed)
    rows = whole if mixed.rows is None else whole.select(mixed.rows)
    run.mixed[name] = mixed
    ledger = mixed_ledger(parts, mixed, name, run.ledgers[-len(names) :])
    for one in ledger.sources:
        if not one.rows:
            warn(f"no row of {one.name} is used: the mixture ends before its first (stop: {order.stop})")
    if packing is not None:
        parents = [run.keys.get(one) for one in names]
        rows, ledger, note = packed_mixture(rows, ledger, packing, parents, mixed, run.shared)
        run.notes.append(f"{name}: {note}")
        rows = rows.shuffle(seed=seed) if seed is not None else rows
    run.ledgers.append(ledger)
    return rows


def _mixed_stream(run: Any, parts: list[Any], order: Order, names: list[str], name: str) -> Any:
    from sftcore.data.mixing.stream import mixed_stream

    packing, seed = run.packing_of(name), run.shuffle_seed_of(name)
    *streams, numbered = zip(*parts, strict=True)
    own, whole = (mixed_stream(found, order) for found in streams)
    # where sources take turns by their weights, each rank mixes its own rows
    in_order = packing is None and not order.shares and None not in numbered
    if packing is not None:
        own, whole = packed_stream(own, packing), packed_stream(whole, packing)
    own = own.shuffle(seed=seed) if seed is not None else own
    run.shards.append((own, whole, mixed_stream(numbered, order) if in_order else None))
    how = "one after another" if not order.shares else f"mixed, stop: {order.stop}"
    shares = order.shares or (None,) * len(names)
    told = (one if share is None else f"{one} {share:.1%}" for one, share in zip(names, shares, strict=True))
    run.notes.append(f"{name}: streams, {how}, prepared and counted as they are read")
    run.notes.append(f"{name}: {', '.join(told)}")
    return own


def _seed_of(settings: Mapping[str, Any]) -> int:
    given = settings.get("data_seed")
    return int(settings.get("seed", 42) if given is None else given)
