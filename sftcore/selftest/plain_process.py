"""The plain path in a process of its own, where a loader has replaced transformers' classes in this one.

`python -m sftcore.selftest.plain_process SPEC` is that process: it loads the model by transformers alone,
and the adapter by PEFT.
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
from sftcore.selftest.equivalence import Measured, Row, attention, plain, without_dropout
from sftcore.selftest.two_processes import TIMEOUT_S, error_of, number, read, write


def plain_elsewhere(
    model: Any, request: ModelRequest, rows: Sequence[Row], implementation: str, autocast: str | None
) -> Measured:
    """Cross-entropy and gradients of the same weights, loaded by transformers alone.

    Raises:
        ModelError: it cannot be done, with the reason.
    """
    if quantised := quantisation_of(model):
        raise ModelError(f"its base is quantised in its own way ({quantised})")
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
        spec.write_text(json.dumps(given, default=number), encoding="utf-8")
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
            raise ModelError(f"the plain path was not done after {TIMEOUT_S} s") from error
        if done.returncode:
            raise ModelError(f"the plain path failed: {error_of(done.stdout, done.returncode)}")
        return read(out, [name for name, one in model.named_parameters() if one.requires_grad])


def main() -> None:
    """The other process."""
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
    with without_dropout(model), attention(model, spec["attention"]), mixed:
        found = plain(model, spec["rows"])
    write(Path(spec["out"]), found)


if __name__ == "__main__":
    main()
