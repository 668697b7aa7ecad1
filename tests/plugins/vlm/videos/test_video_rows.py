"""Rows with videos: where they stand, which frames a model sees, what is kept, and what is refused with its row."""

import io
import json
import sys

import numpy as np
import pytest

from tests.plugins.vlm.videos.clips import encoded, frames, make_processor, read  # isort: skip

from datasets import Dataset
from PIL import Image
from sftcore_plugins.formats.vlm import VisionLanguage

from sftcore.config.setup import set_up
from sftcore.core.errors import ModelError, RowError, SFTCoreError
from sftcore.core.types import ModelRequest, Selection
from sftcore.data.images.pictures import DOCUMENTS
from sftcore.data.media import clips
from sftcore.data.media.modality import facts_of
from sftcore.data.media.video import Video
from sftcore.data.sets import DataPreparation

PIECES = 12  # frames of the clips here: 1.2 s


@pytest.fixture(scope="module")
def processor():
    return make_processor("qwen2_5_vl")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "a.mp4"
    path.write_bytes(encoded(frames(PIECES)))
    return path


def prepared(processor, rows, max_length=2048, dataset_cache=False, **options):
    chosen = [Selection("format", "vlm", options)] if options else []
    setup = set_up(chosen, {"dataset_cache": dataset_cache}, ModelRequest(vision=True), where="test")
    data = DataPreparation(setup, processor.tokenizer, max_length, processor=processor)
    return data.prepare(Dataset.from_list(rows), "train_dataset"), data


def conversation(*content, **columns):
    asked, answered = {"role": "user", "content": list(content)}, {"role": "assistant", "content": [text("So.")]}
    return {"messages": [asked, answered], **columns}


def text(words):
    return {"type": "text", "text": words}


VIDEO = {"type": "video"}


def seen(value, processor, folder="", **options):
    """Which frames of it a model sees, and these frames."""
    video = Video(**options)
    made = video.refer(value, folder, processor)
    return facts_of(made)["frames"], video.open(made), made


# --- Where they stand -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("key", ["video", "path", "url"])
def test_a_part_may_hold_its_video(processor, clip, key):
    rows = [conversation({"type": "video", key: str(clip)}, text("What?"), videos=[])]
    held, _ = prepared(processor, rows, num_frames=4)
    column, _ = prepared(processor, [conversation(VIDEO, text("What?"), videos=[str(clip)])], num_frames=4)
    assert held[0]["input_ids"] == column[0]["input_ids"]
    assert held[0][DOCUMENTS][0]["media"] == column[0][DOCUMENTS][0]["media"]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "<video>What?"}, {"role": "assistant", "content": "So."}]},
        {"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "So."}]},
        {"conversations": [{"from": "human", "value": "<video>What?"}, {"from": "gpt", "value": "So."}]},
        {"prompt": [{"role": "user", "content": "What?"}], "completion": [{"role": "assistant", "content": "So."}]},
    ],
)
def test_each_shape_of_rows_has_a_place_for_a_video(processor, clip, row):
    wanted, _ = prepared(processor, [conversation(VIDEO, text("What?"), videos=[str(clip)])], num_frames=4)
    got, _ = prepared(processor, [{**row, "video": str(clip)}], num_frames=4)
    assert got[0]["input_ids"] == wanted[0]["input_ids"]


def test_a_text_has_the_models_own_words_around_a_video(processor, clip):
    rows = [{"text": "<video>It moves.", "video": str(clip)}, {"prompt": "<video>It", "completion": " moves."}]
    got, _ = prepared(processor, rows[:1], num_frames=4)
    words = processor.tokenizer.decode(got[0]["input_ids"])
    assert words.startswith("<|vision_start|><|video_pad|>")
    assert "<|video_pad|><|vision_end|>It moves." in words
    pair, _ = prepared(processor, [{**rows[1], "video": str(clip)}], num_frames=4)
    assert processor.tokenizer.decode(pair[0]["input_ids"]) == words


