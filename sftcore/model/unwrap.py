"""Finds the model inside its wrappers."""

from __future__ import annotations

from typing import Any


def causal_model(model: Any) -> Any:
    """The causal model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def is_peft_model(model: Any) -> bool:
    """Whether PEFT has wrapped this model."""
    import sys

    peft = sys.modules.get("peft")  # no model is wrapped by PEFT if PEFT was never imported
    return peft is not None and isinstance(model, peft.PeftModel)
