"""Products by oneDNN are those of torch, and are taken only where torch leaves half of a CPU's speed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from sftcore.losses.asked_again import plain_operations
from sftcore.model.products import onednn as products

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
LAYOUTS = {
    "rows": lambda one: one.contiguous(),
    "columns": lambda one: one.T.contiguous().T,
    "a part": lambda one: torch.nn.functional.pad(one, (1, 2, 3, 1))[3:-1, 1:-2],
    "every other": lambda one: one.repeat_interleave(2, 1)[:, ::2],
    "one row, repeated": lambda one: one[:1].expand(one.shape),
    "one number, repeated": lambda one: one[:1, :1].expand(one.shape),
}


@pytest.fixture
def always(monkeypatch):
    """oneDNN on any CPU, for products of any size; counts them."""
    calls = []

    def counted(*factors):
        calls.append(tuple(factors[0].shape))
        return original(*factors)

    original = products.by_onednn
    monkeypatch.setattr(products, "by_onednn", counted)
    monkeypatch.setattr(products, "FEWEST", 1)
    monkeypatch.setattr(products, "_cpu_prefers_onednn", lambda: True)
    return calls


@needs_onednn
@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    left=st.sampled_from([*LAYOUTS]),
    right=st.sampled_from([*LAYOUTS]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_product_is_that_of_float64_whatever_lies_where(shape, left, right, bias, seed):
    rows, inner, columns = shape
    made = torch.Generator().manual_seed(seed)
    one = LAYOUTS[left](torch.randn(rows, inner, generator=made))
    other = LAYOUTS[right](torch.randn(inner, columns, generator=made))
    added = torch.randn(columns, generator=made) if bias else None
    found = products.by_onednn(one, other, added)
    wanted = one.double() @ other.double() + (0 if added is None else added.double())
    assert found.is_contiguous()
    torch.testing.assert_close(found.double(), wanted, atol=2e-5, rtol=1e-5)


@needs_onednn
def test_a_product_of_a_models_size_is_in_float32():
    made = torch.Generator().manual_seed(0)
    one, other = torch.randn(300, 1536, generator=made), torch.randn(1536, 576, generator=made)
    wanted = one.double() @ other.double()
    off = (products.by_onednn(one, other).double() - wanted).norm() / wanted.norm()
    of_torch = ((one @ other).double() - wanted).norm() / wanted.norm()
    assert off < 4 * of_torch < 1e-5  # bfloat16's would be 1e-3


@needs_onednn
@pytest.mark.parametrize("of", ["every other", "one, repeated", "a part"])
def test_a_bias_is_taken_by_its_strides(of):
    made = torch.Generator().manual_seed(0)
    bias = {
        "every other": torch.randn(100, generator=made)[::2],
        "one, repeated": torch.randn(1, generator=made).expand(50),
        "a part": torch.randn(70, generator=made)[5:55],
    }[of]
    one, other = torch.randn(33, 70, generator=made), torch.randn(70, 50, generator=made)
    wanted = one.double() @ other.double() + torch.tensor(bias.tolist(), dtype=torch.double)
    torch.testing.assert_close(products.by_onednn(one, other, bias).double(), wanted, atol=2e-5, rtol=1e-5)


@needs_onednn
@pytest.mark.parametrize("rows", [63, 65, 129, 200, 601, 1000])
@pytest.mark.parametrize("bias", [True, False])
def test_of_any_number_of_rows_all_are_multiplied(always, rows, bias):
    made = torch.Generator().manual_seed(0)
    states, weight = torch.randn(rows, 48, generator=made), torch.randn(48, 20, generator=made)
    added = torch.randn(20, generator=made) if bias else None
    wanted = states.double() @ weight.double() + (0 if added is None else added.double())
    torch.testing.assert_close(products.product(states, weight, added).double(), wanted, atol=1e-4, rtol=1e-5)
    back = torch.randn(rows, 20, generator=made)
    found = products.product(states.T, back, added)  # as a gradient: the rows are summed over
    wanted = states.double().T @ back.double() + (0 if added is None else added.double())
    torch.testing.assert_close(found.double(), wanted, atol=1e-3, rtol=1e-5)
    assert len(always) == 2


def test_batches_of_ever_other_numbers_of_rows_take_few_shapes(always):
    weight = torch.randn(8, 4)
    for rows in range(1024, 2048):
        states = torch.randn(rows, 8)
        products.product(states, weight)
        products.product(states.T, states)
    odd = {shape for shape in always if max(shape) % 64}
    assert not odd
    assert len(set(always)) == 2 * 16  # every multiple of 64
    given = [
        (rows, [rows - max(shape) for shape in pair])
        for rows, pair in zip(range(1024, 2048), zip(always[::2], always[1::2], strict=True), strict=True)
    ]
    assert all(0 <= left < rows / 8 for rows, both in given for left in both)


# --- A layer --------------------------------------------------------------------------------------------------------
def of(layer, states, call):
    """Output, and the gradients of states and parameters."""
    states = states.clone().requires_grad_()
    found = call(layer, states)
    torch.manual_seed(5)
    wanted = [states, *(one for one in layer.parameters() if one.requires_grad)]
    return found, *torch.autograd.grad((found * torch.randn_like(found)).sum(), wanted)


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_layer_gives_what_it_gives_by_itself(always, bias, frozen):
    torch.manual_seed(0)
    layer, states = torch.nn.Linear(12, 30, bias=bias).requires_grad_(not frozen), torch.randn(7, 12)
    got, wanted = of(layer, states, products.linear), of(layer, states, lambda one, given: one(given))
    assert len(got) == len(wanted) == (2 if frozen else 3 + bias)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    assert always == [(7, 12), (7, 30)] + ([] if frozen else [(30, 7)])


@needs_onednn
def test_its_gradient_can_be_differentiated(always):
    layer = torch.nn.Linear(5, 4).double()
    assert products.linear(layer, torch.randn(2, 5, dtype=torch.double)).dtype == torch.double
    assert not always  # float64 stays torch's
    layer, states = layer.float(), torch.randn(3, 5, requires_grad=True)
    found = []
    for call in (products.linear, lambda one, given: one(given)):
        (first,) = torch.autograd.grad(call(layer, states).pow(3).sum(), states, create_graph=True)
        found.append(torch.autograd.grad(first.pow(2).sum(), [states, layer.weight]))
    torch.testing.assert_close(*found, atol=1e-3, rtol=1e-4)
    assert always


@needs_onednn
def test_what_no_gradient_needs_may_be_changed(always):
    layer, states = torch.nn.Linear(5, 4).requires_grad_(False), torch.randn(3, 5, requires_grad=True)
    inside = states * 1
    output = products.linear(layer, inside)
    inside.zero_()  # the weights are frozen: their gradient would need it
    (found,) = torch.autograd.grad(output.sum(), states)
    torch.testing.assert_close(found, layer.weight.sum(0).expand(3, 5))
    assert always


def hooked(layer):
    layer.register_forward_hook(lambda *_: None)


def replaced(layer):
    layer.forward = type(layer).forward.__get__(layer)


def in_half(layer):
    layer.half()


class Own(torch.nn.Linear):
    def forward(self, states):
        return super().forward(states) + 1


@pytest.mark.parametrize("change", [hooked, replaced, in_half])
def test_a_layer_that_is_not_what_it_seems_is_called(always, change):
    layer = torch.nn.Linear(12, 30)
    change(layer)
    states = torch.randn(7, 12, dtype=layer.weight.dtype)
    torch.testing.assert_close(products.linear(layer, states), layer(states))
    assert not always


def test_a_hook_on_all_modules_is_called(always):
    seen = []
    hook = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    layer = torch.nn.Linear(12, 30)
    try:
        products.linear(layer, torch.randn(7, 12))
    finally:
        hook.remove()
    assert seen == [layer]
    assert not always


def test_a_layer_of_a_class_of_its_own_is_called(always):
    layer, states = Own(12, 30), torch.randn(7, 12)
    torch.testing.assert_close(products.linear(layer, states), layer(states))
    assert products.linear(torch.nn.Identity(), states) is states
    assert not always


@pytest.mark.parametrize(
    "around", [plain_operations, lambda: torch.autocast("cpu", torch.bfloat16), lambda: FlopCounterMode(display=False)]
)
def test_who_looks_at_torchs_own_operations_sees_them(always, around):
    layer, states = torch.nn.Linear(12, 30), torch.randn(7, 12)
    with around() as seen:
        found = products.linear(layer, states)
    assert not always
    assert found.shape == (7, 30)
    if isinstance(seen, FlopCounterMode):
        assert seen.get_total_flops() == 2 * 7 * 12 * 30


def test_who_asks_torch_for_fewer_digits_gets_torchs_product(always):
    torch.set_float32_matmul_precision("medium")
    try:
        products.product(torch.randn(7, 12), torch.randn(12, 30))
    finally:
        torch.set_float32_matmul_precision("highest")
    assert not always


# --- Where it is faster ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("maker", "capability", "wanted"),
    [
        ("vendor_id\t: AuthenticAMD", "AVX512", True),
        ("vendor_id\t: AuthenticAMD", "AVX2", False),
        ("vendor_id\t: GenuineIntel", "AVX512", False),
        ("", "AVX512", False),
    ],
)
def test_it_is_taken_on_amds_cpus_with_wide_registers(monkeypatch, maker, capability, wanted):
    monkeypatch.setattr(products, "_named_cpu", lambda: maker)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert products._cpu_prefers_onednn.__wrapped__() is wanted
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert not products._cpu_prefers_onednn.__wrapped__()


def test_small_products_stay_torchs(monkeypatch):
    monkeypatch.setattr(products, "_cpu_prefers_onednn", lambda: True)
    monkeypatch.setattr(products, "by_onednn", lambda *factors: 1 / 0)
    assert products.product(torch.randn(64, 64), torch.randn(64, 64)).shape == (64, 64)
    with pytest.raises(ZeroDivisionError):
        products.product(torch.randn(256, 256), torch.randn(256, 256))
