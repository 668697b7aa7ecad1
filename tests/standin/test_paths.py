"""Evaluations, checkpoints and tools find what they need on the stand-in, as on a CPU."""

from __future__ import annotations

import pytest

from sftcore.testing.standin.process import on_cpu, on_standin

pytestmark = pytest.mark.slow

pytest.importorskip("torch", minversion="2.10")

RUN = "tests.standin.paths:run"
CALLS = {
    "evaluated": {"name": "evaluated_first"},
    "in half": {"name": "evaluated_first", "bf16_full_eval": True},
    "resumed": {"name": "resumed"},
    "predicted": {"name": "predicted"},
    "one device": {"name": "restored_randomness", "every": False},
    "no streams on the device": {"name": "offloaded_without_streams"},
    "several devices": {"name": "restored_randomness", "every": True},
}


@pytest.fixture(scope="module")
def found():
    return dict(zip(CALLS, on_standin(RUN, [*CALLS.values()]), strict=True))


@pytest.fixture(scope="module")
def wanted():
    calls = {name: call for name, call in CALLS.items() if "device" not in name}
    return dict(zip(calls, on_cpu(RUN, [*calls.values()]), strict=True))


@pytest.mark.parametrize(("name", "tolerance"), [("evaluated", 1e-4), ("in half", 2e-2)])
def test_an_evaluation_before_any_step_proves_documents_apart_on_the_device(found, wanted, name, tolerance):
    assert found[name]["way"] == wanted[name]["way"] == "positions"
    assert found[name]["evaluated"] == pytest.approx(wanted[name]["evaluated"], abs=tolerance)
    assert found[name]["losses"] == pytest.approx(wanted[name]["losses"], abs=tolerance)
    assert not [note for note in found[name]["notes"] if "all logits" in note]


def test_a_run_resumes_to_the_curve_of_one_that_was_not_stopped(found, wanted):
    assert found["resumed"]["resumed"] == found["resumed"]["whole"]
    assert found["resumed"]["whole"] == pytest.approx(wanted["resumed"]["whole"], abs=1e-4)
    assert found["resumed"]["differing"] == []


def test_predictions_are_those_of_the_cpu(found, wanted):
    assert found["predicted"]["shape"] == wanted["predicted"]["shape"]
    assert found["predicted"]["sum"] == pytest.approx(wanted["predicted"]["sum"], rel=1e-4)


def test_the_devices_random_numbers_go_on_where_they_were(found):
    assert found["one device"] == ["state"]
    assert found["several devices"] == ["a", "b"]


def test_offloading_is_refused_where_torch_has_no_streams(found):
    assert "torch has no streams on standin" in found["no streams on the device"]


def test_ligers_kernels_and_loss_are_put_in_without_a_call_of_the_model():
    pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")
    [found] = on_standin(RUN, [{"name": "made_with_liger"}])
    assert "error" not in found, found
    assert any("rms_norm of 5 modules" in note for note in found["notes"])
    assert found["loss"] == "LigerCrossEntropy"
