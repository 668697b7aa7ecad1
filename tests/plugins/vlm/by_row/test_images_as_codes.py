"""Models that turn images into codes: what makes the codes stays as it is, and images do not change one another."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from sftcore import ConflictError
from sftcore.data.images.processors import fills_up
from sftcore.model.vision import freeze_codes, frozen_statistics, parts_with_codes
from sftcore.testing.tiny_vlm import make_vlm
from tests.plugins.vlm.by_row.builders import ROWS, loss_of, make_trainer, row
from tests.plugins.vlm.families import others
from tests.plugins.vlm.families.family_parts import TORCHVISION

ONE_SIZE = [row("@a", "say it"), row("one and ", "@a", " two", answer="the second")]
TWO_SIZES = [row("@a", "say it"), row("one and ", "@b", " two", answer="the second")]


@pytest.fixture(scope="module")
def emu3():
    if not TORCHVISION:
        pytest.skip("transformers has this family's processor for torchvision alone")
    return others.emu3()


def trainer_of(made, folder, rows, **options):
    model, processor = made
    return make_trainer(folder, "emu3", rows, made=(copy.deepcopy(model), processor), **options)


# --- Rows that share a batch ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("options", [{"per_device_train_batch_size": 2}, {"packing": True}, {"padding_free": True}])
def test_images_of_several_sizes_in_one_batch_are_refused_before_the_first_step(emu3, tmp_path, options):
    if "padding_free" in options:
        options = {**options, "per_device_train_batch_size": 2}
    with pytest.raises(ConflictError, match=r"Emu3Processor fills up .*\(40 x 70 and 50 x 50 pixels\).*batch_size: 1"):
        trainer_of(emu3, tmp_path, TWO_SIZES, **options)


def test_images_of_several_sizes_train_where_each_row_is_a_batch_or_one_size_is_asked_for(emu3, tmp_path):
    alone = trainer_of(emu3, tmp_path / "alone", TWO_SIZES, gradient_accumulation_steps=2)
    assert loss_of(alone) > 0
    fitted = {"plugins": {"format": {"vlm": {"image_size": [48, 48]}}}}
    together = trainer_of(emu3, tmp_path / "a", TWO_SIZES, per_device_train_batch_size=2, **fitted)
    apart = trainer_of(emu3, tmp_path / "b", TWO_SIZES, gradient_accumulation_steps=2, **fitted)
    assert loss_of(together) == pytest.approx(loss_of(apart), rel=1e-5)


def test_an_evaluation_of_several_sizes_is_refused_by_its_own_batch_size(emu3, tmp_path):
    options = {"eval_rows": TWO_SIZES, "eval_strategy": "steps", "per_device_eval_batch_size": 2}
    with pytest.raises(ConflictError, match="per_device_eval_batch_size: 1"):
        trainer_of(emu3, tmp_path, ONE_SIZE, **options)


def test_processors_that_fill_up_are_told_from_those_that_do_not(emu3):
    assert fills_up(emu3[1])
    assert not fills_up(others.chameleon()[1])
    assert not fills_up(make_vlm("llava")[1])


# --- What makes the codes -------------------------------------------------------------------------------------------
def test_training_leaves_what_makes_the_codes_as_it_was(emu3, tmp_path):
    trainer = trainer_of(emu3, tmp_path, ONE_SIZE, per_device_train_batch_size=2, learning_rate=0.1, max_steps=2)
    assert any("codes is frozen: model.vqmodel" in note for note in trainer.loaded.notes)
    own = trainer.model.model.vqmodel
    before = copy.deepcopy(own.state_dict())
    trainer.train()
    assert {name: value for name, value in own.state_dict().items() if not torch.equal(value, before[name])} == {}
    assert not [name for name, one in own.named_parameters() if one.requires_grad]
    assert "train" not in vars(own)
    assert own.training == trainer.model.training


def test_a_model_of_codes_is_known_by_its_folder(tmp_path):
    model, processor = others.chameleon()
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    options = {"plugins": {"adapter": {"lora": {"target_modules": "all-linear"}}}, "per_device_train_batch_size": 2}
    trainer = make_trainer(tmp_path / "run", "chameleon", ROWS[:2], made=(str(tmp_path / "base"), processor), **options)
    assert loss_of(trainer) > 0
    trained = [name for name, one in trainer.model.named_parameters() if one.requires_grad]
    assert trained
    assert not [name for name in trained if "vqmodel" in name]
    assert type(trainer.model.get_base_model()) is type(AutoModelForImageTextToText.from_pretrained(tmp_path / "base"))


# --- Statistics of frozen parts -------------------------------------------------------------------------------------
class Normalised(nn.Module):
    """A frozen tower with batch normalisation, before layers that train."""

    def __init__(self):
        super().__init__()
        self.config = type("Config", (), {})()
        self.tower = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False))
        self.head = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.tower.requires_grad_(False)

    def forward(self, pixels):
        return self.head(self.tower(pixels).mean((2, 3)))


def test_batch_normalisation_of_a_frozen_part_keeps_its_statistics_and_that_of_a_trained_one_learns_them():
    torch.manual_seed(0)
    model, pixels = Normalised().train(), torch.randn(4, 3, 2, 2)
    before = copy.deepcopy(model.state_dict())
    with frozen_statistics(model):
        model.train()  # as the loop does before each step
        alone = torch.cat([model.tower(one[None]) for one in pixels])
        assert torch.equal(model.tower(pixels), alone)
        model(pixels)
        copied = copy.deepcopy(model).train()
        assert not copied.tower[1].training
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"head.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert model.tower[1].training
    assert model.train().tower[1].training


def test_a_model_without_codes_or_statistics_is_left_alone():
    model, _ = make_vlm("llava")
    assert parts_with_codes(model) == []
    assert freeze_codes(model) == ()
    with frozen_statistics(model):
        assert not [one for one in model.modules() if "train" in vars(one)]
