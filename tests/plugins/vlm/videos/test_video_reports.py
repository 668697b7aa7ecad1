"""`check` and `preview` count and name the videos of rows, and `check` finds those that are damaged."""

import json

import pytest
from click.testing import CliRunner

from tests.plugins.vlm.videos.clips import encoded, frames, make_vlm, read  # isort: skip

from sftcore.cli import cli
from tests.plugins.vlm.videos.damage import encoded_by, textured, zeroed

ASKED = [{"type": "video"}, {"type": "text", "text": "What moves?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, two clips, and rows with one, two and no videos."""
    folder = tmp_path_factory.mktemp("videos")
    model, processor = make_vlm("qwen2_5_vl")
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    for number, count in enumerate((12, 20)):
        (folder / f"{number}.mp4").write_bytes(encoded(frames(count)))
    rows = [
        {"messages": turns(ASKED), "videos": ["0.mp4"]},
        {"messages": turns([{"type": "video"}, *ASKED]), "videos": ["0.mp4", "1.mp4"]},
        {"messages": turns([{"type": "text", "text": "Hello"}]), "videos": []},
    ]
    written(folder / "rows.jsonl", rows)
    return folder


def turns(asked):
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": [{"type": "text", "text": "A bar."}]}]


def written(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(folder, *words, code=0):
    model = ["--model", str(folder / "model"), "format={vlm: {num_frames: 4}}"]
    result = CliRunner().invoke(cli, [words[0], str(folder / words[1]), *model, *words[2:]], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def tokens_by_hand(folder):
    """How many tokens four frames of a clip have, asked of the processor itself."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder / "model")
    clip = read(folder / "0.mp4")[0][[0, 3, 6, 9]]
    ids = processor(text=["<|video_pad|>"], videos=[clip], do_sample_frames=False, add_special_tokens=False)
    return len(ids["input_ids"][0])


def test_a_check_counts_videos_and_their_tokens(folder):
    each = tokens_by_hand(folder)
    shown = run(folder, "check", "rows.jsonl")
    assert f"  videos         3 in 2 rows, {each} tokens each, {3 * each} together\n" in shown
    (report,) = json.loads(run(folder, "check", "rows.jsonl", "--json"))["sets"]
    counts = {"kind": "video", "rows": 2, "count": 3, "tokens": 3 * each, "fewest": each, "most": each}
    assert report["media"] == [counts]
    without = CliRunner().invoke(cli, ["check", str(folder / "rows.jsonl"), "--json"]).output
    assert json.loads(without)["sets"][0]["media"] == [{**counts, "tokens": 0, "fewest": 0, "most": 0}]


def test_a_preview_shows_where_each_video_is_and_what_a_model_sees_of_it(folder):
    each = tokens_by_hand(folder)
    shown = run(folder, "preview", "rows.jsonl", "--row", "1")
    for number, (name, total) in enumerate((("0.mp4", 12), ("1.mp4", 20)), 1):
        assert f"video {number}: {folder / name}, 4 of {total} frames, 64 x 48 pixels, {each} tokens" in shown
        assert f"[video {number}: {each} tokens]" in shown
    assert "<|video_pad|>" not in shown
    run(folder, "preview", "rows.jsonl", "--row", "1", "--html", str(folder / "page.html"))
    page = (folder / "page.html").read_text()
    assert f"[video 2: {each} tokens] {folder / '1.mp4'}, 4 of 20 frames" in page


def test_a_packed_block_shows_its_videos_too(folder):
    shown = run(folder, "preview", "rows.jsonl", "packing=true")
    assert shown.count("\nvideo 1: ") == 2
    assert shown.count("\nvideo 2: ") == 1


def test_a_check_names_the_row_of_a_clip_that_is_damaged_behind_its_first_frame(folder):
    file = folder / "damaged.mp4"
    file.write_bytes(zeroed(encoded_by("libx264", file, textured())))
    rows = [{"messages": turns(ASKED), "videos": [name]} for name in ("0.mp4", "damaged.mp4")]
    written(folder / "damaged.jsonl", rows)
    shown = run(folder, "check", "damaged.jsonl", code=1)
    assert "damaged.mp4 is broken" in shown
    assert "row 1" in shown
    assert "  videos         1 in 1 row" in shown
