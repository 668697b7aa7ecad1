"""The stand-in is as strict as CUDA, and SFTTrainer gets the losses of the CPU on it."""

from __future__ import annotations

import pytest

from sftcore.testing.standin.process import on_cpu, on_standin

pytestmark = pytest.mark.slow

pytest.importorskip("torch", minversion="2.10")

RUN = "tests.standin.paths:run"
FAMILIES = ("llava", "idefics3", "qwen2_5_vl", "gemma3")
LAYOUTS = {"padded": {"padding_free": False}, "packed": {"packing": True}, "padding-free": {"padding_free": True}}
PLAIN = {"plain": {"name": "train"}}
IMAGES = {
    f"{family} {layout}": {"name": "train_images", "family": family, **fields}
    for family in FAMILIES
    for layout, fields in LAYOUTS.items()
}
KERNELS = {
    "kernel": {"name": "train", "padding_free": False},
    "kernel, packed": {"name": "train", "packing": True},
    "kernel, autocast": {"name": "train", "padding_free": True, "bf16": True},
}
SINGLE = {
    "float32": {"name": "train", "also": "evaluation", "padding_free": False},
    "packed LoRA": {"name": "train", "packing": True, "lora": True},
    "autocast": {"name": "train", "padding_free": True, "bf16": True},
    "perplexity": {"name": "perplexity"},
}
"""What is tried without float64."""


@pytest.fixture(scope="module")
def found():
    kernels = {name: {**call, "norm_kernel": True} for name, call in KERNELS.items()}
    calls = {
        **PLAIN,
        "waits": {"name": "waits_of"},
        "dtypes": {"name": "dtypes_of"},
        "places": {"name": "places_of"},
        **IMAGES,
        **kernels,
    }
    return dict(zip(calls, on_standin(RUN, [*calls.values()]), strict=True))


@pytest.fixture(scope="module")
def without_float64():
    calls = {**SINGLE, "errors": {"name": "errors_of"}}
    return dict(zip(calls, on_standin(RUN, [*calls.values()], float64=False), strict=True))


@pytest.fixture(scope="module")
def wanted():
    calls = {**PLAIN, **IMAGES, **KERNELS, **SINGLE}
    return dict(zip(calls, on_cpu(RUN, [*calls.values()]), strict=True))


def assert_same(found, wanted, tolerance=1e-4):
    assert "error" not in found, found["error"]
    assert (found["device"], wanted["device"]) == ("standin:0", "cpu")
    assert found["gathers"] is wanted["gathers"] is True
    assert found["way"] == wanted["way"]
    assert found["losses"] == pytest.approx(wanted["losses"], abs=tolerance)
    assert len(set(found["losses"])) == 3


@pytest.mark.slow
def test_three_steps_have_the_losses_of_the_cpu(found, wanted):
    assert_same(found["plain"], wanted["plain"])
    assert not [note for note in found["plain"]["notes"] if "all logits" in note]
    assert wanted["plain"]["waits"]["total"] == 0
    assert found["plain"]["waits"]["total"] > 0


@pytest.mark.parametrize("call", KERNELS)
def test_a_kernel_that_takes_tensors_of_the_device_alone_trains(found, wanted, call):
    assert_same(found[call], wanted[call], 2e-2 if "autocast" in call else 1e-4)


@pytest.mark.parametrize("call", IMAGES)
def test_vision_language_models_train_as_on_the_cpu(found, wanted, call):
    assert_same(found[call], wanted[call])


@pytest.mark.parametrize("call", [call for call in SINGLE if call != "perplexity"])
def test_a_device_without_float64_trains_and_evaluates(without_float64, wanted, call):
    assert_same(without_float64[call], wanted[call], 2e-2 if call == "autocast" else 1e-4)


def test_perplexity_needs_no_float64_on_the_device(without_float64, wanted):
    assert without_float64["perplexity"] == pytest.approx(wanted["perplexity"], rel=1e-5)


def test_what_makes_a_cuda_host_wait_is_counted_and_nothing_else(found):
    assert {source for source, kinds in found["waits"].items() if kinds} == {
        "there.sum().item()", "bool(mask.all())", "there.tolist()", "there.nonzero()", "there[mask]", "there[[0, 1]]",
        "lengths.bincount()", "torch.repeat_interleave(lengths, lengths)", "there.cpu()",
        "here.copy_(there, non_blocking=True)", "here.to('standin')", "here.to('standin', non_blocking=True)",
        "pinned.to('standin')", "torch.tensor([1.0], device='standin')", "there.new_tensor(1.0)",
        "torch.standin.synchronize()", "torch.standin.Event().synchronize()",
    }  # fmt: skip
    assert all(len(kinds) <= 1 for kinds in found["waits"].values()), found["waits"]


def test_what_cuda_refuses_is_refused(without_float64):
    told = without_float64["errors"]
    assert "found at least two devices, standin:0 and cpu" in told["there + here"]
    assert "Use Tensor.cpu()" in told["there.numpy()"]
    assert "float64" in told["there.double()"]
    assert "float64" in told["torch.zeros(3, dtype=torch.float64, device='standin')"]
    assert "Expected a 'standin' device" in told["torch.rand(3, device='standin', generator=torch.Generator())"]
    assert "Expected a 'cpu' device" in told["torch.rand(3, generator=torch.Generator('standin'))"]
    assert "cannot be accessed from Triton" in told["doubled(here)"]
    assert "two devices" in told["here[there.long()]"]


def test_autocast_gives_the_dtypes_of_cuda(found):
    lower = {source for source, dtype in found["dtypes"].items() if dtype == "bfloat16"}
    assert lower == {
        "full @ full", "functional.linear(full, full[0])", "torch.bmm(full, half)", "half + half",
        "functional.scaled_dot_product_attention(full, full, full)", "torch.einsum('bij,bjk->bik', full, full)",
    }  # fmt: skip
    assert {dtype for source, dtype in found["dtypes"].items() if source not in lower} == {"float32"}


def test_a_model_on_meta_is_made_there(found):
    assert found["places"] == ["meta", "meta", "meta", "cpu"]
