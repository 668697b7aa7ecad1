"""The doubles of flash-attn and of a kernel from the hub, put where transformers and sftcore look for the real ones."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import attrs
import pytest

collect_ignore = ["doubles"]
DOUBLES = Path(__file__).parent / "doubles"


@pytest.fixture
def doubles(tmp_path, monkeypatch):
    """The doubles, importable on a CPU: what asks for the GPU that the real packages need is answered."""
    import transformers.modeling_flash_attention_utils as utils

    monkeypatch.syspath_prepend(str(DOUBLES))
    monkeypatch.setattr("transformers.PreTrainedModel._flash_attn_can_dispatch", lambda *args, **kwargs: True)
    monkeypatch.setattr(utils, "_loaded_implementation", None)

    def install(name: str, version: str) -> None:
        info = tmp_path / "site" / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        monkeypatch.syspath_prepend(str(info.parent))

    yield install
    for name in [name for name in sys.modules if name.partition(".")[0] in ("flash_attn", "flash_attn_interface")]:
        del sys.modules[name]


@pytest.fixture
def flash_attn(doubles, monkeypatch):
    """FlashAttention 2."""
    import transformers.modeling_flash_attention_utils as utils
    from sftcore_plugins.attention import flash2

    doubles("flash-attn", "2.8.3")
    monkeypatch.setattr(utils, "is_flash_attn_2_available", lambda *args, **kwargs: True)
    monkeypatch.setattr(flash2, "BACKEND", attrs.evolve(flash2.BACKEND, devices=()))
    return importlib.import_module("flash_attn")


@pytest.fixture
def flash_attn_3(doubles, monkeypatch):
    """FlashAttention 3."""
    from sftcore_plugins.attention import flash3

    doubles("flash-attn-3", "3.0.0b1")
    monkeypatch.setattr(flash3, "BACKEND", attrs.evolve(flash3.BACKEND, devices=()))
    return importlib.import_module("flash_attn_interface")


@pytest.fixture
def kernel_from_hub(doubles, monkeypatch):
    """A kernel that the package kernels has fetched: flash-attn's functions in a module of their own."""
    from sftcore_plugins.attention import hub
    from transformers.integrations import hub_kernels

    module, asked = importlib.import_module("flash_attn"), []

    def get_kernel(name, revision=None, version=None, allow_all_kernels=False):
        if (revision is None) == (version is None):
            raise ValueError("Either a revision or a version must be specified.")
        if not name.startswith("kernels-community/") and not allow_all_kernels:
            raise ValueError(f"{name} is not of a trusted publisher.")
        asked.append((name, revision))
        return module

    doubles("kernels", "0.18.5")
    monkeypatch.setattr(hub_kernels, "is_kernels_available", lambda *args, **kwargs: True)
    monkeypatch.setattr(hub_kernels, "get_kernel", get_kernel)
    monkeypatch.setattr(hub, "DEVICES", ("cpu",))
    return module, asked
