"""Computes a loss's gradient through the head during the forward pass, one chunk of positions at a time.

Recomputing a chunk's logits in the backward pass would cost a third matrix multiplication of the size of the
vocabulary. Instead, the forward pass computes each chunk's gradient at once, and keeps only the gradients of the hidden
states and of the head's trainable parameters (compare the fused linear cross-entropy of Hsu et al. 2024,
arXiv:2410.10989). The head is still called as a module.

Shapes: N positions, C positions of a chunk, W width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from sftcore.losses.asked_again import is_transformed, may_be_asked_again, plain_operations

Head = Callable[[torch.Tensor], torch.Tensor]
ChunkSums = Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
"""From a chunk's hidden states (C, W) and the index of its first position to three scalars: loss, entropy, correct."""


LOGITS_AT_ONCE = {"cpu": 24 * 2**20}
"""Bytes of a chunk's logits, by device: on a CPU, where they keep their dtype, what its caches still help with
(measured on two cores), and no more than 32 MiB, beyond which glibc gives memory back at once, and each chunk waits for
new pages."""
ON_ACCELERATORS = 512 * 2**20
"""Bytes of float32 logits in a chunk on a GPU, whose products want more rows at once."""


def positions_at_once(device: str, vocabulary: int, dtype: torch.dtype = torch.float32) -> int:
    """How many positions a chunk has at most where nobody says: a power of two between 128 and 4,096.

    >>> [positions_at_once("cpu", size) for size in (32_000, 49_152, 151_936)], positions_at_once("cuda", 128_256)
    ([128, 128, 128], 1024)
    >>> [positions_at_once(device, 49_152, torch.bfloat16) for device in ("cpu", "cuda")]
    [256, 2048]
    """
    each = dtype.itemsize if device in LOGITS_AT_ONCE else torch.float32.itemsize
    fit = LOGITS_AT_ONCE.get(device, ON_ACCELERATORS) // (each * max(vocabulary, 1))
    return int(2 ** min(max(fit, 128), 4096).bit_length()) // 2


def sum_of_chunks(part: ChunkSums, hidden_NW: torch.Tensor, head: Head, chunk: int | None) -> tuple[torch.Tensor, ...]:
    """The sums of `part` over all chunks; the first is differentiable, also by the head's parameters.

    Without positions there is one empty chunk, so that zero gradients still reach every parameter.

    Args:
        part: the sums of one chunk.
        hidden_NW: states of all positions.
        head: from states to logits.
        chunk: positions at a time; None chooses by device, vocabulary and dtype.
    """
    if chunk is None:
        most = positions_at_once(hidden_NW.device.type, _vocabulary(head, hidden_NW), hidden_NW.dtype)
        chunk = _alike(len(hidden_NW), most)
    if not torch.is_grad_enabled() or is_transformed():
        return _summed([part(rows_CW, at) for at, rows_CW in _chunks(hidden_NW, chunk)])
    parameters = _parameters_of(part, head, hidden_NW)
    if parameters is None or any(one._backward_hooks for one in parameters):
        # a hook on a parameter is to see one gradient, that of the whole step
        again = _plainly(part) if may_be_asked_again() else part
        parts = [checkpoint(again, rows_CW, at, use_reentrant=False) for at, rows_CW in _chunks(hidden_NW, chunk)]
        return _summed(parts)
    if not parameters and not hidden_NW.requires_grad:
        return _summed([part(rows_CW, at) for at, rows_CW in _chunks(hidden_NW, chunk)])
    found: tuple[torch.Tensor, ...] = _GradientInForward.apply(part, chunk, hidden_NW, *parameters)
    return found


