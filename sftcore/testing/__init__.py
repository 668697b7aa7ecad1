"""Tests for plugins: fixtures, and for each kind of plugin a class of tests that it has to pass.

A pytest plugin, for those who ask for it in their conftest.py: `pytest_plugins = "sftcore.testing"`. It needs pytest:
`pip install "sftcore[testing]"`. `import sftcore` does not load it.
"""

from __future__ import annotations

from sftcore.testing.conformance.adapters import AdapterTests
from sftcore.testing.conformance.attentions import AttentionTests
from sftcore.testing.conformance.base import PluginTests
from sftcore.testing.conformance.collators import CollatorTests
from sftcore.testing.conformance.formats import FormatTests
from sftcore.testing.conformance.kernels import KernelTests
from sftcore.testing.conformance.loaders import LoaderTests
from sftcore.testing.conformance.losses import LossTests
from sftcore.testing.conformance.noises import NoiseTests
from sftcore.testing.fixtures import (
    _tiny_folder,
    isolated_plugins,
    run_recipe,
    tiny_model,
    tiny_processor,
    tiny_vlm,
)
from sftcore.testing.isolated import IsolatedPlugins, isolated
from sftcore.testing.standin.process import on_cpu, on_standin

__all__ = [  # noqa: RUF022 - grouped by what they are
    "FormatTests", "CollatorTests", "LoaderTests", "AdapterTests", "AttentionTests", "KernelTests", "LossTests",
    "NoiseTests", "PluginTests",
    "isolated_plugins", "run_recipe", "tiny_model", "tiny_processor", "tiny_vlm", "_tiny_folder",
    "IsolatedPlugins", "isolated", "on_cpu", "on_standin",
]  # fmt: skip
