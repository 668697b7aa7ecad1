"""Rows with images: what the format makes of them, and what is refused, with its row."""

import base64
import io
import json
import re

import pytest
from click.testing import CliRunner
from datasets import Dataset, Features, Image, Json, List, Value
from PIL import Image as Pillow
from sftcore_plugins.formats.vlm import VisionLanguage

from sftcore.cli import cli
from sftcore.core.errors import DataError, RowError
from sftcore.data.images.given import source_of
from sftcore.data.images.reference import open_image, size_of
from sftcore.testing.tiny_vlm import save


def picture(size=(32, 24), colour="red"):
    return Pillow.new("RGB", size, colour)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def read(row, **options):
    return VisionLanguage(**options).make_formatter(tuple(row))(row)


def words(example):
    return [[part.text or part.type for part in turn.content] for turn in example.messages]


# --- Places ---------------------------------------------------------------------------------------------------------
def test_markers_in_plain_texts_become_parts_in_their_places():
    row = {"messages": [{"role": "user", "content": "<image>Who? <image>"}, {"role": "assistant", "content": "Two."}]}
    example = read({**row, "images": ["a.png", "b.png"]})
    assert [part.type for part in example.messages[0].content] == ["image", "text", "image"]
    assert list(example.images) == ["a.png", "b.png"]


def test_images_without_a_place_stand_before_the_first_users_words():
    turns = [{"role": "system", "content": "Look."}, {"role": "user", "content": "Who?"}]
    example = read({"messages": turns, "image": "a.png"})
    assert example.messages[0].content == "Look."
    assert [part.type for part in example.messages[1].content] == ["image", "text"]


def test_parts_hold_their_own_images_and_empty_ones_take_those_of_the_column():
    content = [
        {"type": "image", "image": "own.png"},
        {"type": "text", "text": "Which?"},
        {"type": "image"},
        {"type": "image_url", "image_url": {"url": "file:///third.png"}},
    ]
    example = read({"messages": [{"role": "user", "content": content}], "images": ["column.png"]})
    assert list(example.images) == ["own.png", "column.png", "file:///third.png"]
    assert all(not part.extra for part in example.messages[0].content)


def test_conversations_of_llava_are_read():
    turns = [{"from": "human", "value": "<image>\nWho?"}, {"from": "gpt", "value": "She."}]
    example = read({"conversations": turns, "image": "a.png"})
    assert [turn.role for turn in example.messages] == ["user", "assistant"]
    assert [part.type for part in example.messages[0].content] == ["image", "text"]


def test_prompts_and_completions_take_images_as_messages_and_as_texts():
    asked, said = [{"role": "user", "content": "<image>Who?"}], [{"role": "assistant", "content": "She."}]
    example = read({"prompt": asked, "completion": said, "images": ["a.png"]})
    assert len(example.prompt) == len(example.completion) == 1
    example = read({"prompt": "[img] Who?", "completion": " She.", "image": "a.png"}, marker="[img]")
    assert example.prompt == "<image> Who?"


@pytest.mark.parametrize("column", ["images", "image"])
def test_rows_without_images_stand_among_others(column):
    example = read({"messages": [{"role": "user", "content": "Hello"}], column: [] if column == "images" else None})
    assert not example.images
    assert example.messages[0].content == "Hello"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"messages": [{"role": "user", "content": "<image><image>"}], "images": ["a"]},
            "1 image,.* 2 image placeholders",
        ),
        (
            {"messages": [{"role": "user", "content": "<image>"}], "images": ["a", "b"]},
            "2 images,.* 1 image placeholder\\.",
        ),
        ({"messages": [{"role": "user", "content": "<image>"}], "images": None}, "0 images,.* 1 image placeholder\\."),
        ({"messages": [{"role": "user", "content": "x"}], "images": ["a"], "image": "b"}, "images in images and image"),
        (
            {"messages": [{"role": "user", "content": [{"type": "video"}]}], "images": []},
            "0 videos,.* 1 video placeholder",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}], "images": []}, 'part of type "audio"'),
        ({"messages": [{"role": "assistant", "content": "x"}], "images": ["a"]}, "no user message"),
    ],
)
def test_another_number_of_images_than_of_places_is_refused_with_both(row, said):
    with pytest.raises(RowError, match=said):
        read(row)


# --- Images ---------------------------------------------------------------------------------------------------------
def test_an_image_may_be_given_in_any_of_its_forms(tmp_path):
    file = tmp_path / "a b.png"
    picture().save(file)
    data = encoded(picture())
    forms = [
        picture(), data, str(file), file, file.as_uri(), "a b.png",
        {"bytes": data, "path": None}, {"bytes": None, "path": str(file)}, {"type": "image", "image": picture()},
        f"data:image/png;base64,{base64.b64encode(data).decode()}",
    ]  # fmt: skip
    for form in forms:
        source = source_of(form, str(tmp_path))
        assert size_of(source) == (32, 24)
        assert open_image(source).getpixel((0, 0)) == (255, 0, 0)


