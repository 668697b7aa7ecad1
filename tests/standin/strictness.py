"""What the stand-in answers to single operations, to be called in a process that has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def waits_of() -> dict[str, list[str]]:
    """The kinds of waits of operations, by their source."""
    import torch

    from sftcore.testing.standin.device import NAME, counting

    there = torch.ones(3, 3, device=NAME)
    here, pinned = torch.ones(3, 3), torch.ones(3, 3).pin_memory()
    mask, lengths = there > 0, torch.tensor([1, 2], device=NAME)
    known = {"there": there, "here": here, "pinned": pinned, "mask": mask, "lengths": lengths, "torch": torch}

    def waits(source: str) -> list[str]:
        with counting() as found:
            exec(source, {**known, "there": there.clone()})
        return list(found.kinds.elements())

    sources = (
        "there.sum().item()", "bool(mask.all())", "there.tolist()", "there.nonzero()", "there[mask]", "there[[0, 1]]",
        "there[mask] = 5", "there.masked_fill(mask, 5)", "there.masked_scatter(mask, there)", "lengths.bincount()",
        "torch.repeat_interleave(lengths, lengths)", "torch.repeat_interleave(lengths, lengths, output_size=3)",
        "there.cpu()", "there.to('cpu', non_blocking=True)", "here.copy_(there, non_blocking=True)",
        "pinned.copy_(there, non_blocking=True)", "here.to('standin')", "here.to('standin', non_blocking=True)",
        "pinned.to('standin')", "pinned.to('standin', non_blocking=True)",
        "pinned[1:].to('standin', non_blocking=True)",
        "torch.tensor([1.0], device='standin')", "there.new_tensor(1.0)", "torch.arange(3, device='standin')",
        "torch.full((), 3.0, device='standin')", "there @ there + 1", "torch.standin.synchronize()",
        "torch.standin.Event().synchronize()", "torch.standin.Event().query()",
    )  # fmt: skip
    return {source: waits(source) for source in sources}


def errors_of() -> dict[str, str]:
    """What operations that no accelerator takes raise, by their source."""
    import torch

    from sftcore.testing.standin.device import NAME, kernel

    known = {
        "torch": torch,
        "there": torch.ones(3, 3, device=NAME),
        "here": torch.ones(3, 3),
        "doubled": kernel(_doubled),
    }
    sources = (
        "there + here", "there.numpy()", "there.double()", "torch.zeros(3, dtype=torch.float64, device='standin')",
        "torch.rand(3, device='standin', generator=torch.Generator())",
        "torch.rand(3, generator=torch.Generator('standin'))", "doubled(here)", "here[there.long()]",
    )  # fmt: skip
    return {source: _error(lambda source=source: exec(source, dict(known))) for source in sources}


def dtypes_of() -> dict[str, str]:
    """The dtypes of results under bfloat16 autocast, from float32 and bfloat16, by their source."""
    import torch
    from torch.nn import functional

    from sftcore.testing.standin.device import NAME

    full = torch.ones(2, 4, 4, device=NAME)
    known = {"torch": torch, "functional": functional, "full": full, "half": full.bfloat16()}
    sources = (
        "full @ full", "functional.linear(full, full[0])", "torch.bmm(full, half)", "full.softmax(-1)",
        "half.softmax(-1)",
        "functional.layer_norm(half, (4,))", "half.sum()", "half.pow(2)", "half + half", "half + full",
        "torch.cat([half, full])", "functional.scaled_dot_product_attention(full, full, full)",
        "torch.einsum('bij,bjk->bik', full, full)",
        "functional.cross_entropy(half[0], torch.arange(4, device='standin'))",
    )  # fmt: skip
    with torch.autocast(NAME, dtype=torch.bfloat16):
        return {source: str(eval(source, dict(known)).dtype).removeprefix("torch.") for source in sources}


def places_of() -> list[str]:
    """Where tensors are made inside of `torch.device("meta")` and after it, as models are that are read from files."""
    import torch

    with torch.device("meta"):
        inside = [torch.tensor([1.0]), torch.as_tensor([1.0]), torch.zeros(1)]
    return [str(one.device) for one in (*inside, torch.tensor([1.0]))]


def _doubled(one: Any) -> Any:
    return one + one


def _error(call: Callable[[], Any]) -> str:
    try:
        call()
    except (RuntimeError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""