def test_images_and_videos_may_stand_in_one_row_and_texts_between_them(processor, clip):
    picture = Image.new("RGB", (40, 30), "red")
    rows = [
        {**conversation({"type": "image"}, text(" then "), VIDEO), "images": [picture], "videos": [str(clip)]},
        {**conversation(text("none")), "images": [], "videos": []},
        {**conversation({"type": "image"}), "images": [picture], "videos": []},
    ]
    got, _ = prepared(processor, rows, num_frames=4)
    pads = [processor.tokenizer.convert_tokens_to_ids(f"<|{name}_pad|>") for name in ("image", "video")]
    counts = [[row["input_ids"].count(pad) for pad in pads] for row in got]
    own = (
        processor(text=["<|image_pad|>"], images=[picture])["image_grid_thw"],
        processor(text=["<|video_pad|>"], videos=[read(clip)[0][[0, 3, 6, 9]]], do_sample_frames=False)[
            "video_grid_thw"
        ],
    )
    image, video = (int(grid.prod()) // 4 for grid in own)
    assert counts == [[image, video], [0, 0], [image, 0]]
    assert not set(pads) & {label for row in got for label in row["labels"]}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (conversation(VIDEO, VIDEO, videos=["CLIP"]), "1 video, but its messages have 2 video placeholders"),
        (conversation(VIDEO, videos=["CLIP", "CLIP"]), "2 videos, but its messages have 1 video placeholder\\."),
        (conversation(VIDEO, videos=["CLIP"], video="CLIP"), "in video and in videos"),
        ({"text": "no place", "videos": ["CLIP"]}, "0 places for videos .<.video_pad.>., but the row has 1"),
        (conversation({"type": "audio", "audio": "a.wav"}, videos=["CLIP"]), 'part of type "audio"'),
        (conversation(text("x"), videos=[None]), "row 0: .*a video is null"),
        (conversation(text("x"), videos=["missing.mp4"]), "row 0: the video .*missing.mp4 does not exist"),
        (conversation(text("x"), videos=["https://a.b/c.mp4"]), "row 0: .*does not download videos"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_row(processor, clip, row, said):
    row = json.loads(json.dumps(row).replace("CLIP", str(clip)))
    with pytest.raises(RowError, match=said):
        prepared(processor, [row], num_frames=4)


# --- Which frames ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"num_frames": 4}, [0, 3, 6, 9]),
        ({"num_frames": 100}, list(range(12))),
        ({"num_frames": 1}, [0]),
        ({"fps": 5.0}, [0, 2, 4, 6, 8, 10]),
        ({"fps": 500.0}, list(range(12))),
        ({"fps": 0.01}, [0, 3, 6, 9]),  # the fewest that the processor takes
        ({}, list(range(12))),  # this processor samples nothing by itself
    ],
)
def test_a_file_is_sampled_as_asked_for_and_always_the_same(processor, clip, options, wanted):
    chosen, pictures, made = seen(str(clip), processor, **options)
    assert chosen == wanted
    assert (pictures == read(clip)[0][wanted]).all()
    assert seen(clip.read_bytes(), processor, **options)[0] == wanted
    assert Video(**options).refer(str(clip), "", processor) == made


def test_a_processor_that_samples_chooses_where_nothing_is_asked_for(clip):
    own = make_processor("qwen3_vl")
    chosen, *_ = seen(str(clip), own)
    facts = {"total_num_frames": PIECES, "fps": 10.0, "duration": 1.2}
    _, wanted = own.video_processor._decode_and_sample_videos(
        [read(clip)[0]], [facts], True, own.video_processor.sample_frames
    )
    assert chosen == wanted[0].frames_indices.tolist()
    assert len(chosen) < PIECES


def test_pictures_and_arrays_give_the_frames_that_they_hold(processor, tmp_path):
    given = frames(4)
    pictures = [Image.fromarray(frame) for frame in given]
    paths = []
    for at, picture in enumerate(pictures):
        picture.save(tmp_path / f"{at}.png")
        paths.append(f"{at}.png")
    forms = [given, pictures, paths, given.tolist(), list(given), {"frames": pictures}, {"video": paths, "fps": 2.0}]
    for form in forms:
        chosen, opened, _ = seen(form, processor, folder=str(tmp_path))
        assert chosen == [0, 1, 2, 3]
        assert (opened == given).all()


def test_only_the_frames_that_are_seen_are_kept(processor):
    chosen, opened, made = seen(frames(10), processor, num_frames=2)
    assert chosen == [0, 5]
    assert len(made["parts"]) == 2
    assert (opened == frames(10)[[0, 5]]).all()


def test_frames_with_a_rate_are_sampled_by_it_and_without_one_are_refused(processor):
    chosen, *_ = seen({"frames": frames(8), "fps": 4.0}, processor, fps=2.0)
    assert chosen == [0, 2, 4, 6]
    with pytest.raises(RowError, match=r"fps: 2 cannot be taken of 8 frames .* set num_frames"):
        seen(frames(8), processor, fps=2.0)


