"""Compute the reference in a separate process, for loaders that replace classes of transformers in this one.

`python -m sftcore.selftest.reference_process SPEC` is that process. It loads the model with transformers alone, and
the adapter with PEFT.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from sftcore.core.errors import ModelError
from sftcore.core.types import ModelRequest
from sftcore.model.precision import quantisation_of
from sftcore.model.unwrap import causal_model, is_peft_model
from sftcore.selftest.equivalence import Measured, Row, measure_reference, with_attention, without_dropout
from sftcore.selftest.two_processes import TIMEOUT_S, json_number, read_measured, reported_error, write_measured


def measure_reference_elsewhere(
    model: Any, request: ModelRequest, rows: Sequence[Row], implementation: str, autocast: str | None
) -> Measured:
    """The reference for the same weights, loaded with transformers alone.

    Raises:
        ModelError: the reference cannot be computed, with the reason.
    """
    if quantised := quantisation_of(model):
        raise ModelError(f"its base is quantised in a way of the loader's own ({quantised})")
    with tempfile.TemporaryDirectory(prefix="sftcore-selftest-") as folder:
        spec, out = Path(folder) / "spec.json", Path(folder) / "gradients.safetensors"
        adapter = Path(folder) / "adapter" if is_peft_model(model) else None
        if adapter is not None:
            model.save_pretrained(adapter)
        given: dict[str, Any] = {
            "model": str(Path(request.name or "").expanduser()),
            "revision": request.revision,
            "trust_remote_code": request.trust_remote_code,
            "dtype": str(causal_model(model).dtype).removeprefix("torch."),
            "adapter": str(adapter) if adapter else None,
            "attention": implementation,
            "autocast": autocast,
            "device": causal_model(model).device.type,
            "rows": list(rows),
            "out": str(out),
        }
        spec.write_text(json.dumps(given, default=json_number), encoding="utf-8")
        try:
            done = subprocess.run(
                [sys.executable, "-m", __spec__.name, str(spec)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired as error:
            raise ModelError(f"the reference was not finished after {TIMEOUT_S} s") from error
        if done.returncode:
            raise ModelError(f"the reference failed: {reported_error(done.stdout, done.returncode)}")
        return read_measured(out, [name for name, one in model.named_parameters() if one.requires_grad])


def main() -> None:
    """Compute the reference and write it to a file."""
    import torch
    from transformers import AutoModelForCausalLM

    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    known = {key: spec[key] for key in ("revision", "trust_remote_code", "dtype")}
    model = AutoModelForCausalLM.from_pretrained(spec["model"], **known)
    if spec["adapter"] is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, spec["adapter"], is_trainable=True)
    model.to(spec["device"]).train()
    mixed = (
        nullcontext() if spec["autocast"] is None else torch.autocast(spec["device"], getattr(torch, spec["autocast"]))
    )
    with without_dropout(model), with_attention(model, spec["attention"]), mixed:
        found = measure_reference(model, spec["rows"])
    write_measured(Path(spec["out"]), found)


if __name__ == "__main__":
    main()
