"""Hooks that ask all plugins ask them in the recipe's order."""

from __future__ import annotations

import pytest

from sftcore.core.hookspecs import LIFECYCLE, ONE_ANSWER, Hooks

BOLT = {"bolt": {"rope": False}}
ORDERS = [
    (["acme-rope", BOLT], [("rope by acme",), ("mlp by bolt",)]),
    ([BOLT, "acme-rope"], [("mlp by bolt",), ("rope by acme",)]),
]


@pytest.mark.parametrize(("kernels", "replaced"), ORDERS, ids=["acme first", "bolt first"])
def test_kernels_patch_in_recipe_order(install, set_up, kernels, replaced):
    install("acme-rope", "bolt-kernels")
    setup = set_up(kernel=kernels)
    reports = setup.plugins.all("patch_kernels", loaded=None, plan=setup.plan)
    assert [report.replaced for _, report in reports] == replaced


def test_kernels_written_as_one_mapping_keep_its_order(install, set_up):
    install("acme-rope", "bolt-kernels")
    setup = set_up(kernel={**BOLT, "acme-rope": None})
    assert [one.entry.name for one in setup.plugins.answers("patch_kernels")] == ["bolt", "acme-rope"]


def test_each_answer_comes_with_the_plugin_that_gave_it(install, set_up):
    install("acme-rope", "bolt-kernels")
    setup = set_up(kernel=["acme-rope", BOLT])
    answers = setup.plugins.all("claims")
    assert {one.entry.name: list(slots) for one, slots in answers if one.entry.kind == "kernel"} == {
        "acme-rope": ["kernel.rope"],
        "bolt": ["kernel.mlp"],
    }


def test_explain_shows_hooks_in_the_order_in_which_they_are_asked(sftcore, write):
    recipe = write(
        "recipe.yaml", "{model: some/model, data: owner/set, kernel: [{bolt: {rope: false}}, acme-rope], format: text}"
    )
    shown = sftcore("explain", str(recipe), having=("acme-rope", "bolt-kernels"))
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    first = next(i for i, line in enumerate(lines) if line.strip().startswith("patch_kernels"))
    assert [line.split()[-2] for line in lines[first : first + 2]] == ["bolt@bolt-kernels", "acme-rope@acme-rope"]
    assert "bolt_kernels.py:" in lines[first]


def test_every_specified_hook_has_its_place_in_the_order_of_a_run():
    specified = {name for name in vars(Hooks) if not name.startswith("_")}
    assert specified == set(LIFECYCLE)
    assert set(ONE_ANSWER) <= specified
