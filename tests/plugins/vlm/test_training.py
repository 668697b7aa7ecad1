"""Training on rows with images: what counts, what a batch holds, what is learned, and what is saved."""

import io

import pytest
import torch
from datasets import Dataset, Features, Image, List
from PIL import Image as Pillow
from transformers import AutoModelForImageTextToText, AutoProcessor

from sftcore import SFTConfig, SFTTrainer
from sftcore.core.errors import ConflictError
from sftcore.testing.tiny_vlm import FAMILIES, make_vlm, save

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220)}


def encoded(colour, size=(32, 32)):
    buffer = io.BytesIO()
    Pillow.new("RGB", size, COLOURS[colour]).save(buffer, "PNG")
    return buffer.getvalue()


def conversation(question, answer, *colours):
    turns = [{"role": "user", "content": "<image>" * len(colours) + question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "images": [encoded(colour) for colour in colours]}


def mixed():
    """Rows of zero to three images; made anew each time, as processors write into the messages that they are given."""
    return [
        conversation("What is it?", "A wall.", "red"),
        conversation("Hello", "Good day to you."),
        conversation("Which?", "All three of them, I think.", "red", "green", "blue"),
        conversation("And this?", "The sky.", "blue"),
    ]


def config(folder, **options):
    settings = {
        "use_cpu": True, "report_to": "none", "save_strategy": "no", "logging_steps": 1, "bf16": False,
        "dataset_cache": False, "lr_scheduler_type": "constant", "gradient_checkpointing": False, "disable_tqdm": True,
    }  # fmt: skip
    return SFTConfig(str(folder), **{**settings, **options})


def make_trainer(folder, family, rows, **options):
    model, processor = make_vlm(family)
    peft_config = options.pop("peft_config", None)
    return SFTTrainer(
        model, config(folder, **options), train_dataset=Dataset.from_list(rows), processing_class=processor,
        peft_config=peft_config,
    )  # fmt: skip


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


# --- What counts ----------------------------------------------------------------------------------------------------
def test_only_the_assistants_words_count_and_never_an_image(tmp_path, family):
    trainer = make_trainer(tmp_path, family, mixed(), assistant_only_loss=True)
    tokenizer = trainer.data.tokenizer
    for row, raw in zip(trainer.train_dataset, mixed(), strict=True):
        counted = tokenizer.decode([label for label in row["labels"] if label != -100])
        answer = raw["messages"][1]["content"]
        assert counted.strip().startswith(answer)
        assert len(counted) < len(answer) + 25  # the end of the turn, and nothing else


def test_an_image_is_no_label_where_all_else_is(tmp_path, family):
    trainer = make_trainer(tmp_path, family, mixed())
    tokenizer = trainer.data.tokenizer
    written = {index for name, index in tokenizer.get_vocab().items() if name in OF_IMAGES}
    for row, raw in zip(trainer.train_dataset, mixed(), strict=True):
        counted = [label for label in row["labels"] if label != -100]
        assert not written & set(counted)
        assert bool(written & set(row["input_ids"])) is bool(raw["images"])
        for turn in raw["messages"]:
            assert turn["content"].replace("<image>", "").strip() in tokenizer.decode(counted)


OF_IMAGES = {
    "<image>", "<fake_token_around_image>", "<global-img>", "<row_1_col_1>", "<|image_pad|>", "<image_soft_token>",
    "<start_of_image>", "<end_of_image>",
}  # fmt: skip


# --- Batches --------------------------------------------------------------------------------------------------------
def test_mixed_batches_have_the_loss_of_one_row_at_a_time(tmp_path, family):
    options = {"max_steps": 1, "learning_rate": 0.0, "assistant_only_loss": True}
    together = make_trainer(tmp_path / "a", family, mixed(), per_device_train_batch_size=4, **options)
    together.train()
    alone = make_trainer(
        tmp_path / "b", family, mixed(), per_device_train_batch_size=1, gradient_accumulation_steps=4, **options
    )
    alone.train()
    assert losses(together) == pytest.approx(losses(alone), rel=1e-4)


@pytest.mark.parametrize("layout", [{"packing": True, "max_length": 512}, {"padding_free": True}])
def test_rows_that_share_one_have_the_loss_of_padded_ones(tmp_path, family, layout):
    options = {"max_steps": 1, "learning_rate": 0.0, "assistant_only_loss": True, "per_device_train_batch_size": 4}
    padded = make_trainer(tmp_path / "a", family, mixed(), **options)
    padded.train()
    shared = make_trainer(tmp_path / "b", family, mixed(), **{**options, **layout})
    shared.train()
    assert losses(shared) == pytest.approx(losses(padded), rel=1e-4)
    assert "with images: logits are bit-identical" in str(shared.shared_rows.proof)


def test_workers_make_the_same_batches(tmp_path, family):
    options = {"max_steps": 1, "learning_rate": 0.0, "per_device_train_batch_size": 4}
    here = make_trainer(tmp_path / "a", family, mixed(), **options)
    here.train()
    there = make_trainer(tmp_path / "b", family, mixed(), dataloader_num_workers=2, **options)
    there.train()
    assert losses(there) == losses(here)


def test_a_row_whose_image_would_be_cut_is_dropped_and_counted(tmp_path, family):
    whole = make_trainer(tmp_path, family, mixed())
    ids = whole.train_dataset[2]["input_ids"]
    place = whole.data.tokenizer.convert_tokens_to_ids(IMAGE_TOKENS[family])
    last = max(i for i, token in enumerate(ids) if token == place)
    ledger = make_trainer(tmp_path, family, mixed(), max_length=last).data.ledgers[0]
    assert ledger.first_dropped["an image would be cut at max_length"] == 2
    assert ledger.rows_kept + sum(ledger.dropped.values()) == 4


IMAGE_TOKENS = {
    "llava": "<image>", "idefics3": "<image>", "smolvlm": "<image>", "qwen2_5_vl": "<|image_pad|>",
    "gemma3": "<image_soft_token>",
}  # fmt: skip


def test_a_row_is_cut_behind_its_images(tmp_path, family):
    row = conversation("What is it?", "A wall, and a long one at that.", "red")
    length = len(make_trainer(tmp_path, family, [row]).train_dataset[0]["input_ids"])
    trainer = make_trainer(tmp_path, family, [row], max_length=length - 8, max_steps=1)
    assert len(trainer.train_dataset[0]["input_ids"]) == length - 8
    trainer.train()
    assert torch.isfinite(torch.tensor(losses(trainer))).all()


@pytest.mark.parametrize("packing", [False, True])
def test_a_stream_of_images_gives_the_rows_of_the_set(tmp_path, packing):
    options = {"max_steps": 1, "learning_rate": 0.0, "packing": packing, "max_length": 512}
    options |= {"per_device_train_batch_size": 1 if packing else 4}
    features = Dataset.from_list(mixed()).features | {"images": List(Image())}
    rows = Dataset.from_list(mixed()).cast(Features(features))
    found = []
    for number, data in enumerate((rows, rows.to_iterable_dataset())):
        model, processor = make_vlm("llava")
        folder = tmp_path / str(number)
        trainer = SFTTrainer(model, config(folder, **options), train_dataset=data, processing_class=processor)
        trainer.train()
        found.append(losses(trainer))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_several_processes_prepare_the_same_rows(tmp_path):
    one, two = (
        make_trainer(tmp_path / str(count), "idefics3", mixed(), dataset_num_proc=count, assistant_only_loss=True)
        for count in (None, 2)
    )
    assert one.train_dataset[:] == two.train_dataset[:]


# --- Learning -------------------------------------------------------------------------------------------------------
def test_an_answer_that_depends_on_the_picture_is_learned_and_swapped_pictures_fail(tmp_path, family):
    rows = [conversation("Colour?", answer, colour) for answer, colour in zip("xyz", COLOURS, strict=True)]
    trainer = make_trainer(
        tmp_path, family, rows, max_steps=60, learning_rate=5e-3, per_device_train_batch_size=3,
        assistant_only_loss=True, weight_decay=0.0,
    )  # fmt: skip
    trainer.train()
    assert losses(trainer)[-1] < 0.05
    swapped = [{**row, "images": other["images"]} for row, other in zip(rows, [*rows[1:], rows[0]], strict=True)]
    found = trainer.evaluate(Dataset.from_list(swapped))
    assert found["eval_loss"] > 1.0


def test_twenty_steps_halve_the_loss_and_plain_transformers_loads_what_was_saved(tmp_path, family):
    folder = save(family, tmp_path / "base")
    trainer = SFTTrainer(
        str(folder), config(tmp_path / "run", max_steps=20, learning_rate=5e-3, assistant_only_loss=True),
        train_dataset=Dataset.from_list(mixed()),
    )  # fmt: skip
    trainer.train()
    assert sum(losses(trainer)[-4:]) < 0.5 * sum(losses(trainer)[:4])
    trainer.save_model()
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "run")
    processor = AutoProcessor.from_pretrained(tmp_path / "run")
    batch = trainer.data_collator([trainer.train_dataset[0]])
    batch.pop("labels")
    trainer.model.eval()
    with torch.no_grad():
        wanted, got = (one.eval()(**batch).logits for one in (trainer.model, model))
    assert torch.allclose(wanted, got, atol=1e-5)
    assert processor.chat_template == trainer.processing_class.chat_template


