"""Devices, dtypes and speeds that an attention declares are those that there are; anything else names the plugin."""

from __future__ import annotations

from itertools import count

import pytest

from sftcore.core.errors import FaultyPluginError
from tests.core.conftest import set_up, write_distribution  # noqa: F401

NUMBERS = count()
CODE = """from sftcore import AttentionBackend, hookimpl, plugin
@plugin
class Own:
    "Attention of its own."
    @hookimpl
    def attention_backend(self):
        return AttentionBackend("sdpa", {})
"""


@pytest.fixture
def declaring(write_distribution, set_up):  # noqa: F811
    """The setup of a run with an attention that declares this, or with `auto` beside it."""

    def make(words: str, attention: str = "own"):
        module = f"acme_declares{next(NUMBERS)}"
        entry = f"[sftcore.attention]\nown = {module}:Own\n".encode()
        write_distribution(module, CODE.format(words), entry_points=entry)
        return set_up(attention=attention)

    return make


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("devices=('cpu', 'gpu')", 'declares the device "gpu" in its devices; torch calls it "cuda"'),
        ("devices=('cpu', 'cuda:0')", 'the device "cuda:0" in its devices; torch calls it "cuda"'),
        ("devices=('cpu', 'CUDA')", 'torch calls it "cuda"'),
        ("devices=('cdua',)", 'torch calls it "cuda"'),
        ("devices=('',)", 'the device "" in its devices; expected one of cpu, cuda, '),
        ("dtypes=('float32', 'bf16')", 'the dtype "bf16"; torch calls it "bfloat16"'),
        ("dtypes={'cpu': ('fp32',)}", 'torch calls it "float32"'),
        ("dtypes={'gpu': ('float32',)}", '"gpu" in its dtypes'),
        ("dtypes=('torch.float32',)", 'the dtype "torch.float32"; torch calls it "float32"'),
        ("dtypes=('int4',)", 'the dtype "int4"'),
        ("backward=('cpu', 'gpu')", "in its backward"),
        ("dropout=('gpu',)", "in its dropout"),
        ("speed=float('inf')", "declares speed inf; expected 0 or more"),
        ("speed=float('nan')", "declares speed nan"),
        ("padded_speed={'cpu': -3.0}", "declares padded_speed -3.0"),
        ("speed={'gpu': 2.0}", "in its speed"),
    ],
)
def test_a_word_that_torch_does_not_have_names_the_plugin(declaring, words, said):
    with pytest.raises(FaultyPluginError) as found:
        declaring(words)
    text = str(found.value)
    assert 'attention "own@acme_declares' in text
    assert said in text
    assert "\n" not in text


@pytest.mark.parametrize(
    "words",
    [
        "devices=('cpu', 'mps', 'npu'), dtypes={'cpu': ('float32',), 'xpu': ()}",
        "dtypes=('float32', 'float8_e4m3fn'), speed={'cpu': 0.5}, backward=(), dropout=('cuda',)",
        "",
    ],
)
def test_what_there_is_may_be_declared(declaring, words):
    assert declaring(words).plan.attention.implementation == "sdpa"


def test_one_that_nobody_chose_is_passed_over_with_a_warning(declaring):
    with pytest.warns(UserWarning, match=r'attention "own@acme_declares\d+" is broken and ignored: .*"gpu"'):
        setup = declaring("speed=9.0, devices=('gpu',)", attention="auto")
    assert all(one.name != "own" for one, _ in setup.plan.candidates)
