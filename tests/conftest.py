"""What all tests share: no network, caches in temporary folders, and tiny models and tokenizers made on the spot."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

# Set before any library reads them at import
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("HF_HOME", tempfile.mkdtemp(prefix="sftcore-hf-"))
os.environ["SFTCORE_CACHE"] = tempfile.mkdtemp(prefix="sftcore-cache-")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")
if not Path("/dev/nvidia0").exists():
    # Triton's kernels run without a GPU in its interpreter alone, which it chooses when it is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Each worker with threads of its own would want every core, and torch slows down tenfold
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from sftcore.testing.libraries import spare_libraries
from sftcore.testing.tiny import CHATML, make_llama, make_tokenizer, save_tiny  # noqa: F401 - for the tests

settings.register_profile("any machine", settings(deadline=None))  # one may be slow, or have other work
settings.load_profile("any machine")

CHATML_MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def pytest_collection_finish() -> None:
    # accelerate collects garbage after each run, and half the time of a tiny one went into what tests have imported
    gc.collect()
    gc.freeze()


def pytest_runtest_setup() -> None:
    spare_libraries()


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def llama(tokenizer):
    return make_llama(tokenizer)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A tiny Llama with its tokenizer, as `save_pretrained` writes them."""
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets that lie beside a checkout; tests that need them skip where they do not."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real data sets are not beside this checkout")
    return folder


@pytest.fixture
def write(tmp_path):
    """Write a file into the test's folder and return its path."""

    def write_file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder of this session that `make` writes; whoever of xdist's processes comes first makes it."""
    from filelock import FileLock

    base = factory.getbasetemp()
    folder = (base.parent if base.name.startswith("popen-") else base) / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            written = folder.with_name(f"{name}-written")
            make(written)
            written.rename(folder)
    return folder


def alpaca_rows(count: int) -> list[dict[str, str]]:
    return [{"instruction": f"say {i}", "input": "", "output": f"The answer is {i}"} for i in range(count)]