# --- Adapters and towers --------------------------------------------------------------------------------------------
def adapted_by(tmp_path, family, **options) -> list[str]:
    """The names of what trains, with an adapter of these options."""
    options = {"target_modules": "all-linear", **options}
    trainer = make_trainer(tmp_path, family, mixed(), plugins={"adapter": {"lora": options}}, max_steps=1)
    trainer.train()
    return [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]


def test_an_adapter_from_options_stays_off_the_vision_tower(tmp_path, family):
    adapted = adapted_by(tmp_path, family)
    assert adapted
    assert all("language_model" in name or "text_model.layers" in name for name in adapted)


def test_an_adapter_without_targets_is_on_all_linear_layers_where_peft_knows_no_others(tmp_path, family):
    adapted = adapted_by(tmp_path, family, target_modules=None)
    assert adapted == adapted_by(tmp_path, family)


def test_an_adapter_that_excludes_more_stays_off_the_vision_tower_too(tmp_path):
    adapted = adapted_by(tmp_path, "llava", arguments={"exclude_modules": ["o_proj"]})
    assert any("v_proj" in name for name in adapted)
    assert all("language_model" in name and "o_proj" not in name for name in adapted)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_base_trains_an_adapter_on_images(tmp_path, bits):
    folder = save("llava", tmp_path / "base")
    trainer = SFTTrainer(
        str(folder),
        config(
            tmp_path / "run", max_steps=10, learning_rate=2e-2, assistant_only_loss=True,
            plugins={"adapter": {"qlora": {"bits": bits}}},
        ),
        train_dataset=Dataset.from_list(mixed()),
    )  # fmt: skip
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0] - 0.1  # the head of random weights stays as it is
    adapted = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert adapted
    assert all("language_model" in name for name in adapted)


