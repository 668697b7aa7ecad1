"""Cards of merged and quantised models, of plain values alone."""

from __future__ import annotations

from types import SimpleNamespace as Values

import pytest
import yaml

from sftcore.tools.agreement import ComparisonRows
from sftcore.tools.merge import Merged, write_merged_card
from sftcore.tools.quantization.quantize import write_quantised_card

LEDGER = {"rows_kept": 1200, "tokens_supervised": 34567}


def read(folder) -> tuple[dict, str]:
    _, head, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), text


def run_of(base: str, **manifest):
    return Values(base=Values(name=base), manifest=manifest, adapter="adapter")


def test_a_merged_models_card_says_what_it_was_trained_on_and_compared_with(tmp_path):
    run = run_of("owner/base", data={"ledgers": [LEDGER]}, steps=7)
    compared_on = ComparisonRows((), "3 rows")
    write_merged_card(tmp_path, run, Merged(tmp_path / "faq", "bfloat16", compared_on, ("largest gap 0.1",), ()))
    head, text = read(tmp_path)
    assert head["base_model"] == "owner/base"
    assert "`owner/base` with an adapter merged into it, by sftcore " in text
    assert "Merged in float32, saved in bfloat16." in text
    lines = "- 1,200 rows, 34,567 tokens supervised\n- 7 steps\n- Compared with the unmerged model on 3 rows\n"
    assert f"{lines}- Largest gap 0.1\n" in text


@pytest.mark.parametrize(("base", "relation"), [("owner/base", "quantized"), ("/home/me/base", None)])
def test_a_quantised_models_card_says_what_it_cost(base, relation, tmp_path):
    outcome = Values(
        folder=tmp_path / "faq-4bit", group_size=32, before=Values(supervised=2.0, every=3.0),
        after=Values(supervised=2.5, every=3.5),
        calibration=Values(rows=[1] * 5, held_out=[1, 2], num_tokens=6000),
    )  # fmt: skip
    write_quantised_card(tmp_path, run_of(base), outcome, Values(method="gptq", bits=4))
    head, text = read(tmp_path)
    assert head["tags"] == ["sftcore", "sft", "gptq"]
    assert head.get("base_model_relation") == relation
    assert "/home/me" not in text
    assert "with an adapter merged into it, quantised to 4 bits in groups of 32 (gptq) by sftcore " in text
    assert "- Calibrated on 5 rows, 6,000 tokens\n" in text
    assert "- Perplexity on 2 rows, supervised tokens: 2.000 before, 2.500 after\n" in text
    assert "- Perplexity on 2 rows, all tokens: 3.000 before, 3.500 after\n" in text
