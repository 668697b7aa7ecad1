"""Devices, memory, disk and caches of this machine, without torch."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from attrs import frozen

from sftcore.core.errors import WriteError
from sftcore.tools.doctor.line import Line, found_in
from sftcore.tools.doctor.versions import version_of
from sftcore.train.estimate.host import host_memory
from sftcore.util.disk import cache_folder, writing

_SECONDS = 10
_SCARCE, _NONE_LEFT = 10 * 2**30, 2**30
"""Free bytes below which a disk is nearly full, and below which nothing can be trained onto it."""


@frozen
class GPU:
    """An NVIDIA GPU as its driver tells: `capability` such as (8, 0), memory in bytes."""

    name: str
    capability: tuple[int, int]
    memory: int
    free: int


@frozen
class Machine:
    """What a run has to do with: GPUs that the driver sees (None: there is no driver), and bytes of host memory."""

    gpus: tuple[GPU, ...] | None
    memory: int

    @property
    def uses_gpu(self) -> bool:
        """Whether torch can use a GPU here, as far as metadata tell."""
        return bool(self.visible) and not is_cpu_build()

    @property
    def visible(self) -> tuple[GPU, ...]:
        """The GPUs that CUDA_VISIBLE_DEVICES leaves."""
        chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
        if chosen is None or self.gpus is None:
            return self.gpus or ()
        words = [word.strip() for word in chosen.split(",")]
        if not all(word.isdigit() for word in words):  # a UUID, a slice of a GPU, or none
            return () if words[0] in ("", "-1", "none", "NoDevFiles") else self.gpus
        return tuple(self.gpus[int(word)] for word in words if int(word) < len(self.gpus))


def this_machine() -> Machine:
    """What the driver and the operating system say; a limit of the container counts."""
    return Machine(_gpus(), host_memory())


def _gpus() -> tuple[GPU, ...] | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = "--query-gpu=name,compute_cap,memory.total,memory.free"
    try:
        # CUDA_VISIBLE_DEVICES does not reach it
        answer = subprocess.run(
            [program, query, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=_SECONDS
        )
        return tuple(map(_gpu, answer.stdout.splitlines())) if answer.returncode == 0 else None
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _gpu(line: str) -> GPU:
    name, capability, total, free = line.rsplit(",", 3)
    major, minor = capability.strip().split(".")
    return GPU(name.strip(), (int(major), int(minor)), int(total) * 2**20, int(free) * 2**20)


def is_cpu_build() -> bool:
    """Whether torch was built without support for GPUs, as far as its version says so."""
    return (version_of("torch") or "").endswith("+cpu")


def device_lines(machine: Machine) -> list[Line]:
    """The devices, and what of the environment hides or slows them."""
    if machine.gpus:
        listed = "; ".join(
            f"{one.name}, {one.free / 2**30:,.1f} of {one.memory / 2**30:,.1f} GiB free, compute capability "
            f"{one.capability[0]}.{one.capability[1]}"
            for one in machine.gpus
        )
    else:
        listed = f"CPU ({platform.machine()}), {os.cpu_count()} cores, no NVIDIA GPU"
    return found_in("devices", _device_faults(machine), f"{listed}; {machine.memory / 2**30:,.1f} GiB of host memory")


def _device_faults(machine: Machine) -> Iterator[Line]:
    if machine.gpus and is_cpu_build():
        yield Line(
            "devices",
            "error",
            f"torch {version_of('torch')} was built without CUDA, so a run would not use {machine.gpus[0].name}.",
            "Change torch: pip install --force-reinstall torch, or choose a build at https://pytorch.org.",
        )
    if machine.gpus is None and Path("/proc/driver/nvidia/version").exists() and shutil.which("nvidia-smi"):
        yield Line(
            "devices",
            "error",
            "there is an NVIDIA driver, and nvidia-smi does not answer.",
            "Run nvidia-smi: driver and kernel module may be of different versions until a restart.",
        )


def disk_lines(places: Sequence[tuple[str, Path, int]]) -> list[Line]:
    """Space and access of the places that are written to.

    Args:
        places: what it is for, the folder, and the bytes that a run will write there, 0 where that is not known.
    """
    return found_in("disk", (line for one in places for line in _place(*one)), _told(places))


def _told(places: Sequence[tuple[str, Path, int]]) -> str:
    return "; ".join(f"{what} {folder}: {_free(folder) / 2**30:,.1f} GiB free" for what, folder, _ in places)


def _free(folder: Path) -> int:
    return shutil.disk_usage(_existing(folder)).free


def _existing(folder: Path) -> Path:
    folder = folder.expanduser().absolute()
    return next(one for one in (folder, *folder.parents) if one.exists())


def _place(what: str, folder: Path, needed: int) -> Iterator[Line]:
    nearest = _existing(folder)
    try:
        with writing(what, folder), tempfile.TemporaryFile(dir=nearest) as file:
            file.write(b"0")
            file.flush()
    except WriteError as error:
        yield Line("disk", "error", f"{error.where}: {error.what}", error.fix)
        return
    free = _free(folder)
    if needed > free or free < _NONE_LEFT:
        more = f", and a run writes {needed / 2**30:,.1f} GiB there" if needed > free else ""
        yield Line("disk", "error", f"{what} {folder}: {free / 2**30:,.2f} GiB are free{more}.", _FREE_SPACE[what])
    elif free < _SCARCE and not needed:
        yield Line("disk", "warning", f"{what} {folder}: {free / 2**30:,.1f} GiB are free.", _FREE_SPACE[what])


_FREE_SPACE = {
    "the cache": "Free space (sftcore cache prune), or set SFTCORE_CACHE to a folder on another disk.",
    "the hub's cache": "Free space (hf cache prune), or set HF_HOME to a folder on another disk.",
    "the current folder": "Free space, or set output_dir to a folder on another disk.",
    "output_dir": "Free space, keep fewer checkpoints (save_total_limit), or set output_dir to another disk.",
}


def usual_places() -> list[tuple[str, Path, int]]:
    """The places that every run writes to, its own folder left out."""
    given = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{base}/huggingface"
    return [("the cache", cache_folder(), 0), ("the hub's cache", Path(given or home), 0)]
