"""NEFTune: uniform noise on the embeddings of training (Jain et al. 2023, arXiv:2310.05914)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
from attrs.validators import ge

from sftcore import LoadedModel, ModelError, Plan, Removable, hookimpl, plugin

if TYPE_CHECKING:
    import torch


@plugin
class NEFTune:
    """Uniform noise on the input embeddings, in training only, scaled by alpha / sqrt(length x width).

    The length is that of each document: padding counts for nothing and gets no noise, and in packed rows every document
    has its own.
    """

    alpha: float = attrs.field(default=5.0, converter=float, validator=ge(0))
    """The paper tries 5, 10 and 15."""

    @hookimpl
    def options_from(self, settings: Mapping[str, Any]) -> Mapping[str, Any] | None:
        alpha = settings.get("neftune_noise_alpha")
        return None if alpha is None else {"alpha": alpha}

    @hookimpl
    def claims(self) -> Iterable[str]:
        return ["embedding.noise"]

    @hookimpl
    def inject_noise(self, loaded: LoadedModel, plan: Plan) -> Removable:
        embeddings = loaded.model.get_input_embeddings()
        if embeddings is None:
            raise ModelError(
                f"{type(loaded.model).__name__} has no input embeddings to add noise to.",
                where="noise.neftune",
                fix="Remove neftune_noise_alpha.",
            )
        return EmbeddingNoise(self.alpha).attach(loaded.model, embeddings)


@attrs.define
class EmbeddingNoise:
    """Hooks: one before the model's forward reads where documents are, one on the embeddings adds the noise.

    Shapes: B rows, T tokens, D dimensions.
    """

    alpha: float
    _batch: Mapping[str, Any] = attrs.field(factory=dict)
    _handles: list[Removable] = attrs.field(factory=list)

    def attach(self, model: torch.nn.Module, embeddings: torch.nn.Module) -> EmbeddingNoise:
        """Begin with the noise, on the outermost model, which is the one that a trainer calls."""
        self._handles += [
            model.register_forward_pre_hook(self._remember, with_kwargs=True),
            model.register_forward_hook(self._forget, always_call=True),
            embeddings.register_forward_hook(self._add),
        ]
        return self

    def remove(self) -> None:
        """Take all hooks off again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _remember(self, module: torch.nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        self._batch = {name: kwargs.get(name) for name in ("attention_mask", "position_ids")}

    def _forget(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        self._batch = {}

    def _add(self, module: torch.nn.Module, args: Any, output_BTD: torch.Tensor) -> torch.Tensor:
        import torch

        if not module.training:
            return output_BTD
        lengths_BT = lengths_of(self._batch, output_BTD)
        # drawn in float32 also for bfloat16, whose uniform numbers are few
        noise_BTD = torch.empty_like(output_BTD, dtype=torch.float32, requires_grad=False).uniform_(-1, 1)
        scale_BT = self.alpha / (lengths_BT.clamp(min=1) * output_BTD.shape[-1]).sqrt() * (lengths_BT > 0)
        return output_BTD + noise_BTD.mul_(scale_BT[..., None]).to(output_BTD.dtype)


def lengths_of(batch: Mapping[str, Any], embedded_BTD: torch.Tensor) -> torch.Tensor:
    """The length of the document that each token belongs to, 0 for padding: (B, T) float32.

    A mask of (B, T) says what is padding; without one, positions that restart at 0 say where documents begin; without
    either, every row is one document.
    """
    import torch

    shape, device = embedded_BTD.shape[:-1], embedded_BTD.device
    mask, positions = batch.get("attention_mask"), batch.get("position_ids")
    if getattr(mask, "shape", None) == shape:
        real_BT = torch.as_tensor(mask, device=device).bool()
        return real_BT.sum(-1, keepdim=True) * real_BT.float()
    if getattr(positions, "shape", None) != shape:
        return torch.full(shape, float(shape[-1]), device=device)
    starts_BT = torch.as_tensor(positions, device=device) == 0
    starts_BT[:, 0] = True
    # numbered through all rows, so that one count gives every length; bincount would wait for the number of documents
    numbers = starts_BT.flatten().cumsum(0) - 1
    lengths = torch.zeros(numbers.shape, device=device).scatter_add_(0, numbers, torch.ones_like(numbers).float())
    return lengths[numbers].reshape(shape)
