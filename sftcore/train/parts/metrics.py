"""The metrics of TRL's trainer, kept as sums on the device and brought together across ranks when they are logged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from sftcore.train.parts.loss import LossBatch

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

    def add(self, mode: str, found: Mapping[str, torch.Tensor], batch: LossBatch) -> None:
        """Count one micro-batch; its tokens are as its collator or its mask says. Nothing leaves the device."""
        import torch

        from sftcore.train.parts.sums import widest_float

        labels, mask = batch.request.labels, batch.inputs.get("attention_mask")
        if batch.num_tokens is not None:
            tokens = batch.num_tokens.sum()
        elif getattr(mask, "shape", None) == labels.shape:
            tokens = mask.sum()  # type: ignore[union-attr]
        else:
            tokens = labels.new_full((), labels.numel())
        one = torch.ones_like(tokens)
        self._has_entropy = "entropy" in found
        entropy, aux_loss = (found.get(name, torch.zeros_like(tokens)) for name in ("entropy", "aux_loss"))
        parts = (entropy, found["correct"], found["supervised"], tokens, aux_loss, one)
        dtype = widest_float(labels.device)
        sums = torch.stack([part.detach().to(labels.device, dtype) for part in parts])
        known = self._sums[mode]
        self._sums[mode] = sums if known is None else known + sums

    def drain(self, mode: str) -> dict[str, float]:
        """The metrics since the last call, over all ranks; empty where no batch was counted."""
        import torch

        sums = self._sums[mode]
        if sums is None:
            return {}
        self._sums[mode] = None
        since_log = sums if mode == "train" else self._sums["train"]  # which an evaluation leaves to the next log
        both = torch.stack([sums, torch.zeros_like(sums) if since_log is None else since_log])
        total, trained = (
            dict(zip(_SUMS, one, strict=True))
            for one in (self._accelerator.reduce(both, reduction="sum") / self._copies).tolist()
        )
        num_tokens = self.num_tokens + int(trained["tokens"])
        num_supervised = self.num_supervised_tokens + int(trained["supervised"])
        if mode == "train":
            self.num_tokens, self.num_supervised_tokens = num_tokens, num_supervised
        supervised = max(total["supervised"], 1.0)
        logged = {
            **({"entropy": total["entropy"] / supervised} if self._has_entropy else {}),
            "mean_token_accuracy": total["correct"] / supervised,
            "num_tokens": float(num_tokens),
            "num_supervised_tokens": float(num_supervised),
        }
        if total["aux_loss"]:
            logged["aux_loss"] = total["aux_loss"] / total["batches"]
        return logged

    def state(self) -> dict[str, Any]:
        """All that is carried from one batch to the next, as plain values; sums come back bit by bit."""
        return {
            "sums": {mode: None if sums is None else sums.tolist() for mode, sums in self._sums.items()},
            "has_entropy": self._has_entropy,
            "num_tokens": self.num_tokens,
            "num_supervised_tokens": self.num_supervised_tokens,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        import torch

        from sftcore.train.parts.sums import widest_float

        device = self._accelerator.device
        self._sums = {
            mode: None if sums is None else torch.tensor(sums, dtype=widest_float(device), device=device)
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