def test_what_stands_beside_a_file_goes_before_the_options(processor, clip):
    assert seen({"video": str(clip), "num_frames": 2}, processor, fps=5.0)[0] == [0, 6]
    assert seen({"video": str(clip), "fps": 5}, processor, num_frames=2)[0] == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"video": "CLIP", "max_pixels": 3}, '"max_pixels" beside it, which is not read'),
        ({"video": "CLIP", "fps": 0}, '"fps" beside a video is a number above 0'),
        ({"video": "CLIP", "fps": "fast"}, '"fps" beside a video is a number above 0'),
        ({"video": "CLIP", "num_frames": 1.5}, '"num_frames" beside a video is a whole number'),
        ({"video": "CLIP", "num_frames": float("inf")}, '"num_frames" beside a video is a whole number'),
        ({"video": "CLIP", "num_frames": float("nan")}, '"num_frames" beside a video is a whole number'),
        ("data:video/mp4;base64,AAAA", "a video is a data URL, which is not read"),
        ("A" * 5000, r"the video A{120}…A{40} does not exist"),
        ("~nobody-of-this-name/a.mp4", "the video ~nobody-of-this-name/a.mp4 does not exist"),
        ({"video": "CLIP", "fps": 1, "nframes": 2}, "both fps and num_frames"),
        ({}, "without a path, bytes or frames"),
        ([], "no frames"),
        (b"", "no bytes"),
        (3, "a value of type int cannot be read as a video"),
        (np.zeros((4, 8, 8), np.uint8), "array of shape"),
        (np.zeros((4, 8, 8, 3), np.float32), "type float32"),
        (np.zeros((0, 8, 8, 3), np.uint8), "array of shape"),
        (np.zeros((4, 3, 8, 8), np.uint8), "array of shape"),
        ([Image.new("RGB", (4, 4)), Image.new("RGB", (4, 5))], "frames 0 and 1 of a video differ in size"),
        ([Image.new("RGB", (4, 4)), None], "frame 1 of a video: an image is null"),
    ],
)
def test_other_values_are_refused_in_words(processor, clip, value, said):
    if isinstance(value, dict) and value.get("video") == "CLIP":
        value = {**value, "video": str(clip)}
    with pytest.raises(RowError, match=said):
        Video().refer(value, "", processor)


