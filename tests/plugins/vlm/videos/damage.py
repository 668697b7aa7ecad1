"""Clips of several codecs, and what disks and downloads do to them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.plugins.vlm.videos.clips import av  # isort: skip

CODECS = {
    "libx264": "mp4", "libx265": "mp4", "mpeg4": "avi", "libvpx": "webm", "libvpx-vp9": "webm", "libsvtav1": "mp4",
    "mjpeg": "avi",
}  # fmt: skip
QUICK = {
    "libx264": {"preset": "ultrafast"}, "libx265": {"preset": "ultrafast"}, "libvpx": {"cpu-used": "8"},
    "libvpx-vp9": {"cpu-used": "8"}, "libsvtav1": {"preset": "12"},
}  # fmt: skip


def textured(count=30, size=(96, 64)):
    """Frames of noise that moves, of which no encoder makes a few bytes."""
    noise = np.random.RandomState(0).randint(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return np.stack([np.roll(noise, 3 * at, 1) for at in range(count)])


def encoded_by(codec, path, pictures):
    """A file of these frames, with one that needs no other every tenth."""
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV writes no {codec}")
    with av.open(str(path), "w", format=CODECS[codec]) as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.gop_size = 10
        stream.options = QUICK.get(codec, {})
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path.read_bytes()


def zeroed(data, where=0.5):
    """The file with zeros in one place, as a failed block of a disk has them: of more than a frame."""
    at, count = int(len(data) * where), len(data) // 10
    return data[:at] + bytes(count) + data[at + count :]


def replaced(data, where=0.5):
    at, count = int(len(data) * where), len(data) // 10
    return data[:at] + np.random.RandomState(1).bytes(count) + data[at + count :]


def cut(data, where=0.5):
    return data[: int(len(data) * where)]


DAMAGES = {"zeroed": zeroed, "replaced": replaced, "cut": cut, "late": lambda data: zeroed(data, 0.8)}


def with_empty_packets(path, pictures):
    """An .avi of these frames, in which every fifth packet is followed by one that says that there is no new frame."""
    empty = b"\x00\x00\x01\xb6\x55\xbf"
    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv420p"
        made = [packet for one in pictures for packet in stream.encode(av.VideoFrame.from_ndarray(one, format="rgb24"))]
        made += stream.encode()
        at = 0
        for number, packet in enumerate(made):
            held = [packet]
            if number % 5 == 4:
                held.append(av.Packet(empty))
                held[1].stream, held[1].time_base = stream, packet.time_base
            for one in held:
                one.pts = one.dts = at
                at += 1
                container.mux(one)
    return path.read_bytes()
