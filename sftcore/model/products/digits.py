"""In how many digits torch multiplies float32, which may be set in two ways that refuse to be read by each other.

Since torch 2.9 there is `fp32_precision` of each library. Once it is set, `torch.get_float32_matmul_precision()` and
`allow_tf32` raise errors.
"""

from __future__ import annotations


def float32_matmul() -> str:
    """The setting in words, for records."""
    import torch

    try:
        return str(torch.get_float32_matmul_precision())
    except RuntimeError:
        return f"cuda {torch.backends.cuda.matmul.fp32_precision}, mkldnn {torch.backends.mkldnn.matmul.fp32_precision}"


def multiplies_in_tf32() -> bool:
    """Whether CUDA may multiply float32 in TF32."""
    import torch

    precision: str | None = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    if precision is None:  # before torch 2.9
        return bool(torch.backends.cuda.matmul.allow_tf32)
    return precision == "tf32"


def keeps_digits_on_cpus() -> bool:
    """Whether oneDNN is to multiply float32 as float32, on CPUs."""
    import torch

    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    if matmul is None:  # before torch 2.9
        return bool(torch.get_float32_matmul_precision() == "highest")
    return matmul.fp32_precision in ("none", "ieee")