# --- Files that are broken ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.mp4", b""),
        ("words.mp4", b"no video at all " * 50),
        ("truncated.mp4", encoded(frames(PIECES))[:900]),
        ("playlist.m3u8", b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\na.mp4\n#EXT-X-ENDLIST\n"),
    ],
)
def test_a_broken_file_names_its_row_in_preparation(processor, clip, name, content):
    path = clip.with_name(name)
    path.write_bytes(content)
    rows = [conversation(VIDEO, videos=[str(clip)]), conversation(VIDEO, videos=[str(path)])]
    with pytest.raises(RowError, match=f"train_dataset row 1: the video {path} ") as caught:
        prepared(processor, rows, num_frames=4)
    assert caught.value.row == 1


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_frame_that_is_cut_off_names_its_row_in_preparation(processor, kind):
    buffer = io.BytesIO()
    Image.effect_noise((90, 60), 90).convert("RGB").save(buffer, kind)
    whole = buffer.getvalue()
    rows = [conversation(VIDEO, videos=[{"frames": [whole, one]}]) for one in (whole, whole[: len(whole) * 2 // 3])]
    with pytest.raises(RowError, match=r"train_dataset row 1: frame 1 of a video: the image .* is broken"):
        prepared(processor, rows)
    assert len(prepared(processor, rows, num_frames=1)[0]) == 2  # a frame that no model sees is not looked at


def test_a_clip_that_is_gone_since_its_row_was_prepared_names_its_row(processor, clip, tmp_path, monkeypatch):
    monkeypatch.setenv("SFTCORE_CACHE", str(tmp_path / "cache"))
    names = [tmp_path / f"{number}.mp4" for number in range(3)]
    for name in names:
        name.write_bytes(clip.read_bytes())
    rows = [conversation(text("Hello"), videos=[])]
    rows += [conversation(VIDEO, VIDEO, videos=[str(names[0]), str(name)]) for name in names]
    assert len(prepared(processor, rows, dataset_cache=True)[0]) == 4
    names[1].unlink()
    with pytest.raises(RowError, match=r"train_dataset row 2: the file .*1\.mp4 is not there any more"):
        prepared(processor, rows, dataset_cache=True)


def test_a_name_with_a_colon_is_a_file(processor, clip, monkeypatch):
    monkeypatch.chdir(clip.parent)
    (clip.parent / "part:1.mp4").write_bytes(clip.read_bytes())
    assert seen("part:1.mp4", processor, num_frames=4)[0] == [0, 3, 6, 9]


def test_a_file_that_never_ends_is_refused(processor, clip, monkeypatch):
    monkeypatch.setattr(clips, "MAX_FRAMES", PIECES - 1)
    with pytest.raises(RowError, match=r"row 0: .* has more than 11 frames"):
        prepared(processor, [conversation(VIDEO, videos=[str(clip)])])


def test_frames_that_are_too_large_together_are_refused_with_the_way_out(processor):
    huge = np.broadcast_to(np.zeros((1, 1, 1, 3), np.uint8), (3000, 720, 1280, 3))
    with pytest.raises(RowError, match=r"3,000 frames of 1,280 x 720 pixels would take 7,910 MiB.*num_frames: 32"):
        Video().refer(huge, "", processor)


def test_a_file_that_changed_since_names_its_row(processor, clip):
    path = clip.with_name("later.mp4")
    path.write_bytes(clip.read_bytes())
    video = Video()
    made = video.refer(str(path), "", processor)
    path.write_bytes(encoded(frames(6)))
    with pytest.raises(RowError, match=r"later.mp4 is broken: frame 6 cannot be decoded"):
        video.open(made)


# --- Lengths, models and libraries ----------------------------------------------------------------------------------
def test_a_video_is_never_cut_and_its_row_is_dropped_and_counted(processor, clip):
    row = conversation(text("What moves in this one?"), VIDEO, videos=[str(clip)])
    whole, _ = prepared(processor, [row], num_frames=4)
    pad = processor.tokenizer.convert_tokens_to_ids("<|video_pad|>")
    ids = whole[0]["input_ids"]
    last = len(ids) - ids[::-1].index(pad)
    assert len(prepared(processor, [row], max_length=last, num_frames=4)[0][0]["input_ids"]) == last
    with pytest.raises(SFTCoreError, match="an image would be cut"):
        prepared(processor, [row], max_length=last - 1, num_frames=4)


def test_a_model_that_reads_no_videos_refuses_them_by_name(clip):
    from sftcore.testing.tiny_vlm import make_processor as make_other

    other = make_other("llava")
    with pytest.raises(RowError, match=r"row 0: .*reads no video: LlavaProcessor has no place for it"):
        prepared(other, [conversation(VIDEO, videos=[str(clip)])])


@pytest.mark.parametrize("family", ["smolvlm", "internvl", "llava_onevision"])
def test_images_and_videos_in_one_row_are_read_or_refused_before_the_run(clip, family):
    picture = Image.new("RGB", (40, 30), "red")
    row = conversation({"type": "image"}, VIDEO, images=[picture], videos=[str(clip)])
    if family == "smolvlm":  # its images are lost then
        with pytest.raises(RowError, match=r"row 0: SmolVLMProcessor cannot process .*leaves out the images"):
            prepared(make_processor(family), [row], num_frames=4)
        return
    got, _ = prepared(make_processor(family), [row], num_frames=4)
    assert [len(got[0][DOCUMENTS][0][name]) for name in ("images", "media")] == [1, 1]


def test_parts_alone_are_found_without_a_column_and_by_any_format(processor, clip):
    part = {"type": "video", "video": str(clip)}
    wanted, _ = prepared(processor, [conversation(VIDEO, text("What?"), video=str(clip))])
    got, data = prepared(processor, [conversation(part, text("What?"))])
    assert data.formats["train_dataset"].entry.name == "chat"
    assert got[0]["input_ids"] == wanted[0]["input_ids"]


def test_both_options_together_are_refused():
    with pytest.raises(ValueError, match="fps and num_frames"):
        VisionLanguage(fps=1.0, num_frames=2)


def test_without_pyav_the_extra_is_named_where_a_file_is_met_and_frames_are_read(processor, clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ModelError, match=r'videos need PyAV. Install it: pip install "sftcore\[video\]"'):
        prepared(processor, [conversation(VIDEO, videos=[str(clip)])])
    assert seen(frames(4), processor)[0] == [0, 1, 2, 3]
