"""The fixtures that `pytest_plugins = "sftcore.testing"` gives."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sftcore.testing import runs
from sftcore.testing.isolated import IsolatedPlugins, isolated
from sftcore.testing.tiny import make_llama, make_tokenizer, save_tiny

if TYPE_CHECKING:
    from sftcore.train.run import Outcome


@pytest.fixture
def isolated_plugins() -> Iterator[IsolatedPlugins]:
    """Discovery that sees sftcore's own plugins alone, and those that the test installs.

    `isolated_plugins(format={"faq": FAQ})` installs one as if by a distribution, and returns the catalog.
    """
    with isolated() as plugins:
        yield plugins


@pytest.fixture(scope="session")
def tiny_processor() -> Any:
    """A tokenizer of 400 tokens with ChatML as its chat template."""
    return make_tokenizer()


@pytest.fixture
def tiny_model(tiny_processor: Any) -> Any:
    """A Llama of two layers and 32 dimensions on the CPU, with the same random weights each time."""
    return make_llama(tiny_processor)


@pytest.fixture
def tiny_vlm() -> Any:
    """A LLaVA of two layers with its processor, which needs Pillow."""
    pytest.importorskip("PIL")
    from sftcore.testing.tiny_vlm import make_vlm

    return make_vlm("llava")


@pytest.fixture(scope="session")
def _tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def run_recipe(tmp_path: Path, _tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Trains a tiny model for two steps: `run_recipe(rows, loss="focal")`; see `sftcore.testing.runs.run_recipe`."""
    monkeypatch.setenv("SFTCORE_CACHE", str(tmp_path / "cache"))
    return functools.partial(_run, tmp_path, _tiny_folder)


def _run(folder: Path, model: Path, *data: Any, **recipe: Any) -> Outcome:
    own = Path(tempfile.mkdtemp(prefix="run-", dir=folder))
    return runs.run_recipe(own, *data, **{"model": str(model), **recipe})
