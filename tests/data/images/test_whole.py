"""Damaged, cut off, empty and endless images: named with their row when rows are prepared, and nothing else refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image as Pillow

from sftcore.core.errors import RowError
from sftcore.data.images import whole
from sftcore.data.images.reference import open_image, size_of
from sftcore.data.images.whole import frames_in

NOISE = Pillow.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))


def encoded(image=NOISE, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, pixels, *others, colours=2):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colours, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(others) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def looked_at(data):
    source = {"bytes": data, "path": None}
    size_of(source)
    return frames_in(source)


def passes(data):
    try:
        return looked_at(data) > 0
    except RowError:
        return False


def decodes(data):
    try:
        open_image({"bytes": data, "path": None})
    except RowError:
        return False
    return True


KINDS = {
    "png": encoded(),
    "png-of-bits": encoded(NOISE.convert("1")),
    "png-16-bit": encoded(Pillow.fromarray(np.arange(4800, dtype=np.uint16).reshape(60, 80) * 13)),
    "png-palette": encoded(NOISE.convert("P")),
    "png-alpha": encoded(NOISE.convert("RGBA")),
    "jpeg": encoded(kind="JPEG"),
    "jpeg-progressive": encoded(kind="JPEG", progressive=True, quality=95),
    "jpeg-restarts": encoded(kind="JPEG", restart_marker_blocks=2, comment=b"\xff\xd9\xff\x01"),
    "jpeg-grey": encoded(NOISE.convert("L"), "JPEG"),
    "jpeg-cmyk": encoded(NOISE.convert("CMYK"), "JPEG"),
    "gif": encoded(kind="GIF"),
    "webp": encoded(kind="WEBP"),
    "webp-lossless": encoded(kind="WEBP", lossless=True),
    "tiff": encoded(kind="TIFF"),
    "bmp": encoded(kind="BMP"),
    "jpeg2000": encoded(kind="JPEG2000"),
}
DAMAGE = {
    "half": lambda data: data[: len(data) // 2],
    "tail": lambda data: data[:-3],
    "zeros": lambda data: data[: len(data) // 2] + bytes(64) + data[len(data) // 2 + 64 :],
    "ones": lambda data: data[: len(data) // 2] + b"\xff" * 64 + data[len(data) // 2 + 64 :],
    "more": lambda data: data + b"more" * 10,
    "head": lambda data: data[:40],
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_preparation_lets_pass_is_what_a_batch_can_decode(kind):
    rng = np.random.default_rng(1)
    tried = [make(KINDS[kind]) for make in DAMAGE.values()]
    for _ in range(30):
        data = bytearray(KINDS[kind])
        for place in rng.integers(0, len(data), 3):
            data[place] ^= int(rng.integers(1, 256))
        tried.append(bytes(data))
        tried.append(KINDS[kind][: int(rng.integers(1, len(data)))])
    assert looked_at(KINDS[kind]) == 1
    for data in tried:
        assert passes(data) == decodes(data)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith(("png", "jpeg")) and kind != "jpeg2000"])
def test_pixels_that_are_whole_are_not_decoded_for_it(kind, monkeypatch):
    assert frames_in({"bytes": KINDS[kind], "path": None}) == 1  # the tables of a JPEG are read once
    monkeypatch.setattr(whole, "open_image", None)
    assert frames_in({"bytes": KINDS[kind], "path": None}) == 1


# --- A picture of a few bytes -----------------------------------------------------------------------------------------
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def tiny(width, height, depth, colours, interlaced, raw, *others):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, interlaced))
    parts = [head, *others, chunk(b"IDAT", zlib.compress(raw, 9)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("colours", SAMPLES)
@pytest.mark.parametrize("interlaced", [0, 1])
def test_a_picture_of_one_colour_passes_where_it_can_be_decoded(depth, colours, interlaced):
    width, height = 24, 16
    row = 1 + (width * SAMPLES[colours] * depth + 7) // 8
    tried = {
        "whole": bytes(row * height),
        "cut": bytes(row * (height - 1)),
        "without its last byte": bytes(row * height - 1),
        "a byte more": bytes(row * height + 1),
        "a filter that there is not": bytes(row * 3) + b"\x07" + bytes(row * (height - 3) - 1),
        "another filter": bytes(row * 3) + b"\x04" + bytes(row * (height - 3) - 1),
    }
    palette = chunk(b"PLTE", bytes(range(6)))
    for others in ([], [palette], [palette, chunk(b"tRNS", b"\0\1")], [chunk(b"tRNS", b"\0\0\0\0\0\0")]):
        for what, raw in tried.items():
            data = tiny(width, height, depth, colours, interlaced, raw, *others)
            assert passes(data) == decodes(data), what
            broken = data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]  # the checksum of its pixels
            assert passes(broken) == decodes(broken), what


def test_pictures_of_one_colour_are_not_decoded(monkeypatch):
    monkeypatch.setattr(whole, "open_image", None)
    for mode in ("L", "RGB", "RGBA"):
        assert frames_in({"bytes": encoded(Pillow.new(mode, (32, 32))), "path": None}) == 1


@pytest.mark.parametrize(
    "data",
    [
        png(8, 8, zlib.compress(b"")),
        png(20_000, 4_000, zlib.compress(bytes(100))),
        png(8, 8, b"not deflated at all"),
        png(0, 8, zlib.compress(b"")),
        png(8, 0, zlib.compress(b"")),
    ],
    ids=["no-pixels", "too-few", "garbage", "no-width", "no-height"],
)
def test_a_png_whose_checksums_hold_and_whose_pixels_are_not_there_is_refused(data):
    with pytest.raises(RowError):
        looked_at(data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "an empty file|no bytes"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><svg/>", "SVG"),
        (b"\n <!DOCTYPE html><html></html>", "a web page"),
        (b"This is a text.\n" * 9, "not in a format that Pillow reads"),
        (b"%PDF-1.7 ...", "a PDF document"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "PostScript"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "pointer of Git LFS"),
        (bytes(1000), "not in a format that Pillow reads"),
    ],
)
def test_what_is_not_an_image_is_told_by_what_it_is(data, said, tmp_path):
    file = tmp_path / "picture.png"
    file.write_bytes(data)
    with pytest.raises(RowError, match=rf"picture.png cannot be read \(.*({said})"):
        size_of({"bytes": None, "path": str(file)})


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_picture_is_read_however_many_follow(kind):
    frames = [Pillow.new("RGB", (16, 16), (level, 0, 0)) for level in range(0, 255, 5)]
    data = encoded(frames[-1], kind, save_all=True, append_images=frames)
    assert looked_at(data) == 2
    assert abs(open_image({"bytes": data, "path": None}).getpixel((3, 3))[0] - 250) < 10
    assert looked_at(encoded(frames[0], kind)) == 1


def test_pages_that_follow_each_other_in_a_ring_end():
    data = bytearray(encoded(kind="TIFF"))
    first = struct.unpack("<I", data[4:8])[0]
    (entries,) = struct.unpack("<H", data[first : first + 2])
    data[first + 2 + 12 * entries :][:4] = b""
    data[first + 2 + 12 * entries : first + 6 + 12 * entries] = struct.pack("<I", first)
    assert looked_at(bytes(data)) in (1, 2)


def test_photographs_with_others_beside_them_are_one_picture():
    data = encoded(NOISE, "MPO", save_all=True, append_images=[NOISE.resize((40, 30))])
    assert looked_at(data) == 1
    assert size_of({"bytes": data, "path": None}) == (80, 60)


def test_a_jpeg_whose_scans_do_not_end_is_refused():
    data = encoded(kind="JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    with pytest.raises(RowError, match="more than 100 scans"):
        looked_at(data[:last] + data[last:-2] * 200 + b"\xff\xd9")


def test_an_orientation_behind_the_pixels_turns_a_png_too():
    exif = Pillow.Exif()
    exif[0x0112] = 6
    data = encoded()
    late = data[:-12] + chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + data[-12:]
    in_words = encoded(exif=exif)
    for turned in (late, in_words):
        source = {"bytes": turned, "path": None}
        assert size_of(source) == open_image(source).size == (60, 80)
        assert looked_at(turned) == 1
