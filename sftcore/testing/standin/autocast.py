"""Autocast for the stand-in: the casts that torch makes on CUDA, and on the same operations.

The lists are those of `aten/src/ATen/autocast_mode.h`; an overload is taken where torch has a kernel of it for CUDA's
autocast. Casts are not cached, which costs memory alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

KEY = "AutocastPrivateUse1"
LOWER = (
    "_convolution", "conv1d", "conv2d", "conv3d", "conv_tbc", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d", "convolution", "prelu", "addmm", "addmv", "addr", "matmul", "einsum", "mm", "mv",
    "linalg_vecdot", "linear", "addbmm", "baddbmm", "bmm", "chain_matmul", "linalg_multi_dot",
    "scaled_dot_product_attention",
)  # fmt: skip
"""Computed in autocast's dtype."""
FULL = (
    "acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt", "sinh",
    "tan", "pow", "softplus", "layer_norm", "native_layer_norm", "group_norm", "frobenius_norm", "nuclear_norm",
    "cosine_similarity", "poisson_nll_loss", "cosine_embedding_loss", "nll_loss", "nll_loss2d",
    "hinge_embedding_loss", "kl_div", "l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss", "margin_ranking_loss",
    "multilabel_margin_loss", "soft_margin_loss", "triplet_margin_loss", "multi_margin_loss",
    "binary_cross_entropy_with_logits", "dist", "pdist", "cdist", "renorm", "logsumexp",
)  # fmt: skip
"""Computed in float32."""
FULL_RESULT = (
    "prod", "softmax", "log_softmax", "cumprod", "cumsum", "linalg_vector_norm", "linalg_matrix_norm", "sum",
)  # fmt: skip
"""Summed up in float32, unless the call names a dtype."""
WIDEST = (
    "addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "vdot", "grid_sampler", "index_put", "tensordot",
    "scatter_add", "cat", "stack",
)  # fmt: skip
"""Computed in the widest dtype of its arguments."""


def register(device: str) -> list[torch.library.Library]:
    """Give the device its autocast, for as long as the libraries that are returned live."""
    rest = torch.library.Library("_", "IMPL")
    rest.fallback(torch.library.fallthrough_kernel, KEY)
    own = torch.library.Library("aten", "IMPL")
    for names, cast in ((LOWER, _to_autocast), (FULL, _to_float32), (FULL_RESULT, _result), (WIDEST, _to_widest)):
        for overload in _overloads(names):
            own.impl(overload, functools.partial(_call, overload, functools.partial(cast, device)), KEY)
    return [rest, own]


def _overloads(names: tuple[str, ...]) -> Iterator[Any]:
    for name in names:
        packet = getattr(torch.ops.aten, name, None)
        for overload in [] if packet is None else [getattr(packet, one) for one in packet.overloads()]:
            known = torch._C._dispatch_has_kernel(overload.name())  # some overloads are TorchScript's alone
            if known and torch._C._dispatch_has_kernel_for_dispatch_key(overload.name(), "AutocastCUDA"):
                yield overload


def _call(overload: Any, cast: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, KEY))):
        args, kwargs = cast(overload, args, kwargs)
        return overload(*args, **kwargs)


def _eligible(device: str, one: Any) -> bool:
    return (
        isinstance(one, torch.Tensor)
        and one.device.type == device
        and one.is_floating_point()
        and one.dtype != torch.float64
    )


def _in(dtype: torch.dtype, device: str, values: Any) -> Any:
    return tree_map(lambda one: one.to(dtype) if _eligible(device, one) else one, values)


def _to_autocast(device: str, overload: Any, args: Any, kwargs: Any) -> Any:
    return _in(torch.get_autocast_dtype(device), device, (args, kwargs))


def _to_float32(device: str, overload: Any, args: Any, kwargs: Any) -> Any:
    return _in(torch.float32, device, (args, kwargs))


def _result(device: str, overload: Any, args: Any, kwargs: Any) -> Any:
    names = [argument.name for argument in overload._schema.arguments]
    place = names.index("dtype") if "dtype" in names else None
    given = kwargs.get("dtype") if place is None or place >= len(args) else args[place]
    if given is not None or not _eligible(device, args[0]):
        return args, kwargs
    if place is None or place >= len(args):
        return args, {**kwargs, "dtype": torch.float32} if place is not None else kwargs
    return (*args[:place], torch.float32, *args[place + 1 :]), kwargs


def _to_widest(device: str, overload: Any, args: Any, kwargs: Any) -> Any:
    found = {one.dtype for one in tree_leaves((args, kwargs)) if _eligible(device, one)}
    return _in(torch.float32, device, (args, kwargs)) if torch.float32 in found and len(found) > 1 else (args, kwargs)
