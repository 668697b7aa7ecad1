"""Every attention by itself: loss and gradients of documents alone, the kernel that was asked for, what it refuses."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

from .models import device
from .steps import need_attention, need_cuda
from .worker import NotRun, Task

PLUGINS = {
    "sdpa": "sdpa:SDPA", "varlen": "varlen:Varlen", "flash-1": "flash1:Flash1", "flash-2": "flash2:Flash2",
    "flash-3": "flash3:Flash3", "flex": "flex:Flex",
}  # fmt: skip
MODELS = ("Llama", "Qwen3", "Gemma3")
IN_FLOAT32 = ("sdpa", "varlen", "flex")
TOLERANCES = {"bfloat16": 5e-2, "float32": 1e-4}
FLASH = "aten::_scaled_dot_product_flash_attention"


def tasks(*, standin: bool) -> Iterator[Task]:
    """All checks of this module; on the stand-in one of those that it can compute."""
    if standin:
        yield _gradients("packed", attention="varlen", model="Gemma3", dtype="float32")
    for attention in PLUGINS if not standin else ():
        for model in MODELS if attention != "flex" else MODELS[-1:]:  # flex compiles for each run
            yield _gradients("packed", attention=attention, model=model, dtype="bfloat16")
            if attention in IN_FLOAT32:
                yield _gradients("packed", attention=attention, model=model, dtype="float32")
            if attention != "flash-1":
                yield _gradients("padded", attention=attention, model=model)
    for name in ("flash_1_runs_alone", "varlen_in_one_call", "flash_1_refuses", "flash_1_drops"):
        yield Task(name.replace("_", " "), f"gpu_run.attention_checks:{name}")


def _gradients(layout: str, **options: Any) -> Task:
    return Task(f"gradients, {', '.join(options.values())}, {layout}", f"gpu_run.attention_checks:{layout}", options)


def packed(*, attention: str, model: str, dtype: str) -> dict[str, Any]:
    """Packed rows have loss and gradients of their documents alone, by the way that the run would take."""
    from sftcore.documents.proof import keep_documents_apart
    from tests.documents.architectures import WINDOW
    from tests.plugins.attention import reference

    need_attention(attention)
    # on a GPU flash-1 refuses documents that are longer than a sliding window
    rows, longest = ([[5, 1, 7, 8], [8, 4, 7, 2]], WINDOW) if attention == "flash-1" else (reference.ROWS, None)
    backend, ids = _backend(attention), reference.ids_of(rows, device=str(device()))
    own = _model(model, backend.implementation, dtype)
    proof = keep_documents_apart(own, backend, flattened=False, max_length=longest)
    assert proof.way.name == ("boundaries" if backend.boundaries else "positions"), proof.way.name
    assert proof.gaps.neighbours == 0, f"a document reads another: {proof.gaps}"
    plain = _model(model, "eager" if dtype == "float32" else "sdpa", dtype)
    # flex multiplies in TF32 inside its own kernel, whatever torch's flag says
    tolerance = 1e-2 if attention == "flex" and dtype == "float32" else TOLERANCES[dtype]
    reference.assert_same(reference.packed(own, ids, proof.way), reference.alone(plain, ids), tolerance)
    return {"way": proof.way.name}


def padded(*, attention: str, model: str) -> dict[str, Any]:
    """Padded rows have loss and gradients of their documents alone."""
    from tests.plugins.attention import reference

    need_attention(attention)
    ids = reference.ids_of(reference.ROWS, device=str(device()))
    got = reference.padded(_model(model, _backend(attention).implementation), ids)
    reference.assert_same(got, reference.alone(_model(model), ids), TOLERANCES["bfloat16"])
    return {}


def flash_1_runs_alone() -> dict[str, Any]:
    """flash-1 calls torch's flash kernel, forward and backward, and no other."""
    need_attention("flash-1")
    names = _operations("flash-1", "Llama")
    assert {FLASH, f"{FLASH}_backward"} <= names, sorted(names)
    others = {name for name in names if "efficient_attention" in name or "attention_math" in name}
    assert not others, others
    return {}


def varlen_in_one_call() -> dict[str, Any]:
    """varlen hands all documents to one call of torch's kernel."""
    need_cuda("torch's kernel")
    from sftcore_plugins.attention.varlen import kernel

    if kernel() is None:
        raise NotRun("this torch has no varlen kernel with windows, scale and grouped heads")
    others = {name for name in _operations("varlen", "Gemma3") if "scaled_dot_product" in name}
    assert not others, others
    return {}


def flash_1_refuses() -> dict[str, Any]:
    """flash-1 refuses what its kernel does not take, and says why."""
    need_attention("flash-1")
    import torch

    name = _backend("flash-1").implementation
    ids = torch.arange(3, 27, device=device())[None]
    mask = torch.ones(1, 1, 24, 24, dtype=torch.bool, device=device()).tril()
    gemma, llama, full = _model("Gemma3", name), _model("Llama", name), _model("Llama", name, "float32")
    _refused("does not support a sliding window, and a document has 24 tokens", lambda: gemma(ids, use_cache=False))
    _refused("torch has no flash kernel for cuda, float32 and heads of 32", lambda: full(ids, use_cache=False))
    _refused("does not support a mask", lambda: llama(ids, attention_mask=mask, use_cache=False))
    return {}


def flash_1_drops() -> dict[str, Any]:
    """flash-1 drops attention weights, which differ from call to call."""
    need_attention("flash-1")
    import torch

    model = _model("Llama", _backend("flash-1").implementation).train()
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    ids = torch.arange(3, 27, device=device())[None]
    first, second = (model(ids, use_cache=False).logits for _ in range(2))
    assert not torch.equal(first, second), "nothing is dropped"
    return {}


def _backend(attention: str) -> Any:
    from tests.documents.architectures import backend_of

    module, _, name = PLUGINS[attention].partition(":")
    return backend_of(getattr(importlib.import_module(f"sftcore_plugins.attention.{module}"), name))


def _model(name: str, attention: str = "sdpa", dtype: str = "bfloat16") -> Any:
    """A model on the device; heads of 32, since Triton's and flash-attn's kernels take none of 8."""
    import torch

    from tests.documents.architectures import build

    torch.backends.cuda.matmul.allow_tf32 = False
    sizes = {"hidden_size": 128, **({} if name == "Llama" else {"head_dim": 32})}
    return build(name, attention, dtype=dtype, **sizes).to(device())


def _operations(attention: str, model: str) -> set[str]:
    """Names of all that torch calls in a forward and a backward pass of packed rows."""
    from torch.profiler import ProfilerActivity, profile

    from sftcore.documents.proof import keep_documents_apart
    from tests.plugins.attention import reference

    backend = _backend(attention)
    own = _model(model, backend.implementation)
    proof = keep_documents_apart(own, backend, flattened=True)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        reference.packed(own, reference.ids_of(reference.ROWS, device=str(device())), proof.way)
    return {event.key for event in profiler.key_averages()}


def _refused(words: str, call: Callable[[], Any]) -> None:
    from sftcore import ModelError

    told = "nothing"
    try:
        call()
    except ModelError as error:
        told = str(error)
    assert words in told, f"it says {told}, not {words}"
