"""The built-ins use nothing that a third party may not: three public modules, and private ones of their own folder."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sftcore.plugin_api
from sftcore.core.discovery import discover

PLUGINS = Path(__file__).parents[2] / "plugins" / "sftcore_plugins"
PUBLIC = {"sftcore", "sftcore.rows", "sftcore.plugin_api"}
FILES = sorted(path for path in PLUGINS.rglob("*.py") if path.name != "__init__.py")


def ours(path: Path) -> Iterator[str]:
    """The modules of ours that a file imports, wherever it does so."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in ("sftcore", "sftcore_plugins"))


def test_the_names_of_plugin_api_are_frozen():
    names = {
        "DOCUMENTS", "IGNORED", "IMAGE", "MAX_PIXELS", "Medium", "Modality", "OwnLoss", "Video", "adapter_folder",
        "declared_fields", "decoder_layers", "edges_of", "facts_of", "facts_of_processor", "filler_of",
        "flatten_rows", "is_hooked", "is_plain_linear", "loss_call", "media_features", "multiple_of", "nearest",
        "open_image", "pad_rows", "planned_device", "prepare_quantised", "product", "quantisation_asked_for",
        "quantisation_of", "reference", "refuse_endless", "selective_of", "triton_is_interpreted", "unsupported",
        "vision_parts",
    }  # fmt: skip
    assert set(sftcore.plugin_api.__all__) == names
    assert len(sftcore.plugin_api.__all__) == len(names)
    assert all(getattr(sftcore.plugin_api, name) is not None for name in names)
    for name in names:
        assert f"`{name}`" in (sftcore.plugin_api.__doc__ or ""), f"{name} is not described"


def test_importing_the_names_of_plugin_api_imports_nothing_heavy():
    code = (
        "import sys\nfrom sftcore.plugin_api import *\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'peft', 'accelerate'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PLUGINS)))
def test_a_plugin_imports_public_modules_and_private_ones_of_its_folder(path):
    folder = f"sftcore_plugins.{path.parent.name}"
    for name in ours(path):
        parent, _, module = name.rpartition(".")
        assert name in PUBLIC or (parent == folder and module.startswith("_")), name


def test_each_file_without_an_underscore_is_one_plugin():
    files = {f"sftcore_plugins.{path.parent.name}.{path.stem}" for path in FILES if not path.name.startswith("_")}
    modules = [entry.value.partition(":")[0] for entry in discover().entries if entry.distribution == "sftcore"]
    assert sorted(modules) == sorted(files)
