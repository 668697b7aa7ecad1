"""What a plugin declares of itself in words of torch, devices and dtypes: those that there are, or it is refused."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sftcore.core.errors import near_name
from sftcore.core.registry import ActivePlugins
from sftcore.core.types import AttentionBackend, ModelRequest

DEVICES = (
    "cpu", "cuda", "xpu", "mps", "npu", "mlu", "musa", "hpu", "sdaa", "maia", "xla", "mtia", "ipu", "neuron", "meta",
)  # fmt: skip
"""The kinds of devices that torch, its extensions and accelerate know."""
DTYPES = ("float64", "float32", "bfloat16", "float16")
_EIGHT_BITS = re.compile(r"float8_\w+")
_MEANT = {
    "gpu": "cuda", "bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32",
    "single": "float32", "fp64": "float64", "double": "float64",
}  # fmt: skip
"""What people write for them."""


def declared_attention(plugins: ActivePlugins, model: ModelRequest) -> AttentionBackend | None:
    """What the attention of these plugins declares; None where none of them is one.

    Raises:
        FaultyPluginError: a device or dtype that there is not, or a speed that cannot be.
    """
    backend: AttentionBackend | None = plugins.declared("attention_backend", request=model)
    if backend is not None and (wrong := next(_wrong(backend), "")):
        raise plugins.answers("attention_backend")[0].origin("attention_backend").fault(wrong)
    return backend


def _wrong(backend: AttentionBackend) -> Iterator[str]:
    for field in ("devices", "dtypes", "dropout", "backward", "speed", "padded_speed"):
        value = getattr(backend, field)
        names = field != "dtypes" and isinstance(value, tuple)
        for device in value if names or isinstance(value, Mapping) else ():
            if device not in DEVICES and device != _renamed():
                yield f'declares the device "{device}" in its {field}{_meant(device, DEVICES)}'
    for dtype in _all_of(backend.dtypes):
        if dtype not in DTYPES and not _EIGHT_BITS.fullmatch(dtype):
            yield f'declares the dtype "{dtype}"{_meant(dtype, DTYPES)}'
    for field in ("speed", "padded_speed"):
        for number in _all_of(getattr(backend, field)):
            if not 0 <= number < math.inf:
                yield f"declares {field} {number}; expected 0 or more, in multiples of torch's own attention"


def _all_of(value: Any) -> Iterable[Any]:
    """The values of a declaration, which may be one for each device."""
    if isinstance(value, Mapping):
        return [one for each in value.values() for one in _all_of(each)]
    return value if isinstance(value, tuple) else [value]


def _meant(word: str, known: Iterable[str]) -> str:
    """Which of the known names is meant, or all of them."""
    plain = word.lower().removeprefix("torch.").partition(":")[0]
    plain = _MEANT.get(plain, plain)
    found = plain if plain in known else near_name(plain, known)
    return f'; torch calls it "{found}"' if found else f"; expected one of {', '.join(known)}"


def _renamed() -> str:
    """How an extension of torch has named its devices; empty where torch is not imported."""
    torch = sys.modules.get("torch")
    return str(getattr(getattr(torch, "_C", None), "_get_privateuse1_backend_name", str)())
