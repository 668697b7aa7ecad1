"""Measure the cost of attention on packed rows of short documents, forward and backward, for several row lengths.

python benchmarks/attention.py [--document 256] [--lengths 1024 2048 4096 8192] [--attention sdpa varlen flash-1]
                               [--dtype float32] [--device cpu] [--repeats 3] [--json attention.json]

It measures one layer of SmolLM2-135M (9 heads of width 64, and 3 key heads) with the same functions that transformers
calls in a run. Documents are marked by restarting positions, and by boundaries for an attention that supports them. All
attentions take turns in each round, and the first round is not measured. Times are medians in milliseconds. The mask,
which is built once for all layers, is timed separately. Ratios are the first attention's time divided by the other's.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
HEADS, KEY_HEADS, WIDTH = 9, 3, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--document", type=int, default=256, help="tokens per document")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192], help="tokens per row")
    parser.add_argument("--attention", nargs="+", default=["sdpa", "varlen", "flash-1"])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3, help="measured rounds")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = []
    for length in given.lengths:
        rows.append({"length": length, **measure(length, given)})
        print(as_line(rows[-1]), flush=True)
    report = {
        "machine": {"system": platform.platform(), "cores": os.cpu_count(), "python": platform.python_version()},
        "versions": {name: importlib.metadata.version(name) for name in ("sftcore", "torch", "transformers")},
        "setting": {name: getattr(given, name) for name in ("document", "dtype", "device", "repeats", "attention")},
        "rows": rows,
    }
    print(json.dumps(report, indent=2))
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def measure(length: int, given: argparse.Namespace) -> dict[str, Any]:
    """The milliseconds of each attention and of its mask on a row of this length, and the ratios to the first one."""
    layers = {name: Layer(name, length, given) for name in given.attention}
    times: dict[str, list[float]] = {name: [] for name in layers}
    for turn in range(given.repeats + 1):
        for name in list(layers)[:: -1 if turn % 2 else 1]:
            seconds = layers[name].step()
            if turn:
                times[name].append(1000 * seconds)
    medians = {name: round(statistics.median(found), 2) for name, found in times.items()}
    first = medians[given.attention[0]]
    return {
        "milliseconds": medians,
        "mask_milliseconds": {name: round(1000 * layer.mask_seconds, 2) for name, layer in layers.items()},
        "times_cheaper": {name: round(first / found, 2) for name, found in medians.items()},
    }


class Layer:
    """One attention layer on a packed row, called as a model would call it."""

    def __init__(self, name: str, length: int, given: argparse.Namespace) -> None:
        import torch
        from transformers import LlamaConfig
        from transformers.masking_utils import create_causal_mask
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        from sftcore import ModelRequest
        from sftcore.core.discovery import discover
        from sftcore.documents.ways import boundaries

        plugin = discover().find("attention", name, None).load()()
        backend = plugin.attention_backend(ModelRequest())
        config = LlamaConfig(num_attention_heads=HEADS, num_key_value_heads=KEY_HEADS, hidden_size=HEADS * WIDTH)
        config._attn_implementation = backend.implementation
        options = {"dtype": getattr(torch, given.dtype), "device": given.device}
        self.positions = (torch.arange(length, device=given.device) % given.document)[None]
        self.given = boundaries(self.positions) if backend.boundaries else {}
        start = time.perf_counter()
        embeds = torch.empty(1, length, 1, **options)
        self.mask = create_causal_mask(config, embeds, None, None, position_ids=self.positions)
        self.mask_seconds = self._wait() - start
        self.attend = ALL_ATTENTION_FUNCTIONS[backend.implementation]
        generator = torch.Generator(given.device).manual_seed(0)
        self.states = [
            torch.randn(1, length, heads, WIDTH, generator=generator, **options).transpose(1, 2).requires_grad_()
            for heads in (HEADS, KEY_HEADS, KEY_HEADS)
        ]
        self.gradient = torch.randn(1, length, HEADS, WIDTH, generator=generator, **options)
        self.module = torch.nn.Module()
        self.module.num_key_value_groups, self.module.is_causal = HEADS // KEY_HEADS, True
        self.module.config = config

    def step(self) -> float:
        """The seconds of a forward and a backward pass."""
        start = self._wait()
        output, _ = self.attend(self.module, *self.states, self.mask, scaling=WIDTH**-0.5, **self.given)
        output.backward(self.gradient)
        return self._wait() - start

    def _wait(self) -> float:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


def as_line(row: dict[str, Any]) -> str:
    parts = [
        f"{name} {found:9.2f} ms ({row['times_cheaper'][name]:.1f} x)" for name, found in row["milliseconds"].items()
    ]
    return f"{row['length']:>6} tokens  " + "  ".join(parts)


if __name__ == "__main__":
    main()
