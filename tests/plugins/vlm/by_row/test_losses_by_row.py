"""Processors that look at a whole row: a run's loss is that of a loop written by hand, in every layout."""

import pytest
import torch

from sftcore import ConflictError, DataError
from tests.plugins.vlm.by_row.builders import (
    FAMILIES,
    ROWS,
    TEXT_ROW,
    TOKENS,
    loss_of,
    make,
    make_trainer,
    row,
)


def by_hand(family, rows, answers_only=False):
    """The mean loss of these rows, one at a time, through the processor and the model alone."""
    model, processor = make(family)
    ids_of = processor.tokenizer.convert_tokens_to_ids
    of_images = ids_of([token for token in TOKENS[family] if "image" in token])
    total, count = 0.0, 0
    for one in rows:
        text = processor.apply_chat_template(one["messages"], tokenize=False)
        if one["images"]:
            batch = dict(processor(text=[text], images=[one["images"]], add_special_tokens=False, return_tensors="pt"))
        else:
            batch = dict(processor.tokenizer([text], add_special_tokens=False, return_tensors="pt"))
        ids = batch["input_ids"]
        labels = ids.clone()
        labels[torch.isin(ids, torch.tensor(of_images))] = -100
        if answers_only:
            ends = (ids[0] == ids_of("<|im_end|>")).nonzero()[-1].item()
            begins = (ids[0] == ids_of("<|im_start|>")).nonzero()[-1].item()
            header = len(processor.tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"])
            keep = torch.zeros_like(ids, dtype=torch.bool)
            keep[0, begins + header : ends + 1] = True
            labels[~keep] = -100
        batch.pop("labels", None)
        if family == "paligemma":  # the prompt attends both ways, and what is learned only backwards
            batch["token_type_ids"] = ((labels != -100).cumsum(1) > 0).long()
        logits = model(**batch).logits[0, :-1].float()
        targets = labels[0, 1:]
        total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum", ignore_index=-100).item()
        count += int((targets != -100).sum())
    return total / count


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def test_rows_of_one_to_three_images_one_at_a_time_with_all_their_words(tmp_path, family):
    rows = [*ROWS, TEXT_ROW]
    trainer = make_trainer(tmp_path, family, rows, gradient_accumulation_steps=4)
    assert loss_of(trainer) == pytest.approx(by_hand(family, rows), rel=1e-5)


@pytest.mark.parametrize("family", [one for one in FAMILIES if one != "mllama"])
def test_rows_of_no_image_to_three_side_by_side_with_the_answers_alone(tmp_path, family):
    rows = [TEXT_ROW, *ROWS]
    trainer = make_trainer(tmp_path, family, rows, per_device_train_batch_size=4, assistant_only_loss=True)
    assert loss_of(trainer) == pytest.approx(by_hand(family, rows, answers_only=True), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llava_onevision", "idefics2"])
def test_rows_end_to_end_have_the_loss_of_each_alone(tmp_path, family):
    rows = [TEXT_ROW, *ROWS]
    trainer = make_trainer(tmp_path, family, rows, packing=True, assistant_only_loss=True)
    assert len(trainer.train_dataset) == 1
    assert loss_of(trainer) == pytest.approx(by_hand(family, rows, answers_only=True), rel=1e-5)


@pytest.mark.parametrize("rows", [[TEXT_ROW, *ROWS], [TEXT_ROW, TEXT_ROW]])
@pytest.mark.parametrize("options", [{"packing": True}, {"padding_free": True}])
def test_rows_end_to_end_are_refused_with_the_reason_where_prompts_would_see_each_other(tmp_path, rows, options):
    with pytest.raises(
        ConflictError, match=r"PaliGemmaProcessor .* prompts in a row see each other in both directions"
    ):
        make_trainer(tmp_path, "paligemma", rows, **options)


def test_lengths_of_a_check_are_those_of_the_processor(family):
    from sftcore.config.setup import set_up
    from sftcore.core.types import ModelRequest
    from sftcore.data.sets import DataPreparation

    _, processor = make(family)
    setup = set_up([], {"dataset_cache": False}, ModelRequest(vision=True), where="test")
    data = DataPreparation(setup, processor.tokenizer, 1024, processor=processor)
    pipeline = data.pipeline(["messages", "images"], "train_dataset", None, lambda: ROWS)
    for one, found in zip(ROWS, pipeline.inspect(ROWS, range(len(ROWS))), strict=True):
        text = processor.apply_chat_template(one["messages"], tokenize=False)
        ids = processor(text=[text], images=[one["images"]], add_special_tokens=False)["input_ids"][0]
        assert list(found.row.input_ids) == list(ids)
        assert [picture.num_tokens > 0 for picture in found.pictures] == [True] * len(one["images"])


# --- Images that belong to the rows of a batch ----------------------------------------------------------------------
def test_rows_that_see_images_across_attention_stand_side_by_side(tmp_path):
    same = [ROWS[0], row("say ", "@b", "now", answer="a blue one")]
    trainer = make_trainer(tmp_path, "mllama", same, per_device_train_batch_size=2)
    assert loss_of(trainer) == pytest.approx(by_hand("mllama", same), rel=1e-5)


def test_rows_with_and_without_images_in_one_batch_are_refused_before_the_first_step(tmp_path):
    with pytest.raises(ConflictError, match=r"MllamaProcessor.*per_device_train_batch_size"):
        make_trainer(tmp_path, "mllama", [TEXT_ROW, *ROWS], per_device_train_batch_size=4)


@pytest.mark.parametrize("option", ["per_device_train_batch_size", "per_device_eval_batch_size"])
def test_rows_with_other_numbers_of_images_in_one_batch_are_refused_before_the_first_step(tmp_path, option):
    one, two = ROWS[0], row("say ", "@b", "now", "@a", answer="a blue one")
    rows = [one, one] if "eval" in option else [one, two]
    others = {"eval_rows": [one, two], "eval_strategy": "steps"} if "eval" in option else {}
    with pytest.raises(ConflictError, match=rf"MllamaProcessor .*1 and 2 images cannot share.*{option}: 1"):
        make_trainer(tmp_path, "mllama", rows, **{option: 2}, **others)


def test_a_batch_of_other_numbers_of_images_is_refused_where_nobody_looked_before(tmp_path):
    trainer = make_trainer(tmp_path, "mllama", [ROWS[0], row("say ", "@b", "now", "@a", answer="a blue one")])
    with pytest.raises(DataError, match=r"MllamaProcessor.*different numbers of images"):
        trainer.data_collator([trainer.train_dataset[i] for i in (0, 1)])


def test_packed_rows_with_images_of_their_own_rows_are_refused_before_the_first_step(tmp_path):
    with pytest.raises(ConflictError, match="MllamaProcessor"):
        make_trainer(tmp_path, "mllama", ROWS, packing=True)


def test_rows_without_images_are_packed_as_ever(tmp_path):
    trainer = make_trainer(tmp_path, "mllama", [TEXT_ROW] * 3, packing=True)
    assert loss_of(trainer) > 0


def test_a_batch_of_both_kinds_is_refused_where_nobody_looked_before(tmp_path):
    trainer = make_trainer(tmp_path, "mllama", [TEXT_ROW, *ROWS])
    with pytest.raises(DataError, match="MllamaProcessor"):
        trainer.data_collator([trainer.train_dataset[i] for i in (0, 1)])


@pytest.mark.slow
def test_an_adapter_on_attention_to_images_trains_where_a_text_alone_would_not_pass_it(tmp_path):
    options = {"plugins": {"adapter": {"lora": {"target_modules": "all-linear"}}}}
    trainer = make_trainer(tmp_path, "mllama", ROWS, gradient_accumulation_steps=3, **options)
    assert loss_of(trainer) == pytest.approx(by_hand("mllama", ROWS), rel=1e-5)
    assert any("cross_attn" in name for name, one in trainer.model.named_parameters() if one.requires_grad)