def _alike(positions: int, most: int) -> int:
    """The size of chunks of which none is much shorter, since the head's weights are read for each of them.

    >>> [_alike(positions, 256) for positions in (0, 20, 256, 300, 824, 2048)]
    [32, 32, 256, 160, 224, 256]
    """
    number = max(-(-positions // most), 1)
    return max(-(-positions // number // 32) * 32, 32)  # a multiple, of which CPUs compute products faster


def _vocabulary(head: Head, hidden_NW: torch.Tensor) -> int:
    """How many logits the head gives for a position."""
    known = getattr(getattr(head, "module", None), "out_features", None)
    # called only where it does not say: a call that is not part of the graph ends torch 2.13 under FSDP 2 (SIGSEGV)
    return known if isinstance(known, int) else int(head(hidden_NW[:0].detach()).shape[-1])


class _GradientInForward(torch.autograd.Function):
    """Sums over chunks with gradients that are computed in the forward pass, and only scaled in the backward pass."""

    @staticmethod
    def forward(ctx: Any, part: ChunkSums, chunk: int, hidden_NW: torch.Tensor, *parameters: torch.Tensor) -> Any:
        wanted = ctx.needs_input_grad[2]
        total, entropy, correct, ctx.gradients = _with_gradients(part, chunk, hidden_NW, parameters, wanted)
        ctx.again = None
        if may_be_asked_again():
            ctx.again = part, chunk, wanted, _autocast_like(hidden_NW.device.type)
            ctx.save_for_backward(hidden_NW, *parameters)
        ctx.mark_non_differentiable(entropy, correct)
        return total, entropy, correct

    @staticmethod
    def backward(ctx: Any, loss_grad: torch.Tensor, *_: Any) -> Any:
        differentiable = torch.is_grad_enabled()  # of create_graph=True
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None or differentiable:
            return None, None, *_once_more(ctx, loss_grad, differentiable=differentiable)
        # scaled in place and handed over, because the gradient of a trained head is as large as its weight
        scaled = [None if one is None else one.mul_(loss_grad.to(one.dtype)) for one in gradients]
        return None, None, *scaled


def _with_gradients(
    part: ChunkSums, chunk: int, hidden_NW: torch.Tensor, parameters: Sequence[torch.Tensor], wanted: bool
) -> tuple[Any, ...]:
    """The three sums, and the gradients of the first by hidden states (where `wanted`, else None) and parameters."""
    hidden_grad_NW = torch.empty_like(hidden_NW) if wanted else None
    gradients: list[torch.Tensor | None] = [None] * len(parameters)
    parts = []
    for at, rows_CW in _chunks(hidden_NW, chunk):
        rows_CW = rows_CW.detach().requires_grad_(wanted)
        with torch.enable_grad():
            loss, entropy, correct = part(rows_CW, at)
            inputs = [*([rows_CW] if wanted else []), *parameters]
            found = list(torch.autograd.grad(loss, inputs))
        parts.append((loss.detach(), entropy, correct))
        if hidden_grad_NW is not None:
            hidden_grad_NW[at : at + len(rows_CW)] = found.pop(0)
        gradients = [new if old is None else old.add_(new) for old, new in zip(gradients, found, strict=True)]
    return *_summed(parts), (hidden_grad_NW, *gradients)


def _once_more(ctx: Any, loss_grad: torch.Tensor, *, differentiable: bool) -> Sequence[torch.Tensor | None]:
    """The gradients of a backward pass that is not the first one, or that is to be differentiated itself.

    Raises:
        RuntimeError: nothing was kept for it.
    """
    if ctx.again is None:
        raise RuntimeError(
            "the gradient of this loss can itself not be differentiated; compute it within a compute_loss or "
            "training_step of your own"
            if differentiable
            else "the backward pass of this loss has already run; call the model again before the next one"
        )
    part, chunk, wanted, autocast = ctx.again
    hidden_NW, *parameters = ctx.saved_tensors
    if not differentiable:
        with autocast():
            *_, gradients = _with_gradients(part, chunk, hidden_NW, parameters, wanted)
        return [None if one is None else one.mul_(loss_grad.to(one.dtype)) for one in gradients]
    with torch.enable_grad(), autocast():
        total, *_ = _summed([_plainly(part)(rows_CW, at) for at, rows_CW in _chunks(hidden_NW, chunk)])
    inputs = [*([hidden_NW] if wanted else []), *parameters]
    found = torch.autograd.grad(total, inputs, loss_grad, create_graph=True)
    return found if wanted else (None, *found)


def _autocast_like(device: str) -> Callable[[], Any]:
    """What makes the autocast that is around now once more; a backward pass runs without it."""
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype, enabled=enabled, cache_enabled=False)


def _plainly(part: ChunkSums) -> ChunkSums:
    """The same sums from operations that torch can differentiate any number of times."""

    def plain(rows_CW: torch.Tensor, at: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        with plain_operations():
            return part(rows_CW, at)

    return plain


def _chunks(hidden_NW: torch.Tensor, chunk: int) -> Sequence[tuple[int, torch.Tensor]]:
    return [(at, hidden_NW[at : at + chunk]) for at in range(0, max(len(hidden_NW), 1), chunk)]


def _summed(parts: Sequence[Sequence[torch.Tensor]]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.stack(column).sum() for column in zip(*parts, strict=True))


def _parameters_of(part: ChunkSums, head: Head, hidden_NW: torch.Tensor) -> tuple[torch.Tensor, ...] | None:
    """What trains in the head and in the loss, or None if a backward pass inside the forward pass is not safe.

    It is read from the graph of a call without rows, which finds adapters, biases and a head behind any callable.
    Sharded weights (FSDP, ZeRO-3) are gathered and released by hooks that only know the outer backward pass.
    """
    module = getattr(head, "module", None)
    if isinstance(module, torch.nn.Module) and _is_sharded(module):
        return None
    with torch.enable_grad():
        rows_0W = hidden_NW[:0].detach().requires_grad_()
        total, *_ = part(rows_0W, 0)
    found: dict[int, torch.Tensor] = {}
    pending, seen = [total.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, torch.Tensor) and leaf is not rows_0W:
            found[id(leaf)] = leaf
        pending += [following for following, _ in node.next_functions]
    return tuple(found.values())


def _is_sharded(module: torch.nn.Module) -> bool:
    """Whether this process holds only a part of these weights (FSDP 1 or 2, tensor parallelism, DeepSpeed ZeRO-3)."""
    marks = ("FSDPModule", "FullyShardedDataParallel")
    if any(base.__name__ in marks for inner in module.modules() for base in type(inner).__mro__):
        return True
    tensors = [*module.parameters(), *(getattr(module, name, None) for name in ("weight", "bias"))]
    return any(
        hasattr(one, "ds_id")
        or type(one).__name__ in ("DTensor", "FlatParameter")
        # FSDP1 puts plain views of its flat parameter where the parameters were
        or (isinstance(one, torch.Tensor) and one.requires_grad and not one.is_leaf)
        for one in tensors
    )
