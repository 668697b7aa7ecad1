"""Training on clips has the loss of a processor and a model that are called by hand."""

import pytest

from tests.plugins.vlm.videos.clips import FAMILIES, SAMPLED, encoded, frames, make_vlm, read

import torch  # isort: skip
from datasets import Dataset  # isort: skip

from sftcore import SFTConfig, SFTTrainer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=FAMILIES)
def made(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "ten seconds.mp4"
    path.write_bytes(encoded(frames()))
    model, processor = make_vlm(request.param)
    return request.param, model, processor, path


def conversation(*content, answer="A bar moves to the right."):
    return {"messages": [{"role": "user", "content": list(content)}, {"role": "assistant", "content": [text(answer)]}]}


def text(words):
    return {"type": "text", "text": words}


VIDEO = {"type": "video"}


def rows_of(path):
    return [
        {**conversation(text("What moves? "), VIDEO), "videos": [str(path)]},
        {**conversation(text("Hello"), answer="Good day."), "videos": []},
        {**conversation(VIDEO, text("And here?"), answer="The same."), "videos": [str(path)]},
    ]


def sampled(family):
    return SAMPLED.get(family, {"num_frames": 4})


def trainer_of(folder, made, rows, **options):
    family, model, processor, _ = made
    settings = {
        "use_cpu": True, "report_to": "none", "save_strategy": "no", "logging_steps": 1, "bf16": False, "max_steps": 1,
        "dataset_cache": False, "gradient_checkpointing": False, "disable_tqdm": True, "learning_rate": 0.0,
        "assistant_only_loss": True, "per_device_train_batch_size": 4, "max_length": 2048, "weight_decay": 0.0,
        "plugins": {"format": {"vlm": sampled(family)}},
    }  # fmt: skip
    return SFTTrainer(
        model, SFTConfig(str(folder), **{**settings, **options}), train_dataset=Dataset.from_list(rows),
        processing_class=processor,
    )  # fmt: skip


def loss_of(trainer):
    trainer.train()
    return next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)


def by_hand(made, rows):
    """The mean over all answers' tokens of rows that are processed one by one; the tokens of the row that was last."""
    family, model, processor, _ = made
    total, count = 0.0, 0
    for row in rows:
        given = {}
        if row["videos"]:
            clips, rate = read(row["videos"][0])
            facts = {"total_num_frames": len(clips), "fps": rate, "duration": len(clips) / rate, "frames_indices": None}
            given = {"videos": [[clips]], "video_metadata": [facts], "do_sample_frames": True, **sampled(family)}
        template = processor.tokenizer
        whole = template.apply_chat_template(row["messages"], tokenize=False)
        question = template.apply_chat_template(row["messages"][:1], tokenize=False, add_generation_prompt=True)
        batch = processor(text=[whole], return_tensors="pt", add_special_tokens=False, **given)
        asked = processor(text=[question], return_tensors="pt", add_special_tokens=False, **given)
        labels = batch["input_ids"].clone()
        labels[:, : asked["input_ids"].shape[1]] = -100
        newline = len(template("\n", add_special_tokens=False)["input_ids"])
        labels[:, labels.shape[1] - newline :] = -100  # what the template writes behind the end of a turn
        with torch.no_grad():
            logits = model(**batch).logits[0, :-1]
        kept = labels[0, 1:] != -100
        total += torch.nn.functional.cross_entropy(logits[kept], labels[0, 1:][kept], reduction="sum").item()
        count += int(kept.sum())
    return total / count


def test_clips_and_texts_in_one_batch_have_the_loss_of_the_loop_by_hand(tmp_path, made):
    rows = rows_of(made[3])
    assert loss_of(trainer_of(tmp_path, made, rows)) == pytest.approx(by_hand(made, rows), rel=1e-5)


@pytest.mark.parametrize("layout", [{"packing": True}, {"padding_free": True}])
def test_clips_that_share_a_row_have_the_loss_of_the_loop_by_hand(tmp_path, made, layout):
    rows = rows_of(made[3])
    trainer = trainer_of(tmp_path, made, rows, **layout)
    assert loss_of(trainer) == pytest.approx(by_hand(made, rows), rel=1e-5)
    assert "with images: logits are bit-identical" in str(trainer.shared_rows.proof)


def test_rows_with_images_and_rows_with_clips_may_share_a_batch(tmp_path, made):
    shown = {
        **conversation({"type": "image"}, text("What is it?"), answer="A wall."),
        "images": [PICTURE],
        "videos": [],
    }
    rows = [{**row, "images": []} for row in rows_of(made[3])]
    rows = [rows[0], shown, rows[1], rows[2]]
    alone = [trainer_of(tmp_path / f"{at}", made, [row]) for at, row in enumerate(rows)]
    counts = [trainer.data.ledgers[0].tokens_supervised for trainer in alone]
    together = loss_of(trainer_of(tmp_path, made, rows))
    mean = sum(loss_of(trainer) * count for trainer, count in zip(alone, counts, strict=True)) / sum(counts)
    assert together == pytest.approx(mean, rel=1e-5)


def _png():
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 60, 20)).save(buffer, "PNG")
    return buffer.getvalue()


PICTURE = _png()
