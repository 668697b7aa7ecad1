"""Rows of the shapes that formats commonly read, to try a format with of which no rows are given."""

from __future__ import annotations

from collections.abc import Sequence

from sftcore.core.discovery import PluginEntry
from sftcore.core.plugin_class import build
from sftcore.core.registry import ActivePlugins, Bound
from sftcore.core.types import Row, Selection

TURNS = [{"role": "user", "content": "say it"}, {"role": "assistant", "content": "hello world"}]
SHAPES: tuple[tuple[Row, ...], ...] = (
    ({"text": "hello world"}, {"text": "The answer is a word."}),
    ({"messages": TURNS}, {"messages": [*TURNS, *TURNS]}),
    ({"prompt": "say hello:", "completion": " world"}, {"prompt": "say:", "completion": " hello"}),
    (
        {"instruction": "say it", "input": "hello", "output": "hello world"},
        {"instruction": "say that", "input": "", "output": "word"},
    ),
    ({"conversations": [{"from": "human", "value": "say it"}, {"from": "gpt", "value": "hello world"}]},),
    ({"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8, 9], "labels": [-100, 9]}),
    ({"question": "Where is it?", "answer": "Over there."},),
)


def rows_for(entry: PluginEntry, plugin: type) -> Sequence[Row]:
    """Rows of a common shape that the format detects; empty if it detects none of them."""
    bound = Bound(Selection("format", entry.name), entry, build(plugin, {}, path=entry.label))
    plugins = ActivePlugins([bound])
    if not plugins.answers("detects"):
        return ()
    for rows in SHAPES:
        if any(answer for _, answer in plugins.all("detects", columns=tuple(rows[0]))):
            return rows
    return ()
