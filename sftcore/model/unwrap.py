"""What is inside a model that PEFT has wrapped, or whose weights DeepSpeed's ZeRO-3 has partitioned."""

from __future__ import annotations

import sys
from typing import Any


def causal_model(model: Any) -> Any:
    """The causal model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def is_peft_model(model: Any) -> bool:
    """Whether PEFT has wrapped this model."""
    peft = sys.modules.get("peft")  # no model is wrapped by PEFT if PEFT was never imported
    return peft is not None and isinstance(model, peft.PeftModel)


def num_weights(parameter: Any) -> int:
    """The number of elements, even if ZeRO-3 has partitioned the parameter and left none here."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))
