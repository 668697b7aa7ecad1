"""A clip that is damaged behind its first frame names its row in preparation, and in no batch."""

import io
import re
from contextlib import contextmanager

import pytest

from tests.plugins.vlm.videos.clips import av, make_processor, read  # isort: skip

from datasets import Dataset

from sftcore.config.setup import set_up
from sftcore.core.errors import RowError
from sftcore.core.types import ModelRequest, Selection
from sftcore.data.media import clips
from sftcore.data.media.modality import facts_of
from sftcore.data.media.video import Video
from sftcore.data.sets import DataPreparation
from tests.plugins.vlm.videos.damage import CODECS, DAMAGES, encoded_by, textured, with_empty_packets, zeroed


@pytest.fixture(scope="module")
def processor():
    return make_processor("qwen2_5_vl")


@pytest.fixture(scope="module", params=CODECS)
def clip(request, tmp_path_factory):
    return encoded_by(request.param, tmp_path_factory.mktemp("clips") / f"{request.param}.bin", textured())


def is_decodable(data):
    """Whether FFmpeg gives as many frames as the file has packets."""
    try:
        with av.open(io.BytesIO(data)) as container:
            packets = sum(1 for packet in container.demux(video=0) if packet.size)
        with av.open(io.BytesIO(data)) as container:
            return sum(1 for _ in container.decode(video=0)) == packets > 0
    except (OSError, ValueError, RuntimeError):
        return False


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_prepared_can_be_opened_and_what_cannot_is_refused(processor, clip, damage):
    data, video = DAMAGES[damage](clip), Video(num_frames=8)
    made = refused = None
    try:
        made = video.refer(data, "", processor)
    except RowError as error:
        refused = error.what
    if made is not None:
        assert len(video.open(made)) <= 8
    else:
        assert re.search("is broken|cannot be read", refused)
        assert not is_decodable(data)


def test_whole_clips_of_every_codec_are_read(processor, clip):
    made = Video(num_frames=8).refer(clip, "", processor)
    assert Video().open(made).shape == (8, 64, 96, 3)


def test_a_clip_that_is_damaged_behind_its_first_frame_names_its_row(processor, tmp_path):
    whole = encoded_by("libx264", tmp_path / "whole.mp4", textured())
    (tmp_path / "damaged.mp4").write_bytes(zeroed(whole))
    chosen = [Selection("format", "vlm", {"num_frames": 8})]
    setup = set_up(chosen, {"dataset_cache": False}, ModelRequest(vision=True), where="test")
    data = DataPreparation(setup, processor.tokenizer, 2048, processor=processor)
    asked = {"role": "user", "content": [{"type": "video"}]}
    answered = {"role": "assistant", "content": [{"type": "text", "text": "So."}]}
    names = [str(tmp_path / f"{name}.mp4") for name in ("whole", "damaged")]
    rows = [{"messages": [asked, answered], "videos": [name]} for name in names]
    with pytest.raises(RowError, match=r"train_dataset row 1: the video .*damaged\.mp4 is broken: frame \d+"):
        data.prepare(Dataset.from_list(rows), "train_dataset")


def test_damage_behind_the_frames_that_a_model_sees_is_none(processor, tmp_path):
    data = zeroed(encoded_by("libx264", tmp_path / "late.mp4", textured()), 0.8)
    made = Video(num_frames=2).refer(data, "", processor)
    assert Video().open(made).shape == (2, 64, 96, 3)
    with pytest.raises(RowError, match=r"frame \d+ cannot be decoded"):
        Video(num_frames=29).refer(data, "", processor)


def test_a_clip_with_packets_without_a_frame_has_as_many_frames_as_decoding_gives(processor, tmp_path):
    data = with_empty_packets(tmp_path / "empty.avi", textured())
    with av.open(io.BytesIO(data)) as container:
        packets = sum(1 for packet in container.demux(video=0) if packet.size)
    count = len(read(data)[0])
    assert count < packets
    made = Video(num_frames=packets).refer(data, "", processor)
    assert facts_of(made)["frames"] == list(range(count))
    assert (Video().open(made) == read(data)[0]).all()


def test_a_whole_clip_costs_the_frames_that_need_no_other(tmp_path, monkeypatch):
    data = encoded_by("libx264", tmp_path / "whole.mp4", textured())
    opened = clips._opened
    seen = []

    class Counting:
        def __init__(self, container):
            self.container, self.streams = container, container.streams

        def demux(self, stream):
            for packet in self.container.demux(stream):
                yield Packet(packet)

    class Packet:
        def __init__(self, packet):
            self.packet, self.size, self.is_corrupt = packet, packet.size, packet.is_corrupt

        def decode(self):
            found = self.packet.decode()
            seen.extend(found)
            return found

    @contextmanager
    def counted(part):
        with opened(part) as container:
            yield Counting(container)

    monkeypatch.setattr(clips, "_opened", counted)
    found = clips.probed({"bytes": data, "path": None})
    assert (found.total, found.is_sound) == (30, True)
    assert len(seen) == 3
