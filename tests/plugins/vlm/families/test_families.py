"""Each family's losses are those of a loop by hand over its own processor and model, or it is refused by name."""

import copy
import functools
import re

import pytest
import torch
from attrs import evolve
from datasets import Dataset
from transformers import AutoModelForImageTextToText, AutoProcessor

from sftcore import SFTConfig, SFTTrainer
from sftcore.core.errors import RowError, SFTCoreError
from tests.plugins.vlm.families.family_parts import TORCHVISION
from tests.plugins.vlm.families.family_table import COLUMNS, FAMILIES, Family
from tests.plugins.vlm.families.loop import CASES, RATE, in_training, loss_by_hand, train_by_hand

TOGETHER = {"per_device_train_batch_size": len(CASES)}
ALONE = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": len(CASES)}
OPTIONS = {
    "padded": TOGETHER,
    "accumulated": ALONE,
    "assistant only": {**TOGETHER, "assistant_only_loss": True},
    "packed": {**TOGETHER, "packing": True, "max_length": 1024},
    "padding-free": {**TOGETHER, "padding_free": True},
    "LoRA": {**TOGETHER, "plugins": {"adapter": {"lora": {"target_modules": "all-linear"}}}},
    "4 bits": {**TOGETHER, "plugins": {"adapter": {"qlora": {"bits": 4}}}},
}


@functools.lru_cache(maxsize=1)
def made(family: Family):
    """Model and processor of the family that is tried."""
    missing = "transformers has this family's processor for torchvision alone"
    if family.torchvision and not TORCHVISION:
        pytest.skip(missing)
    try:
        return family.make()
    except ImportError:
        if TORCHVISION:
            raise
        pytest.skip(missing)


def cases_of(family: Family, column: str):
    """Rows of no, one, two and three images; where a batch cannot hold them, of as many, or of one size."""
    if column == "accumulated":
        return CASES
    if family.one_number:
        return tuple(case.of_two_pictures() for case in CASES[1:])
    return tuple(case.of_one_size() for case in CASES) if family.one_size else CASES


@functools.lru_cache(maxsize=3)
def by_hand(family: Family, cases, answers: bool):
    model, processor = made(family)
    return train_by_hand(family, model, processor, cases, 2, answers)


# --- One column of one family ---------------------------------------------------------------------------------------
QUICK = (("LLaVA-NeXT", "padded"), ("VipLLaVA", "packed"), ("PaliGemma", "assistant only"))


def marked(family: Family, column: str):
    """What is tried, slow but for a few; what does not hold yet has to fail."""
    marks = [] if (family.name, column) in QUICK else [pytest.mark.slow]
    if reason := family.faults.get(column) or family.faults.get("*"):
        marks.append(pytest.mark.xfail(strict=True, reason=reason))
    return pytest.param(family, column, marks=marks, id=f"{family.name}-{column}")


TRIED = [marked(family, column) for family in FAMILIES for column in COLUMNS]


@pytest.mark.parametrize(("family", "column"), TRIED)
def test_a_family_trains_as_by_hand_or_is_refused(family, column, tmp_path, record_property):
    refused = family.refused.get(column) or family.refused.get("*")
    if refused:
        with pytest.raises(SFTCoreError, match=refused) as error:
            tried(family, column, tmp_path)
        record_property("refused", f"refused: {re.search(refused, error.value.what)[0]}")
        assert "*" not in family.refused or not isinstance(error.value, RowError), "once, before the rows"
    else:
        tried(family, column, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_losses_of_a_family_depend_on_its_pictures(family):
    model, processor = made(family)
    seen = CASES[1:2]  # some families take a single picture
    others = [evolve(case, seed=case.seed + 10) for case in seen]
    with torch.no_grad():
        one, other = (loss_by_hand(family, model, processor, cases, answers=True).item() for cases in (seen, others))
    assert abs(one - other) > 3e-5 * one  # three times what a family's losses may differ by


def tried(family: Family, column: str, folder):
    cases = cases_of(family, column)
    trainer = make_trainer(family, column, folder)
    _, processor = made(family)
    if "*" in family.refused:
        return
    trainer.train()
    found = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if column == "4 bits":
        again = AutoModelForImageTextToText.from_pretrained(
            folder / "base", quantization_config=trainer.model.config.quantization_config
        )
        wanted = loss_by_hand(family, in_training(family, again), processor, cases, answers=False).item()
        assert found[0] == pytest.approx(wanted, rel=1e-5)
        assert found[1] < found[0]
        return
    wanted, trained = by_hand(family, cases, column == "assistant only")
    if column == "LoRA":
        # It starts as nothing, so that the first step is that of the base
        assert found[0] == pytest.approx(wanted[0], rel=1e-5)
        assert found[1] < found[0]
        return
    assert found == pytest.approx(wanted, rel=1e-5)
    if column == "padded":
        held_when_read_again(family, cases, trainer, trained, folder / "saved")


def held_when_read_again(family: Family, cases, trainer, trained, folder):
    """Evaluation is that of the model trained by hand, and that of what plain transformers reads from the folder."""
    with torch.no_grad():
        wanted = loss_by_hand(family, trained, trainer.processing_class, cases, answers=False).item()
    found = trainer.evaluate(rows(cases))["eval_loss"]
    assert found == pytest.approx(wanted, rel=1e-5)
    trainer.save_model(str(folder))
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    # Without torchvision, transformers makes these processors but does not read most of them
    read = AutoProcessor.from_pretrained(folder) if TORCHVISION else trainer.processing_class
    read.chat_template = read.chat_template or read.tokenizer.chat_template  # that of Chameleon takes none
    with torch.no_grad():
        again = loss_by_hand(family, model, read, cases, answers=False).item()
    assert again == pytest.approx(wanted, rel=1e-5)


def rows(cases):
    return Dataset.from_list([case.row() for case in cases])


def make_trainer(family: Family, column: str, folder):
    model, processor = made(family)
    model = copy.deepcopy(model)
    options = dict(OPTIONS[column])
    if column == "4 bits":
        model.save_pretrained(folder / "base")
        model = str(folder / "base")
    config = SFTConfig(
        str(folder / "run"), use_cpu=True, report_to="none", save_strategy="no", logging_steps=1, bf16=False,
        dataset_cache=False, lr_scheduler_type="constant", gradient_checkpointing=False, disable_tqdm=True,
        optim="sgd", learning_rate=RATE, max_grad_norm=0.0, weight_decay=0.0, max_steps=2,
        per_device_eval_batch_size=2, **options,
    )  # fmt: skip
    return SFTTrainer(model, config, train_dataset=rows(cases_of(family, column)), processing_class=processor)
