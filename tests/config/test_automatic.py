"""What a plan expects where attention and layout are left open, told without torch."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from sftcore.cli import cli
from sftcore.config.recipe import parse_recipe
from sftcore.config.setup import check, set_up, set_up_recipe
from sftcore.core.types import ModelRequest

VARLEN, SDPA = ("varlen", "flattened"), ("sdpa", "padded")
BROKEN = "1 / 0\n"


def plan(**keys):
    keys = {"model": "some/model", "data": "rows.jsonl", "use_cpu": True, **keys}
    return set_up_recipe(parse_recipe(keys, place="recipe.yaml")).plan


def taken(found) -> tuple[str, ...]:
    return tuple(found.selected(kind)[0].name for kind in ("attention", "collator"))


@pytest.mark.parametrize(
    ("keys", "wanted", "is_open"),
    [
        ({}, VARLEN, True),
        ({"attention": "auto"}, VARLEN, True),
        ({"padding_free": True}, VARLEN, False),
        ({"padding_free": False}, SDPA, False),
        ({"packing": True}, VARLEN, False),
        ({"packing": True, "attention": "sdpa"}, SDPA, False),
        ({"attention": "sdpa"}, SDPA, False),
        ({"attention": "varlen"}, VARLEN, True),
        ({"attention": "flash-1"}, ("flash-1", "flattened"), False),
        ({"collator": "padded"}, SDPA, False),
        ({"collator": "flattened"}, VARLEN, False),
        ({"block": ["attention:varlen"]}, SDPA, False),
        ({"kernel": {"compile": {"backend": "eager"}}}, SDPA, False),
        ({"torch_compile": True}, SDPA, False),
        ({"pad_to_multiple_of": 64}, SDPA, False),
        ({"label_smoothing_factor": 0.1}, SDPA, False),
        ({"eval_packing": True}, SDPA, False),
        ({"dataset_kwargs": {"skip_prepare_dataset": True}}, SDPA, False),
        ({"accelerator_config": {"dispatch_batches": True}}, SDPA, False),
        ({"model": {"name": "some/model", "init_kwargs": {"tp_plan": "auto"}}}, SDPA, False),
    ],
    ids=str,
)
def test_a_plan_expects_the_fastest_that_fits(keys, wanted, is_open):
    found = plan(**keys)
    assert (taken(found), found.open_layout) == (wanted, is_open)
    assert bool(found.candidates) == (keys.get("attention", "auto") == "auto")


def test_the_reason_names_the_setting():
    assert plan(pad_to_multiple_of=64).reasons["collator"] == "rows are padded: pad_to_multiple_of is 64"
    assert plan().reasons["attention"] == "the fastest of varlen, sdpa, eager on cpu"


@pytest.mark.parametrize(
    ("device", "settings", "wanted"),
    [("cuda", {}, VARLEN), ("mps", {}, SDPA), ("npu", {}, SDPA), ("cuda", {"padding_free": False}, SDPA)],
)
def test_the_device_decides(device, settings, wanted):
    found = set_up((), settings, ModelRequest("some/model"), where="test", device=device).plan
    assert taken(found) == wanted
    assert found.reasons["attention"].endswith(f"on {device}")


@pytest.mark.parametrize(
    ("own", "wanted", "is_open"),
    [("sdpa", SDPA, False), ("eager", ("eager", "padded"), False), ("sftcore_varlen", VARLEN, True)],
)
def test_a_ready_models_attention_is_the_plans(own, wanted, is_open):
    found = set_up((), {}, ModelRequest(), where="test", without=["loader"], device="cpu", attention_of_model=own).plan
    assert (taken(found), found.open_layout, found.candidates) == (wanted, is_open, ())


def test_a_ready_model_with_an_attention_that_no_plugin_declares_has_none_in_its_plan():
    given = {"where": "test", "without": ["loader"], "device": "cpu", "attention_of_model": "their_own"}
    found = set_up((), {}, ModelRequest(), **given).plan
    assert (found.selected("attention"), found.attention, found.open_layout) == ((), None, False)


def test_what_reads_batches_by_row_keeps_them_padded():
    found = set_up((), {}, ModelRequest("some/model"), where="test", device="cpu", by_row="Mine.compute_loss").plan
    assert taken(found) == SDPA
    assert found.reasons["collator"] == "rows are padded: Mine.compute_loss reads them row by row"


def test_a_broken_attention_is_passed_over_with_a_warning(write_distribution):
    write_distribution("broken_attention", BROKEN, entry_points=b"[sftcore.attention]\nours = broken_attention:Ours\n")
    with pytest.warns(UserWarning, match="broken.*is broken and ignored"):
        assert taken(plan()) == VARLEN


def test_a_plan_left_open_passes_check(tmp_path):
    keys = {"model": "some/model", "data": "rows.jsonl", "use_cpu": True, "output_dir": str(tmp_path)}
    check(set_up_recipe(parse_recipe(keys, place="recipe.yaml")))


def test_explain_says_what_is_expected_and_why(write):
    rows = write("rows.jsonl", '{"text": "hello"}\n')
    words = ["explain", "model=some/model", f"data={rows}", "use_cpu=true"]
    printed = CliRunner().invoke(cli, words, catch_exceptions=False).stdout
    assert "varlen@sftcore" in printed
    assert "(auto: the fastest of varlen, sdpa, eager on cpu)" in printed
    assert "(auto: rows end to end, without padding, if the run proves that this changes nothing)" in printed
