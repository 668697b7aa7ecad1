"""Measure start-up times: the command line compared with a bare Python and TRL, and the import of `SFTTrainer` compared
with that of `transformers.Trainer`.

python benchmarks/startup.py [--runs 11] [--json startup.json]

All commands take turns in each round, so that a busy machine slows each of them equally. The first round, which fills
the byte code and disk caches, is not measured. `500 more` has 500 additional distributions with one plugin each.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

KINDS = ("format", "collator", "loader", "adapter", "attention", "kernel", "loss", "noise")
MANY = 500
OURS, THEIRS = "from sftcore import SFTTrainer", "from transformers import Trainer"
LIBRARIES = ("sftcore", "trl", "torch", "transformers", "datasets", "click", "pluggy", "attrs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=11, help="measured rounds (default: 11)")
    parser.add_argument("--json", type=Path, help="also write the JSON to this file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_distributions(Path(folder), MANY)
        seconds = measure(commands(folder), given.runs)
    result = report(seconds, given.runs)
    print(table(result["medians_ms"], result["ratios"]))
    text = json.dumps(result, indent=2)
    print(text)
    if given.json:
        given.json.write_text(text + "\n", encoding="utf-8")


def commands(many: str) -> dict[str, tuple[list[str], dict[str, str]]]:
    """The argument lists and additional environment variables, by label."""
    sftcore = [script("sftcore")]
    found = {
        "python -c pass": ([sys.executable, "-c", "pass"], {}),
        "sftcore --help": ([*sftcore, "--help"], {}),
        "sftcore list-plugins": ([*sftcore, "list-plugins"], {}),
        f"sftcore list-plugins, {MANY} more": ([*sftcore, "list-plugins"], {"PYTHONPATH": many}),
        "sftcore check --help": ([*sftcore, "check", "--help"], {}),
        "sftcore explain RECIPE": ([*sftcore, "explain", "model=some/model", "data=some/data", "adapter=lora"], {}),
        OURS: ([sys.executable, "-c", "from sftcore import SFTTrainer"], {}),
        THEIRS: ([sys.executable, "-c", "from transformers import Trainer"], {}),
    }
    if importlib.util.find_spec("trl"):
        found["python -c 'import trl'"] = ([sys.executable, "-c", "import trl"], {})
        found["trl env --help"] = ([script("trl"), "env", "--help"], {})
    return found


def script(name: str) -> str:
    """The console script of this Python's environment."""
    return str(Path(sysconfig.get_path("scripts"), name))


def write_distributions(folder: Path, count: int) -> None:
    """Write the metadata of `count` distributions with one plugin each, of all kinds in turn."""
    for i in range(count):
        info = folder / f"startup_{i:03}-1.0.dist-info"
        info.mkdir()
        head = f"Metadata-Version: 2.1\nName: startup-{i:03}\nVersion: 1.0\n"
        (info / "METADATA").write_text(head + "\n" + "A line of a README.\n" * 100, encoding="utf-8")
        entry = f"[sftcore.{KINDS[i % len(KINDS)]}]\nstartup-{i:03} = startup_{i:03}:Plugin\n"
        (info / "entry_points.txt").write_text(entry, encoding="utf-8")


def measure(runs: Mapping[str, tuple[Sequence[str], Mapping[str, str]]], rounds: int) -> dict[str, list[float]]:
    """The wall-clock seconds of each command in each round, without the first round."""
    seconds: dict[str, list[float]] = {label: [] for label in runs}
    for number in range(rounds + 1):
        for label, (command, more) in runs.items():
            environment = {**os.environ, "HF_HUB_OFFLINE": "1", **more}
            start = time.perf_counter()
            done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)
            elapsed = time.perf_counter() - start
            if done.returncode:
                sys.exit(f"{label} failed with exit code {done.returncode}:\n{done.stderr}")
            if number:
                seconds[label].append(elapsed)
    return seconds


def report(seconds: Mapping[str, Sequence[float]], rounds: int) -> dict:
    """Medians in milliseconds and their ratios to the bare Python and to each of TRL's commands."""
    medians = {label: round(1000 * statistics.median(values), 1) for label, values in seconds.items()}
    peers = [label for label in medians if label in ("python -c pass", THEIRS) or "trl" in label]
    return {
        "runs": rounds,
        "medians_ms": medians,
        "fastest_ms": {label: round(1000 * min(values), 1) for label, values in seconds.items()},
        "slowest_ms": {label: round(1000 * max(values), 1) for label, values in seconds.items()},
        "ratios": {
            peer: {label: round(medians[label] / medians[peer], 3) for label in medians if "sftcore" in label}
            for peer in peers
        },
        "versions": {"python": platform.python_version(), **versions()},
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
    }


def versions() -> dict[str, str]:
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def table(medians: Mapping[str, float], ratios: Mapping[str, Mapping[str, float]]) -> str:
    """One line per command, with its median and its ratio to each of the others."""
    heads = ["", "median", *(f"ratio to {peer}" for peer in ratios)]
    lines = [
        [label, f"{median:.0f} ms", *(f"{ratio[label]:.2f}" if label in ratio else "" for ratio in ratios.values())]
        for label, median in medians.items()
    ]
    widths = [max(len(line[i]) for line in (heads, *lines)) for i in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(widths[0]) if i == 0 else cell.rjust(widths[i]) for i, cell in enumerate(line)).rstrip()
        for line in (heads, *lines)
    )


if __name__ == "__main__":
    main()
