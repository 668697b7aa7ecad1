"""Passes of a few short documents through a model, as it trains, that leave nothing behind.

The model is in training mode, without dropout and without checkpointing, under whatever autocast the caller is in.
Flags, buffers and random states are put back, and no gradient is stored.

Shapes: B rows, T tokens of a row, N tokens of all documents, W width, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen

from sftcore.documents.proof import ordinary_token_ids
from sftcore.model.unwrap import causal_model
from sftcore.trials.measured import Measured, preserved_random_state, without_dropout

if TYPE_CHECKING:
    import torch

    Arguments = Mapping[str, Any]

LENGTHS = (5, 14, 9)
"""Tokens of the documents."""
LONGEST_WINDOW = 64
"""A sliding window up to this is exceeded by a document."""
SAMPLED = 4096
"""How many numbers of a parameter's gradient are kept beside its norm, so that two sets of them need no memory."""
EMBEDDINGS = "the input embeddings"


@frozen
class Passed:
    """One forward and backward pass: logits (N, V) float32 of all documents, the loss, and samples of gradients."""

    logits_NV: torch.Tensor
    measured: Measured


@define
class ModelPasses:
    """Passes of one model, as it trains but for dropout and checkpointing.

    Args:
        model: with its adapter, not wrapped by DDP, its weights not sharded.
        way: from a batch with position_ids to the model's arguments, as the documents' proof found it; None pads.
        flattened: whether documents are laid end to end in one row, rather than in two.
        autocast: the name of the dtype of the autocast that the caller is in.
        room: the most tokens of a document, where the model has few positions.
        left: whether shorter rows are padded on the left.
    """

    model: Any
    way: Callable[[Arguments], Arguments] | None = None
    flattened: bool = False
    autocast: str | None = None
    room: int | None = None
    left: bool = False
    passes: int = field(default=0, init=False)
    """Forward passes so far, a backward pass counted as two."""
    tokens: int = field(default=0, init=False)
    """The tokens of these passes, each counted as often as it passed."""
    _now: Passed | None = field(default=None, init=False)

    def as_it_is(self) -> Passed:
        """The model as it is between two trials."""
        if self._now is None:
            self._now = self.once()
        return self._now

    def once(self, *, padded: bool = False, backward: bool = True, training: bool = True) -> Passed:
        """One pass, in evaluation mode where it is not `training`."""
        import torch

        documents = self._documents()
        inputs, places = self._laid_out(documents, padded=padded or self.way is None)
        width = inputs["input_ids"].shape[1]
        self.passes += 3 if backward else 1
        self.tokens += (3 if backward else 1) * inputs["input_ids"].numel()
        trained = {name: one for name, one in self.model.named_parameters() if one.requires_grad}
        with ExitStack() as stack:
            stack.enter_context(as_trained(self.model, training))
            stack.enter_context(torch.set_grad_enabled(backward))
            embedded = stack.enter_context(_embedded(self.model, inputs["input_ids"].shape))
            logits_BTV = self.model(**inputs, use_cache=False).logits[:, -width:].float()
            found = [logits_BTV[row, span] for row, span in places]
            losses = [
                torch.nn.functional.cross_entropy(one[:-1], ids[1:].to(one.device), reduction="sum")
                for one, ids in zip(found, documents, strict=True)
            ]
            loss = torch.stack(losses).sum() / sum(len(ids) - 1 for ids in documents)
            gradients: dict[str, torch.Tensor | None] = {}
            if backward:
                wanted = [*embedded, *trained.values()]
                given = list(torch.autograd.grad(loss, wanted, allow_unused=True)) if loss.requires_grad else []
                given += [None] * (len(wanted) - len(given))
                if embedded and (first := given.pop(0)) is not None:
                    gradients[EMBEDDINGS] = torch.cat([first[row, span] for row, span in places]).float()
                sampled = map(_sample, given)
                gradients.update(zip(trained, sampled, strict=True))
        logits_NV = torch.cat(found).detach()
        return Passed(logits_NV, Measured(float(loss.detach()), gradients))

    def _documents(self) -> list[torch.Tensor]:
        """Random ordinary tokens, one of the documents longer than a short sliding window."""
        import torch

        causal = causal_model(self.model)
        window = getattr(causal.config.get_text_config(), "sliding_window", None)
        longest = max(LENGTHS[1], window + 5 if isinstance(window, int) and window <= LONGEST_WINDOW else 0)
        known = torch.tensor(ordinary_token_ids(causal.config))
        generator = torch.Generator().manual_seed(2)
        device = self.model.get_input_embeddings().weight.device
        return [
            known[torch.randint(len(known), (min(length, self.room or length),), generator=generator)].to(device)
            for length in (LENGTHS[0], longest, LENGTHS[2])
        ]

    def _laid_out(
        self, documents: Sequence[torch.Tensor], *, padded: bool
    ) -> tuple[dict[str, Any], list[tuple[int, slice]]]:
        """The model's arguments, and where each document is in them."""
        import torch

        lengths = [len(one) for one in documents]
        if padded:
            side = "left" if self.left else "right"
            ids_BT = torch.nn.utils.rnn.pad_sequence(list(documents), batch_first=True, padding_side=side)
            ends = torch.tensor(lengths, device=ids_BT.device)
            mask_BT = (torch.arange(ids_BT.shape[1], device=ids_BT.device) < ends[:, None]).long()
            width = ids_BT.shape[1]
            starts = [width - length if self.left else 0 for length in lengths]
            mask_BT = mask_BT.flip(1) if self.left else mask_BT
            spans = [slice(start, start + length) for start, length in zip(starts, lengths, strict=True)]
            return {"input_ids": ids_BT, "attention_mask": mask_BT}, [*enumerate(spans)]
        assert self.way is not None
        rows = [documents] if self.flattened else [documents[:2], documents[2:]]
        width = max(sum(len(one) for one in row) for row in rows)
        places, ids, positions = [], [], []
        for number, row in enumerate(rows):
            edges = list(itertools.accumulate((len(one) for one in row), initial=0))
            places += [(number, slice(start, end)) for start, end in itertools.pairwise(edges)]
            padding = width - edges[-1]
            ids.append(torch.cat([*row, row[0].new_zeros(padding)]))
            positions.append([place for one in (*(len(one) for one in row), padding) for place in range(one)])
        ids_BT, position_ids_BT = torch.stack(ids), torch.tensor(positions, device=documents[0].device)
        return dict(self.way({"input_ids": ids_BT, "position_ids": position_ids_BT})), places


