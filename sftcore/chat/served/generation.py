"""How the tokens of an answer are chosen."""

from __future__ import annotations

from typing import Any

from attrs import frozen


@frozen
class Sampling:
    """How the tokens of an answer are chosen; temperature 0 always takes the most likely one."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


def generate_arguments(sampling: Sampling) -> dict[str, Any]:
    """Arguments of `generate` that override whatever the model's own configuration says about sampling."""
    if sampling.temperature == 0:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if sampling.seed is not None:
        import torch

        torch.manual_seed(sampling.seed)
    return {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