def test_a_photograph_taken_sideways_stands_upright():
    exif = Pillow.Exif()
    exif[0x0112] = 6
    source = source_of(encoded(picture((40, 20)), "JPEG", exif=exif))
    assert size_of(source) == open_image(source).size == (20, 40)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"no image at all", "cannot be read"),
        (b"", "no bytes"),
        (None, "is null"),
        ({"bytes": None, "path": None}, "without bytes or path"),
        (7, "type int cannot be read as an image"),
        ("nowhere.png", "does not exist"),
        ("https://example.com/a.png", "not on this machine"),
        ("data:image/png,raw", "data URL that cannot be read"),
        (Pillow.new("RGB", (0, 5)), "no pixels"),
        (encoded(picture((300, 300)))[:60], "is broken|cannot be read"),
    ],
)
def test_what_is_no_usable_image_is_refused(value, said, tmp_path):
    with pytest.raises(RowError, match=said):
        open_image(source_of(value, str(tmp_path)))


def test_a_decompression_bomb_is_refused_by_its_head_alone():
    # 400 megapixels in a file of some hundred kilobytes
    source = source_of(encoded(Pillow.new("1", (20_000, 20_000))))
    with pytest.raises(RowError, match=r"20,000 x 20,000 pixels, more than 89,478,485.*1,144 MiB"):
        size_of(source)
    assert size_of(source, max_pixels=10**9) == (20_000, 20_000)


# --- Data sets ------------------------------------------------------------------------------------------------------
def test_an_image_column_is_prepared_without_being_decoded(vlm_data, monkeypatch):
    data = vlm_data("llava")
    turns = [{"role": "user", "content": "<image>Who?"}, {"role": "assistant", "content": "She."}]
    features = Features({"messages": [{"role": Value("string"), "content": Value("string")}], "images": List(Image())})
    rows = Dataset.from_dict({"messages": [turns], "images": [[picture()]]}, features=features)
    opened = []
    monkeypatch.setattr(Pillow.Image, "load", lambda self: opened.append(self), raising=True)
    prepared = data.prepare(rows, "train")
    assert prepared["documents"][0][0]["images"][0]["bytes"].startswith(b"\x89PNG")
    assert prepared[0]["labels"].count(-100) > 4


def test_a_text_model_refuses_rows_with_images(text_data):
    turns = [{"role": "user", "content": "<image>Who?"}, {"role": "assistant", "content": "She."}]
    rows = Dataset.from_list([{"messages": turns, "images": [encoded(picture())]}])
    with pytest.raises(DataError, match="train row 0: the rows have images, but the model reads only text"):
        text_data().prepare(rows, "train")


def test_faults_are_told_with_their_row_and_image(vlm_data):
    good = [{"role": "user", "content": "<image><image>"}, {"role": "assistant", "content": "She."}]
    rows = Dataset.from_list([
        {"messages": good, "images": [encoded(picture()), encoded(picture())]},
        {"messages": good, "images": [encoded(picture()), b"broken"]},
    ])  # fmt: skip
    with pytest.raises(RowError, match="train row 1: image 1 of 2: the image of 6 bytes cannot be read"):
        vlm_data("llava").prepare(rows, "train")


def test_a_text_that_spells_the_models_image_token_is_refused(vlm_data):
    turns = [{"role": "user", "content": "What does <|image_pad|> mean?"}, {"role": "assistant", "content": "A place."}]
    with pytest.raises(RowError, match=r"train row 0: the text has 1 image placeholder .* but the row has no images"):
        vlm_data("qwen2_5_vl").prepare(Dataset.from_list([{"messages": turns}]), "train")


@pytest.mark.parametrize(
    ("family", "token"), [("qwen2_5_vl", "<|video_pad|>"), ("gemma3", "<image_soft_token>"), ("llava", "<|video_pad|>")]
)
@pytest.mark.parametrize("images", [0, 1])
def test_words_that_spell_the_place_of_another_feature_are_refused(vlm_data, family, token, images):
    data = vlm_data(family)
    turns = [{"role": "user", "content": f"{'<image>' * images}What does {token} mean?"}]
    turns.append({"role": "assistant", "content": "A place."})
    rows = Dataset.from_list([{"messages": turns, "images": [encoded(picture())] * images}])
    if token not in data.tokenizer.get_vocab():  # words as any others
        assert len(data.prepare(rows, "train")) == 1
        return
    with pytest.raises(RowError, match=re.escape(f"train row 0: the text has {token}, in whose place")):
        data.prepare(rows, "train")