def logits_gap(got_NV: torch.Tensor, wanted_NV: torch.Tensor, *, median: bool = False) -> float:
    """How much logits differ, relative to their spread over the vocabulary; a constant in a row counts for nothing.

    It is the root mean square over all tokens, or with `median` that of the token in the middle.
    """
    off_NV, own_NV = got_NV.to(wanted_NV.device) - wanted_NV, wanted_NV
    off_N, own_N = ((one - one.mean(-1, keepdim=True)).norm(dim=-1) for one in (off_NV, own_NV))
    if median:
        return float((off_N / own_N).median())
    size = float(own_N.norm())
    return float(off_N.norm()) / size if size else float(off_N.norm())


def mixes_tokens(causal: Any) -> bool:
    """Whether experts are chosen by rounded numbers, so that a rounding error may change which ones."""
    config = causal.config.get_text_config()
    return any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts"))


def weights_sum(model: Any) -> float:
    """A sum over the bits of all weights and buffers, on their device: another one if a bit has changed."""
    import torch

    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = [
        one.detach().contiguous().view(kinds[one.element_size()]).sum(dtype=torch.int64)
        for one in model.parameters()
        if one.element_size() in kinds and one.device.type != "meta" and one.ndim
    ]
    return sum(hash((place, int(one))) for place, one in enumerate(sums))


def _sample(gradient: torch.Tensor | None) -> torch.Tensor | None:
    """Some of a gradient's numbers, evenly spread, and its norm: float32."""
    import torch

    if gradient is None:
        return None
    gradient = gradient.to_dense() if gradient.is_sparse else gradient
    numbers = gradient.flatten()
    some = numbers[:: max(1, numbers.numel() // SAMPLED)].float()
    return torch.cat([some, torch.linalg.vector_norm(gradient.float())[None]])


@contextmanager
def as_trained(model: Any, training: bool = True) -> Iterator[None]:
    """Training mode without dropout and checkpointing inside; flags, buffers and random states are put back.

    Args:
        training: False for evaluation mode.
    """
    flags = [(module, module.training) for module in model.modules()]
    saved = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False) is True]
    buffers = [
        (module, dict(module._buffers), {name: one.clone() for name, one in module._buffers.items() if one is not None})
        for module in model.modules()
        if module._buffers
    ]
    with preserved_random_state(), without_dropout(model):
        try:
            model.train(training)
            for module in saved:
                module.gradient_checkpointing = False
            yield
        finally:
            for module, own, values in buffers:
                for name, value in values.items():
                    module._buffers[name] = own[name]
                    own[name].data.copy_(value)
            for module in saved:
                module.gradient_checkpointing = True
            for module, training in flags:
                module.training = training


@contextmanager
def _embedded(model: Any, shape: Any) -> Iterator[list[torch.Tensor]]:
    """What the input embeddings give, once they are called with tokens of this shape, in the list that is yielded."""
    import torch

    found: list[torch.Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> Any:
        if found or not torch.is_grad_enabled() or getattr(output, "shape", ())[:2] != shape:
            return None
        found.append(output if output.requires_grad else output.detach().requires_grad_())
        return found[0].clone()  # which a model may change in place

    handle = model.get_input_embeddings().register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()
