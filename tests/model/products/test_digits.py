"""How float32 is multiplied can be read, whichever of torch's two settings was used."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from sftcore.model.products.digits import float32_matmul, keeps_digits_on_cpus, multiplies_in_tf32

needs_two = pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="this torch has one setting")
ASK = (
    "import torch; {}\n"
    "from sftcore.model.products.digits import *\n"
    "print(float32_matmul(), multiplies_in_tf32(), keeps_digits_on_cpus(), sep='|')"
)


def test_by_default_all_digits_are_kept():
    assert (float32_matmul(), multiplies_in_tf32(), keeps_digits_on_cpus()) == ("highest", False, True)


@needs_two
@pytest.mark.parametrize(
    ("setting", "wanted"),
    [
        ("torch.backends.cuda.matmul.fp32_precision = 'tf32'", "cuda tf32, mkldnn none|True|True"),
        ("torch.backends.fp32_precision = 'tf32'", "cuda tf32, mkldnn tf32|True|False"),
        ("torch.backends.mkldnn.matmul.fp32_precision = 'bf16'", "cuda none, mkldnn bf16|False|False"),
        ("torch.backends.cuda.matmul.allow_tf32 = True", "high|True|True"),
        ("torch.set_float32_matmul_precision('medium')", "medium|True|False"),
    ],
)
def test_either_setting_is_read(setting, wanted):
    # in a process of its own: torch cannot be brought back to where nothing was set
    command = [sys.executable, "-c", ASK.format(setting)]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert found.strip() == wanted
