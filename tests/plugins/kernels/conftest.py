"""Triton's kernels without a GPU: in its interpreter, which is taught what its compiler knows."""

from __future__ import annotations

import pytest


@pytest.fixture
def interpreter(monkeypatch):
    """Triton's interpreter; it must have been asked for before triton was imported, which tests/conftest.py does."""
    knobs = pytest.importorskip("triton.knobs", reason="triton is not installed")
    assert knobs.runtime.interpret, "TRITON_INTERPRET=1 was not set when triton was imported"


@pytest.fixture
def taught_interpreter(interpreter, monkeypatch):
    """The interpreter with what the compiler has and triton 3.8's lacks, so that all of Liger's kernels run as written.

    Floats among a kernel's arguments become float32 scalars, and the two functions of CUDA's library that the kernels
    call, which are stubs without CUDA, are spelled in Triton's own.
    """
    import numpy as np
    import triton.language as tl
    from liger_kernel.ops import cross_entropy, geglu, rms_norm
    from triton.runtime import interpreter

    convert = interpreter._implicit_cvt

    def with_floats(arg):
        if isinstance(arg, float):
            return tl.tensor(interpreter.TensorHandle(np.array([arg], dtype=np.float32), tl.float32), tl.float32)
        return convert(arg)

    monkeypatch.setattr(interpreter, "_implicit_cvt", with_floats)
    # the interpreter puts its own functions into `tl` for each kernel, so these look there when they are called
    monkeypatch.setattr(rms_norm, "rsqrt", lambda x: tl.math.rsqrt(x))
    for module in (cross_entropy, geglu):
        monkeypatch.setattr(module, "tanh", lambda x: 2 * tl.sigmoid(2 * x) - 1)
