"""The results as lines to read."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping
from typing import Any

PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10": 125, "RTX 4090": 165}
"""Dense bfloat16 peak of the tensor cores by NVIDIA's data sheets, for the SXM variant if there are several."""
LOSSES_AGREE = 0.02
"""The largest part by which losses of two libraries may differ where they train the same, in bfloat16."""


def line(name: str, found: Mapping[str, Any], seconds: float) -> str:
    """What a part came to, in one line."""
    states = collections.Counter(one["state"] for one in found.values())
    return f"{name}: {', '.join(f'{count} {state}' for state, count in states.items())}, {seconds:.0f} s"


def failed(results: Mapping[str, Any]) -> bool:
    """Whether something is wrong, rather than not run."""
    states = (one["state"] for part in results["parts"].values() for one in part.values())
    return any(state == "failed" for state in states) or any(gap > LOSSES_AGREE for gap in loss_gaps(results).values())


def table(results: Mapping[str, Any]) -> str:
    """Everything, for people."""
    return "\n".join(_lines(results))


def _lines(results: Mapping[str, Any]) -> Iterator[str]:
    device = results["device"]
    yield ""
    yield ", ".join(f"{key} {value}" for key, value in device.items())
    yield ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    for name, why in results["left_out"].items():
        yield f"  left out: {name}, {why}"
    for part, found in results["parts"].items():
        yield f"\n{part}"
        for name, one in found.items():
            model = part.partition(" ")[2]
            yield from _task(name, one, device["name"], _of_trl(results, model) if part != f"trl {model}" else {})
    for name, gap in loss_gaps(results).items():
        verdict = "" if gap <= LOSSES_AGREE else "; VOID, they do not train the same"
        yield f"losses of trl and sftcore's {name} differ by {100 * gap:.2f}%{verdict}"
    if results["standin"]:
        yield "This was the stand-in: nothing here says how fast or how large a run is."


def _of_trl(results: Mapping[str, Any], model: str) -> dict[int, dict[str, Any]]:
    """What TRL came to with a model in its default configuration, by batch."""
    found = results["parts"].get(f"trl {model}", {}).get("trl", {})
    return {one["batch"]: one for one in _batches(found) if "losses" in one}


def _task(name: str, one: Mapping[str, Any], device: str, of_trl: Mapping[int, Mapping[str, Any]]) -> Iterator[str]:
    if isinstance(one.get("result"), float):
        yield f"  {name}: {one['result']:.0f}"
    elif one["state"] != "done":
        yield f"  {name}: {one['state'].upper()}: {one.get('error', '')}"
    elif not _batches(one):
        yield f"  {name}: passed ({one['seconds']:.0f} s)"
    for measured in _batches(one):
        yield f"  {name}, {_measured(measured, device, of_trl.get(measured['batch']))}"


def _batches(one: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = one.get("result")
    listed = found if isinstance(found, list) else [found]
    return [each for each in listed if isinstance(each, dict) and "batch" in each]


def _measured(one: Mapping[str, Any], device: str, trl: Mapping[str, Any] | None) -> str:
    if one.get("out_of_memory"):
        return f"batch {one['batch']}: out of memory"
    words = [f"batch {one['batch']}: {one['attention']}"]
    if one["tokens_per_second"] is not None:
        words.append(f"{one['tokens_per_second']:,.0f} tokens/s, peak {one['peak_mib'] / 1024:.1f} GiB")
        peak = next((tflops for name, tflops in PEAK_TFLOPS.items() if name in device), None)
        if trl is not None:
            speed, memory = (one[key] / trl[key] for key in ("tokens_per_second", "peak_mib"))
            words.append(f"{speed:.2f} x TRL with {memory:.2f} of its memory")
        words.append("MFU unknown" if peak is None else f"MFU {100 * one['model_tflops'] / peak:.1f}%")
    return f"{', '.join(words)}, last loss {one['losses'][-1]:.3f}"


def loss_gaps(results: Mapping[str, Any]) -> dict[str, float]:
    """For each of sftcore's runs the largest relative difference from TRL's losses in the same batches."""
    gaps: dict[str, float] = {}
    parts = results["parts"]
    for part, found in parts.items():
        library, _, model = part.partition(" ")
        wanted = _of_trl(results, model) if library == "sftcore" else {}
        for name, task in found.items():
            if each := [_gap(one, wanted[one["batch"]]) for one in _batches(task) if one["batch"] in wanted]:
                gaps[f"{name}, {model}"] = max(each)
    return gaps


def _gap(one: Mapping[str, Any], trl: Mapping[str, Any]) -> float:
    """Of two runs with the same batch; infinite where their tokens are others."""
    if "losses" not in one:
        return 0.0
    pairs = zip(one["losses"], trl["losses"], strict=True)
    return max(abs(got - same) / same for got, same in pairs) if one["tokens"] == trl["tokens"] else float("inf")
