"""What a machine has, and what it lacks: packages, wheels that were carried to it, its device."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

OPTIONAL = {
    "trl": "trl", "liger-kernel": "liger_kernel", "bitsandbytes": "bitsandbytes",
    "cut-cross-entropy": "cut_cross_entropy", "flash-attn": "flash_attn", "flash-attn-3": "flash_attn_interface",
}  # fmt: skip
"""Packages of which a part of the run is left out where they are missing, with the module that each brings."""
SHOWN = ("sftcore", "torch", "triton", "transformers", "accelerate", "peft", "datasets", "tokenizers", *OPTIONAL)


def install(wheels: Path, folder: Path) -> None:
    """Install all wheels into a folder of packages in `folder`, and import from there first; nothing is downloaded.

    Raises:
        SystemExit: pip is not there, or fails.
    """
    found = sorted(map(str, wheels.glob("*.whl")))
    if not found:
        sys.exit(f"There are no wheels in {wheels}.")
    # datasets pickles what it hashes, and takes modules outside of a site-packages for the user's own
    target = folder / "site-packages"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    done = subprocess.run([*command, "--target", str(target), *found], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"pip could not install the wheels of {wheels}:\n{done.stderr[-2000:]}")
    sys.path.insert(0, str(target))


def missing() -> list[str]:
    """What the run cannot do without, with the reason; what its packages need in turn included."""
    try:
        importlib.metadata.distribution("sftcore")
    except importlib.metadata.PackageNotFoundError:
        return ["sftcore: not installed; its wheel is made by: pip wheel --no-deps -w wheels ."]
    return [*_lacking("sftcore", {"sftcore"}, direct=True)]


def left_out() -> dict[str, str]:
    """The optional packages that are not there or lack something, with the reason."""
    found = {}
    for name, module in OPTIONAL.items():
        if importlib.util.find_spec(module) is None:
            found[name] = "not installed"
        elif lacking := [*_lacking(name, {name}, direct=False)]:
            found[name] = f"lacks {', '.join(lacking)}"
    return found


def _lacking(name: str, seen: set[str], *, direct: bool) -> Iterator[str]:
    """Requirements of a package that are not met; of those that it does not name itself, only what is not there."""
    try:
        lines = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:  # a module without metadata, put there by hand
        return
    for need in map(Requirement, lines):
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(need.name)
        except importlib.metadata.PackageNotFoundError:
            if need.name not in seen:
                yield f"{need.name}{need.specifier} (for {name}): not installed"
            seen.add(need.name)
            continue
        if direct and not need.specifier.contains(version, prereleases=True):
            yield f"{need.name}{need.specifier} (for {name}): {version} is installed"
        if need.name not in seen:
            seen.add(need.name)
            yield from _lacking(need.name, seen, direct=False)


def versions() -> dict[str, str]:
    """The versions of what matters for the results."""
    found = {"python": platform.python_version()}
    for name in SHOWN:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def device() -> dict[str, Any]:
    """Name, driver, memory and compute capability of the first GPU, as nvidia-smi tells; empty where there is none.

    torch is not asked, so that this process holds nothing of the GPU while others use it.
    """
    names = ("name", "driver_version", "memory.total", "compute_cap")
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return dict(zip(names, map(str.strip, lines[0].split(",")), strict=False)) if lines else {}
