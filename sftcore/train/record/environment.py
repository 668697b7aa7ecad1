"""What of a machine and its code can change a run's numbers: recorded in the manifest, compared by a replay."""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftcore.data.store.cache import source_digest
from sftcore.model.products.digits import float32_matmul

if TYPE_CHECKING:
    from sftcore.core.registry import Bound

_VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA",
    "MKL_CBWR", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "CUDA_VISIBLE_DEVICES",
)  # fmt: skip
_SAMPLE = 2**20
_SAMPLES = 16


def environment() -> dict[str, Any]:
    """Processor, threads, accelerator and settings of torch, as plain values."""
    import torch

    has_accelerator = torch.accelerator.is_available()
    return {
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "threads": torch.get_num_threads(),
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "accelerator": torch.cuda.get_device_name() if has_accelerator and torch.cuda.is_available() else None,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "float32_matmul": float32_matmul(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def sources(bound: Iterable[Bound]) -> dict[str, str]:
    """Digests of the source of sftcore and of each plugin, `kind name` to digest."""
    found = {"sftcore": _digest(__file__)}
    for one in bound:
        file = inspect.getsourcefile(type(one.plugin))
        if file and Path(file).is_file():
            found[f"{one.entry.kind} {one.entry.name}"] = _digest(file)
    return found


def fingerprint(name: str | None) -> str | None:
    """Digest of a local model's files: names, sizes, and samples of each, as reading all of a large one takes minutes.

    None where the model is not a local file or folder; a hub id has a revision for this.
    """
    path = Path(name).expanduser() if name else None
    if path is None or not path.exists():
        return None
    files = [path] if path.is_file() else sorted(one for one in path.iterdir() if one.is_file() and _counts(one))
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        _sample(file, digest)
    return digest.hexdigest()


def sampled_sha256(path: Path) -> str:
    """Digest of a file's size and samples of it: 16 MiB at most are read, so a smaller file is read whole."""
    digest = hashlib.sha256(f"{path.stat().st_size}\n".encode())
    _sample(path, digest)
    return digest.hexdigest()


def _sample(file: Path, digest: Any) -> None:
    size = file.stat().st_size
    with file.open("rb") as opened:
        for number in range(_SAMPLES):
            opened.seek(number * max(size - _SAMPLE, 0) // (_SAMPLES - 1))
            digest.update(opened.read(_SAMPLE))
            if size <= _SAMPLE:
                break


def _counts(file: Path) -> bool:
    return file.suffix in (".json", ".safetensors", ".bin", ".gguf", ".model", ".jinja", ".txt", ".py")


@functools.cache
def _digest(file: str) -> str:
    return source_digest(file)


@functools.cache
def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
