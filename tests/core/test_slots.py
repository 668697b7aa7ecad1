"""Slots: two explicit claims are a conflict with a way out, and a default steps back."""

from __future__ import annotations

import pytest

from sftcore.core.errors import ConflictError


def names(setup) -> set[str]:
    return {one.entry.name for one in setup.plugins.bound}


@pytest.mark.parametrize("order", [["acme-rope", "bolt"], ["bolt", "acme-rope"]], ids=" then ".join)
def test_two_claims_on_one_slot_name_both_and_the_option_that_frees_it(install, set_up, order):
    install("acme-rope", "bolt-kernels")
    with pytest.raises(ConflictError) as error:
        set_up(kernel=order)
    text = str(error.value)
    assert 'kernel "acme-rope@acme-rope"' in text
    assert 'kernel "bolt@bolt-kernels"' in text
    assert 'both claim the slot "kernel.rope"' in text
    assert "Free it with kernel: {bolt: {rope: false}}" in text


def test_the_option_that_a_conflict_names_lets_the_run_resolve(install, set_up):
    install("acme-rope", "bolt-kernels")
    setup = set_up(kernel={"acme-rope": {}, "bolt": {"rope": False}})
    assert {"acme-rope", "bolt"} <= names(setup)


def test_a_conflict_without_a_switch_says_how_to_leave_one_out(install, set_up):
    install("acme-loss")
    with pytest.raises(ConflictError) as error:
        set_up(kernel="fused-loss", loss="smoothed")
    text = str(error.value)
    assert 'kernel "fused-loss@acme-loss" and loss "smoothed@acme-loss" both claim' in text
    assert text.endswith("Remove one of them, or --block loss:smoothed.")


def test_the_default_loss_yields_to_a_kernel_that_brings_its_own(install, set_up):
    install("acme-loss")
    setup = set_up(kernel="fused-loss")
    ((default, winner),) = setup.plan.yielded
    assert (default.name, default.default, winner.name) == ("nll", True, "fused-loss")
    assert [one.entry.name for one in setup.plugins.answers("make_loss")] == ["fused-loss"]
    assert setup.plan.selected("loss") == ()


def test_a_chosen_loss_takes_the_place_of_the_default(install, set_up):
    install("acme-loss")
    setup = set_up(loss={"smoothed": {"smoothing": 0.2}})
    assert [one.entry.name for one in setup.plugins.answers("make_loss")] == ["smoothed"]
    assert "nll" not in names(setup)


def test_an_explicit_nll_does_not_yield(install, set_up):
    install("acme-loss")
    with pytest.raises(ConflictError, match=r'loss "nll@sftcore" both claim the slot "loss\.cross_entropy"'):
        set_up(kernel="fused-loss", loss="nll")


def test_explain_says_which_default_yielded_to_what(sftcore):
    shown = sftcore("explain", "model=some/model", "data=owner/set", "kernel=fused-loss", having=("acme-loss",))
    assert shown.returncode == 0, shown.stderr
    (line,) = [line for line in shown.stdout.splitlines() if "yielded" in line]
    assert line.split(maxsplit=1) == ["yielded", 'default loss "nll" to kernel "fused-loss"']
    (answer,) = [line for line in shown.stdout.splitlines() if line.strip().startswith("make_loss")]
    assert answer.split()[1] == "fused-loss@acme-loss"
