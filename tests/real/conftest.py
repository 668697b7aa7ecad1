"""What tests of SmolLM2 share, made once for all processes that run them: the model as a folder, and a trained run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import made_once


@pytest.fixture(scope="session")
def smollm2_folder(tmp_path_factory) -> Path:
    """SmolLM2-135M-Instruct in float32 with its tokenizer; its GGUF file takes twenty times as long to load."""
    return made_once(tmp_path_factory, "smollm2", _save_smollm2)


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory, smollm2_folder) -> Path:
    """The folder of a quickstart, cut short, with what it printed in printed.txt: the model has learned to be Pip."""
    from tests.real.test_smollm2 import command

    def make(folder: Path) -> None:
        printed = command("quickstart", "--steps", "16", "--output", str(folder), "--model", str(smollm2_folder))
        (folder / "printed.txt").write_text(printed)

    return made_once(tmp_path_factory, "quickstart", make)


def _save_smollm2(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sftcore.cli.quickstart import find_model

    file = Path(find_model())
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # the weights are no longer quantised, but transformers would refuse to save them
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
