"""Images that the parts of messages hold, as the guides of Qwen, Unsloth, OpenAI and Anthropic write them."""

import base64
import io
import json

import numpy as np
import pytest
from datasets import Dataset, Features, Image, IterableDataset, List, Value
from PIL import Image as Pillow

from sftcore.config.data.section import SourceSection
from sftcore.core.errors import RowError
from sftcore.data.images.reference import open_image
from sftcore.data.source.files import local_files
from sftcore.data.source.load import Source, load


def encoded(size=(32, 24), colour="red"):
    buffer = io.BytesIO()
    Pillow.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


RED, BLUE = encoded(), encoded(colour="blue")
IN_BASE64 = base64.b64encode(RED).decode()
ADDRESS = f"data:image/png;base64,{IN_BASE64}"
ARRAY = np.full((24, 32, 3), (255, 0, 0), np.uint8)
PARTS = {
    "image": {"type": "image", "image": "red.png"},
    "path": {"type": "image", "path": "red.png"},
    "url": {"type": "image", "url": "red.png"},
    "data-url": {"type": "image", "image": ADDRESS},
    "data-url-without-type": {"type": "image", "image": f"data:image;base64,{IN_BASE64}"},
    "openai": {"type": "image_url", "image_url": {"url": ADDRESS, "detail": "low"}},
    "openai-text": {"type": "image_url", "image_url": ADDRESS},
    "openai-responses": {"type": "input_image", "image_url": ADDRESS},
    "anthropic": {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": IN_BASE64}},
    "untyped": {"image": "red.png"},
    "pil": {"type": "image", "image": Pillow.new("RGB", (32, 24), "red")},
    "bytes": {"type": "image", "bytes": RED},
    "image-of-bytes": {"type": "image", "image": RED},
    "mapping": {"type": "image", "image": {"bytes": RED, "path": None}},
    "mapping-of-path": {"type": "image", "image": {"bytes": None, "path": "red.png"}},
    "base64": {"type": "image", "base64": IN_BASE64},
    "image-in-base64": {"type": "image", "image": IN_BASE64},
    "array": {"type": "image", "image": ARRAY.tolist()},
}
ANSWER = {"role": "assistant", "content": [{"type": "text", "text": "A red dog."}]}


def rows_of(file):
    return load(Source(file.name, local_files(str(file))), SourceSection(str(file)), "train")


def row(*parts, **columns):
    content = [*parts, {"type": "text", "text": "What is this?"}]
    return {"messages": [{"role": "user", "content": content}, ANSWER], **columns}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("images")
    (made / "red.png").write_bytes(RED)
    (made / "blue.png").write_bytes(BLUE)
    return made


@pytest.fixture(scope="module")
def prepared(vlm_data, folder):
    data = vlm_data("llava", image_folder=str(folder))
    return lambda rows: list(data.prepare(Dataset.from_list(rows) if isinstance(rows, list) else rows, "train"))


def colours(one):
    """The colours of a row's images, and what it keeps of them."""
    images = one["documents"][0]["images"]
    assert all(isinstance(image["path"], str) != isinstance(image["bytes"], bytes) for image in images)
    return [open_image(image).getpixel((0, 0)) for image in images]


@pytest.mark.parametrize("name", PARTS)
def test_a_part_holds_its_image_with_and_without_a_column(prepared, name):
    wanted, *found = prepared([
        row({"type": "image"}, images=["red.png"], image=None),
        row(PARTS[name], images=[], image=None),
        row(PARTS[name], images=None, image=None),
        row(PARTS[name], images=["red.png"], image=None),
    ])  # fmt: skip
    found += prepared([row(PARTS[name])])
    for one in found:
        assert (one["input_ids"], one["labels"]) == (wanted["input_ids"], wanted["labels"])
        assert colours(one) == [(255, 0, 0)]


def test_rows_with_and_without_images_and_with_columns_stand_in_one_file(prepared, folder):
    rows = [
        row(PARTS["image"]),
        row(),
        row(PARTS["openai"], {"type": "image", "path": "blue.png"}, images=[]),
        row({"type": "image"}, images=["blue.png"]),
        row({"type": "image"}, PARTS["path"], images=["blue.png"]),
        {"messages": [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi."}]},
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    red, blue = (255, 0, 0), (0, 0, 255)
    found = prepared(rows_of(folder / "rows.jsonl"))
    assert list(map(colours, found)) == [[red], [], [red, blue], [blue], [blue, red], []]


def test_parquet_streams_and_image_features_are_read(prepared, folder):
    rows = [row(PARTS["bytes"]), row()]
    Dataset.from_list(rows).to_parquet(folder / "rows.parquet")
    assert list(map(colours, prepared(rows_of(folder / "rows.parquet")))) == [[(255, 0, 0)], []]
    stream = IterableDataset.from_generator(lambda: iter([row({"image": ARRAY}), row()]))
    assert list(map(colours, prepared(stream))) == [[(255, 0, 0)], []]
    part = {"type": Value("string"), "text": Value("string"), "image": Image()}
    features = Features({"messages": List({"role": Value("string"), "content": List(part)})})
    decoded = Dataset.from_list([row(PARTS["pil"]), row()], features=features)
    assert decoded[0]["messages"][0]["content"][0]["image"].size == (32, 24)
    for one in (decoded, decoded.to_iterable_dataset()):
        assert list(map(colours, prepared(one))) == [[(255, 0, 0)], []]


@pytest.mark.parametrize("shape", ["prompt", "conversations", "function"])
def test_every_format_of_messages_reads_them(vlm_data, folder, shape):
    turns = row(PARTS["image"])["messages"]
    data = vlm_data("llava", image_folder=str(folder))
    rows = {"prompt": [{"prompt": turns[:1], "completion": turns[1:]}], "conversations": [{"conversations": turns}]}
    if shape == "function":
        data.formatting_func = lambda one: one["talk"]
    found = data.prepare(Dataset.from_list(rows.get(shape, [{"talk": turns}])), "train")
    assert colours(found[0]) == [(255, 0, 0)]
    assert sum(label != -100 for label in found[0]["labels"]) > 3


# --- Parts and columns ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["path", "openai", "bytes"])
def test_the_same_image_in_a_part_and_a_column_is_one_image(prepared, name):
    again = io.BytesIO()
    Pillow.new("RGB", (32, 24), "red").save(again, "BMP")
    for given in ({"bytes": RED, "path": None}, {"bytes": again.getvalue(), "path": None}):
        (found,) = prepared([row(PARTS[name], images=[given])])
        assert colours(found) == [(255, 0, 0)]


def test_a_part_may_name_the_file_whose_bytes_are_in_the_column(prepared):
    part = {"type": "image", "image": "train/was_here.png"}
    (found,) = prepared([row(part, images=[{"bytes": RED, "path": "was_here.png"}])])
    assert colours(found) == [(255, 0, 0)]


def test_different_images_in_a_part_and_a_column_are_refused_with_both(prepared):
    with pytest.raises(RowError, match=r"train row 1: .*image 0 of the column are not the same: .*red.png.*blue.png"):
        prepared([row(PARTS["image"], images=["red.png"]), row(PARTS["image"], images=["blue.png"])])
    with pytest.raises(RowError, match=r"train row 0: image 1 of 2: image 1 of the messages and image 1 of the column"):
        prepared([row({"type": "image"}, PARTS["openai"], images=["red.png", "blue.png"])])


@pytest.mark.parametrize(
    ("parts", "columns", "said"),
    [
        ([PARTS["image"], {"type": "image"}], {}, "0 images, but .* 1 image placeholder, and 1 that holds its own"),
        ([PARTS["image"]], {"images": ["red.png"] * 2}, "2 images, but .* 0 image placeholders, and 1 that holds"),
        ([{"type": "image", "file": "red.png"}], {}, 'A part has "file", which is not read as an image'),
        ([{"type": "input_image", "file_id": "file-1"}], {}, 'A part has "file_id", which is not read as an image'),
        ([{"type": "image"}], {}, "0 images, but its messages have 1 image placeholder"),
        ([{"type": "image"}] * 2, {"images": ["red.png"]}, "1 image, but its messages have 2 image placeholders"),
        ([{"type": "image", "image": "none.png"}], {}, "none.png does not exist"),
        ([{"type": "image", "image": ""}, PARTS["path"]], {}, "1 image placeholder, and 1 that holds"),
        ([PARTS["image"], {"type": "video", "video": "a.mp4"}], {}, "reads no video"),
    ],
)
def test_other_numbers_and_other_media_name_their_row(prepared, parts, columns, said):
    with pytest.raises(RowError, match=f"train row 1: .*({said})"):
        prepared([row(PARTS["image"], images=None), row(*parts, **columns)])


def test_a_placeholder_in_a_text_stays_a_text_where_no_column_has_images(vlm_data, folder):
    data = vlm_data("qwen2_5_vl", image_folder=str(folder))
    rows = [row(PARTS["image"], {"type": "text", "text": "<image> is a tag of HTML."})]
    (found,) = data.prepare(Dataset.from_list(rows), "train")
    assert colours(found) == [(255, 0, 0)]
    assert "<image> is a tag of HTML." in data.tokenizer.decode(found["input_ids"])


def test_a_web_address_is_fetched_where_the_run_allows_it_alone(vlm_data, folder, monkeypatch, tmp_path):
    monkeypatch.setenv("SFTCORE_CACHE", str(tmp_path))
    rows = Dataset.from_list([row(PARTS["image"]), row({"type": "image", "image": "http://127.0.0.1:1/a.png"})])
    for allowed, said in ((False, "not on this machine, .*allow_remote_images: true"), (True, "cannot be fetched")):
        data = vlm_data("llava", image_folder=str(folder), allow_remote_images=allowed)
        with pytest.raises(RowError, match=rf"train row 1: the image http://127.0.0.1:1/a.png .*{said}"):
            data.prepare(rows, "train")