@pytest.mark.parametrize("frozen", [True, None])
def test_a_frozen_vision_tower_does_not_move_and_another_does(tmp_path, family, frozen):
    from sftcore.model.vision import vision_parts

    trainer = make_trainer(
        tmp_path, family, mixed(), freeze_vision_tower=frozen, max_steps=2, learning_rate=1e-2, weight_decay=0.0
    )
    tower = [trainer.model.get_submodule(name) for name in vision_parts(trainer.model)]
    before = [value.clone() for part in tower for value in part.parameters()]
    trainer.train()
    after = [value for part in tower for value in part.parameters()]
    same = [torch.equal(one, other) for one, other in zip(before, after, strict=True)]
    assert all(same) if frozen else not all(same)


# --- Wrong combinations ---------------------------------------------------------------------------------------------
def test_a_text_collator_refuses_rows_with_images(tmp_path):
    with pytest.raises(ConflictError, match="the rows have images, and the collator PaddedCollator takes none"):
        make_trainer(tmp_path, "llava", mixed(), plugins={"collator": "padded"})


def test_a_collator_of_the_users_own_gets_the_rows_as_they_are(tmp_path):
    model, processor = make_vlm("llava")
    seen = []

    def collate(rows):
        seen.extend(rows)
        texts = [processor.apply_chat_template(row["messages"], tokenize=False) for row in rows]
        images = [[Pillow.open(io.BytesIO(image)) for image in row["images"]] for row in rows]
        batch = processor(text=texts, images=images, padding=True, return_tensors="pt")
        labels = batch["input_ids"].clone()
        labels[labels == processor.image_token_id] = -100
        return {**batch, "labels": labels}

    rows = [row for row in mixed() if row["images"]]
    for row in rows:
        parts = [{"type": "image"}] * len(row["images"])
        text = row["messages"][0]["content"].replace("<image>", "")
        row["messages"][0]["content"] = [*parts, {"type": "text", "text": text}]
        row["messages"][1]["content"] = [{"type": "text", "text": row["messages"][1]["content"]}]
    args = config(
        tmp_path, max_steps=2, remove_unused_columns=False, dataset_kwargs={"skip_prepare_dataset": True},
        per_device_train_batch_size=1,
    )  # fmt: skip
    trainer = SFTTrainer(
        model, args, data_collator=collate, train_dataset=Dataset.from_list(rows), processing_class=processor
    )
    trainer.train()
    assert {"messages", "images"} <= seen[-1].keys()
    assert len(losses(trainer)) == 2
