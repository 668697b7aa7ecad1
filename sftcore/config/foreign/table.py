"""The table as a whole: what a name of another tool is here."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping

from sftcore.config.foreign import data, model, training
from sftcore.config.foreign.entry import Foreign

ENTRIES: tuple[Foreign, ...] = (*training.ENTRIES, *data.ENTRIES, *model.ENTRIES)
"""Every entry."""


def lookup(name: str, peer: str = "") -> Foreign | None:
    """The entry of a name: the one of this tool, else that of whoever writes it; None where the name is not known.

    >>> lookup("lora-rank").ours, lookup("batch_size").ours, lookup("batch_size", "axolotl").ours, lookup("mdoel")
    ('adapter.lora.r', 'per_device_train_batch_size', 'gradient_accumulation_steps', None)

    Args:
        name: as it is written; case and the kind of dash do not matter.
        peer: one of PEERS; empty where it is not known who wrote it.
    """
    plain = name.strip().lower().replace("-", "_")
    return (peer and _table(peer).get(plain)) or _table("").get(plain)


def names(peer: str = "") -> Collection[str]:
    """The names that this tool has for settings, or those that are of no tool's own."""
    return _table(peer).keys()


@functools.cache
def _table(peer: str) -> Mapping[str, Foreign]:
    """The entries of one tool by name, or those that are of no tool's own, each name once."""
    found: dict[str, Foreign] = {}
    for entry in ENTRIES:
        if (peer in entry.peers) if peer else not entry.peers:
            for name in entry.names:
                if name in found:
                    raise AssertionError(f"{name} stands twice in the table")
                found[name] = entry
    return found
