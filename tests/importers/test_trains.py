"""The recipes that fourteen configurations become train on a tiny model, without what needs a GPU."""

from __future__ import annotations

import pytest
from rich.console import Console

from sftcore.train.run import check_recipe, run_recipe
from tests.importers.world import FILES, brought, make_world, recipe_of

pytestmark = pytest.mark.slow
_HERE = ["report_to=none", "dataloader_num_workers=0", "dataloader_prefetch_factor=null"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("name", FILES)
def test_the_recipe_of_a_configuration_trains(world, monkeypatch, name):
    monkeypatch.chdir(world)
    made = brought(name, without_gpu=True)
    tracked = ["tracker=null"] if "tracker" in made.values else []
    recipe = recipe_of(made.text, world, *_HERE, *tracked, "max_steps=2", f"output_dir=out-{name.partition('.')[0]}")
    outcome = run_recipe(check_recipe(recipe), Console(quiet=True))
    assert outcome.trainer.state.global_step == 2
    assert all(loss > 0 for loss in outcome.losses)