def test_check_finds_an_image_that_is_broken_in_the_middle(tmp_path):
    file = tmp_path / "half.jpg"
    file.write_bytes(encoded(picture((300, 200)), "JPEG")[:900])
    turns = [{"role": "user", "content": "<image>Who?"}, {"role": "assistant", "content": "She."}]
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"messages": turns, "image": "half.jpg"}) + "\n")
    words = ["check", str(data), "--model", str(save("llava", tmp_path / "model")), "--json"]
    report = json.loads(CliRunner().invoke(cli, words).stdout)["sets"][0]
    (finding,) = (one for one in report["findings"] if one["id"] == "refused")
    assert "half.jpg is broken" in finding["what"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "BMP"])
def test_a_picture_that_is_cut_off_names_its_row_before_the_run(vlm_data, tmp_path, kind):
    turns = [{"role": "user", "content": "<image>Who?"}, {"role": "assistant", "content": "She."}]
    whole = encoded(Pillow.effect_noise((90, 60), 90).convert("RGB"), kind)
    (tmp_path / "half").write_bytes(whole[: len(whole) // 2])
    rows = [{"messages": turns, "image": one} for one in (whole, (tmp_path / "half").read_bytes())]
    with pytest.raises(RowError, match=r"train row 1: the image .* is broken"):
        vlm_data("llava").prepare(Dataset.from_list(rows), "train")
    stream = Dataset.from_list([{"messages": turns, "image": "half"}]).to_iterable_dataset()
    with pytest.raises(RowError, match=r"train row 0: the image .*half is broken"):
        list(vlm_data("llava", image_folder=str(tmp_path)).prepare(stream, "train"))


def test_rows_of_which_the_first_picture_alone_is_read_are_counted(vlm_data):
    turns = [{"role": "user", "content": "<image>Who?"}, {"role": "assistant", "content": "She."}]
    moving = encoded(picture(), "GIF", save_all=True, append_images=[picture(colour="blue")] * 3)
    data = vlm_data("llava")
    data.prepare(
        Dataset.from_list([{"messages": turns, "image": one} for one in (moving, encoded(picture()))]), "train"
    )
    assert data.ledgers[0].notes["of an animation or a file with several pages, the first picture is read"] == 1


def test_a_file_that_is_gone_since_the_rows_were_prepared_names_its_row(vlm_data, tmp_path, monkeypatch):
    monkeypatch.setenv("SFTCORE_CACHE", str(tmp_path / "cache"))
    for number in range(3):
        picture(colour=["red", "green", "blue"][number]).save(tmp_path / f"{number}.png")
    turns = [{"role": "user", "content": "<image><image>Who?"}, {"role": "assistant", "content": "She."}]
    rows = Dataset.from_list([{"messages": turns, "images": ["0.png", f"{number}.png"]} for number in range(3)])
    for packing in (False, True):
        settings = {"image_folder": str(tmp_path), "dataset_cache": True, "packing": packing}
        assert len(vlm_data("llava", **settings).prepare(rows, "train"))
        assert len(vlm_data("llava", **settings).prepare(rows, "train"))
        (tmp_path / "2.png").rename(tmp_path / "away.png")
        with pytest.raises(RowError, match=r"train row 2: the image .*2\.png is not there any more"):
            vlm_data("llava", **settings).prepare(rows, "train")
        (tmp_path / "away.png").rename(tmp_path / "2.png")


def test_prepared_rows_hold_paths_or_encoded_bytes_and_no_pixels(vlm_data, tmp_path):
    picture((1000, 800)).save(tmp_path / "large.png")
    size = (tmp_path / "large.png").stat().st_size
    turns = [{"role": "user", "content": "<image>Who?"}, {"role": "assistant", "content": "She."}]
    features = Features({
        "messages": [{"role": Value("string"), "content": Value("string")}], "image": Image(), "other": Json(),
    })  # fmt: skip
    for value in ("large.png", picture((1000, 800))):
        rows = [{"messages": turns, "image": value}] * 20
        given = Dataset.from_list(rows)
        if not isinstance(value, str):
            rows = [{**one, "other": {"a": 1}} for one in rows]
            given = Dataset.from_list(rows, features=features)
        prepared = vlm_data("llava", image_folder=str(tmp_path)).prepare(given, "train")
        image = prepared[0]["documents"][0]["images"][0]
        assert (image["path"], image["bytes"]).count(None) == 1
        assert not any(isinstance(part, list) for part in image.values())
        assert prepared.data.nbytes < 20 * (4000 + 2 * size)  # pixels would be 2.4 MB each
