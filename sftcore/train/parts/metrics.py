"""The metrics of TRL's trainer, kept as sums on the device and brought together across ranks when they are logged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

Mode: TypeAlias = Literal["train", "eval"]
_SUMS = ("entropy", "correct", "supervised", "tokens", "aux_loss", "batches")


class Metrics:
    """entropy (nats, where the loss computes it) and mean_token_accuracy over supervised tokens since the last log, and
    running token counts.

    Both means are weighted by tokens, not by batches. `num_tokens` counts non-padding tokens of training on all ranks,
    `num_supervised_tokens` those of them that the loss was computed on. `copies` ranks each see the same rows.
    """

    def __init__(self, accelerator: Accelerator, copies: int = 1) -> None:
        self._accelerator = accelerator
        self._copies = copies
        self._sums: dict[str, torch.Tensor | None] = {"train": None, "eval": None}
        self._has_entropy = True
        self.num_tokens = 0
        self.num_supervised_tokens = 0

    def add(
        self, mode: str, found: dict[str, torch.Tensor], inputs: dict[str, Any], num_tokens: torch.Tensor | None = None
    ) -> None:
        """Count one micro-batch of `num_tokens`, or of what its padding mask says; nothing leaves the device."""
        import torch

        labels: Any = inputs["labels"]
        mask: Any = inputs.get("attention_mask")
        if num_tokens is not None:
            tokens = num_tokens.sum()
        elif getattr(mask, "shape", None) == labels.shape:
            tokens = mask.sum()
        else:
            tokens = labels.new_tensor(labels.numel())
        one = tokens.new_tensor(1)
        self._has_entropy = "entropy" in found
        entropy, aux_loss = (found.get(name, one * 0) for name in ("entropy", "aux_loss"))
        parts = (entropy, found["correct"], found["supervised"], tokens, aux_loss, one)
        sums = torch.stack([part.detach().double().to(tokens.device) for part in parts])
        known = self._sums[mode]
        self._sums[mode] = sums if known is None else known + sums

    def drain(self, mode: str) -> dict[str, float]:
        """The metrics since the last call, over all ranks; empty where no batch was counted."""
        sums = self._sums[mode]
        if sums is None:
            return {}
        self._sums[mode] = None
        summed = self._accelerator.reduce(sums, reduction="sum") / self._copies
        total = dict(zip(_SUMS, summed.tolist(), strict=True))
        if mode == "train":
            self.num_tokens += int(total["tokens"])
            self.num_supervised_tokens += int(total["supervised"])
        supervised = max(total["supervised"], 1.0)
        logged = {
            **({"entropy": total["entropy"] / supervised} if self._has_entropy else {}),
            "mean_token_accuracy": total["correct"] / supervised,
            "num_tokens": float(self.num_tokens),
            "num_supervised_tokens": float(self.num_supervised_tokens),
        }
        if total["aux_loss"]:
            logged["aux_loss"] = total["aux_loss"] / total["batches"]
        return logged

    def state(self) -> dict[str, Any]:
        """All that is carried from one batch to the next, as plain values; float64 sums come back bit by bit."""
        return {
            "sums": {mode: None if sums is None else sums.tolist() for mode, sums in self._sums.items()},
            "has_entropy": self._has_entropy,
            "num_tokens": self.num_tokens,
            "num_supervised_tokens": self.num_supervised_tokens,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        import torch

        device = self._accelerator.device
        self._sums = {
            mode: None if sums is None else torch.tensor(sums, dtype=torch.float64, device=device)
            for mode, sums in state["sums"].items()
        }
        self._has_entropy = state["has_entropy"]
        self.num_tokens, self.num_supervised_tokens = state["num_tokens"], state["num_supervised_tokens"]

    def sums(self) -> torch.Tensor | None:
        """The sums of training since the last log, to `put_back` where a step is to count for nothing."""
        return self._sums["train"]

    def put_back(self, sums: torch.Tensor | None) -> None:
        """Forget what was counted since `sums` was asked for."""
        self._sums["train"] = sums

    def forget_evaluation(self) -> None:
        """Forget what an evaluation that was left has counted."""
        self._sums["eval"] = None
