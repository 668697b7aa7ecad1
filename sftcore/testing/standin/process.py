"""Functions called in a process of its own in which the stand-in is the accelerator, or in which there is none.

    results = on_standin("my_tests.runs:train", [{"folder": str(tmp_path)}])

calls `train(folder=...)` there, in order, once for each mapping; so libraries are imported once for many runs.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sftcore.testing.libraries import spare_libraries


def on_standin(function: str, calls: Sequence[Mapping[str, Any]], *, float64: bool = True) -> list[Any]:
    """What `function` ("module:name") returns for each call's keyword arguments, all of them JSON.

    A call that raises gives `{"error": <its traceback>}`, and the next one follows.
    """
    return _in_process(function, calls, {"float64": float64})


def on_cpu(function: str, calls: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The same in a process without any accelerator, to compare with."""
    return _in_process(function, calls, None)


def _in_process(function: str, calls: Sequence[Mapping[str, Any]], standin: Mapping[str, Any] | None) -> list[Any]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    environment.pop("ACCELERATE_TORCH_DEVICE", None)
    if standin is not None:
        environment["ACCELERATE_TORCH_DEVICE"] = "standin:0"
    with tempfile.TemporaryDirectory() as folder:
        spec, out = Path(folder) / "spec.json", Path(folder) / "out.json"
        spec.write_text(json.dumps({"function": function, "calls": list(calls), "standin": standin}))
        done = subprocess.run(
            [sys.executable, "-m", "sftcore.testing.standin.process", str(spec), str(out)],
            env=environment, capture_output=True, text=True,
        )  # fmt: skip
        if not out.exists():
            raise RuntimeError(f"{function} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        results: list[Any] = json.loads(out.read_text())
    return results


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    if spec["standin"] is not None:
        from sftcore.testing.standin import device as standin

        standin.install(**spec["standin"])
        tell_transformers()
    module, _, name = spec["function"].partition(":")
    function = getattr(importlib.import_module(module), name)
    results = []
    for call in spec["calls"]:
        try:
            results.append(function(**call))
        except Exception:  # the caller judges
            results.append({"error": traceback.format_exc()})
        spare_libraries()
    Path(sys.argv[2]).write_text(json.dumps(results))


def tell_transformers() -> None:
    """Have it know that the device has bfloat16, which it asks the devices that it knows; before it reads arguments."""
    import transformers.utils
    import transformers.utils.import_utils

    for module in (transformers.utils, transformers.utils.import_utils):
        module.is_torch_bf16_gpu_available = lambda: True


if __name__ == "__main__":
    main()
