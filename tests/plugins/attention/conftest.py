"""The double of flash-attn, put where transformers and sftcore look for the package."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import attrs
import pytest

collect_ignore = ["doubles"]
DOUBLES = Path(__file__).parent / "doubles"


@pytest.fixture
def flash_attn(tmp_path, monkeypatch):
    """The double, importable and installed, on a CPU: what asks for the GPU that the real package needs is answered."""
    import transformers.modeling_flash_attention_utils as utils
    from sftcore_plugins.attention import flash2

    info = tmp_path / "site" / "flash_attn-2.8.3.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: flash-attn\nVersion: 2.8.3\n")
    monkeypatch.syspath_prepend(str(info.parent))
    monkeypatch.syspath_prepend(str(DOUBLES))
    monkeypatch.setattr(utils, "is_flash_attn_2_available", lambda *args, **kwargs: True)
    monkeypatch.setattr("transformers.PreTrainedModel._flash_attn_can_dispatch", lambda *args, **kwargs: True)
    monkeypatch.setattr(utils, "_loaded_implementation", None)
    monkeypatch.setattr(flash2, "BACKEND", attrs.evolve(flash2.BACKEND, devices=()))
    yield importlib.import_module("flash_attn")
    for name in [name for name in sys.modules if name.partition(".")[0] == "flash_attn"]:
        del sys.modules[name]
