"""The size that an image is given: its shape is kept, its bounds hold, and what cannot hold is refused."""

import io
import random

import pytest
from PIL import Image as Pillow

from sftcore.core.errors import RowError
from sftcore.data.images.given import source_of
from sftcore.data.images.reference import open_image, size_of
from sftcore.data.images.sizes import fitted
from sftcore.rows.images import Twice


def encoded(size, **options):
    buffer = io.BytesIO()
    Pillow.linear_gradient("L").resize(size).convert("RGB").save(buffer, "JPEG", **options)
    return buffer.getvalue()


def test_bounds_hold_and_the_shape_is_kept():
    chosen = random.Random(0)
    for _ in range(500):
        width, height = (chosen.choice([1, 7, 300, 4096, 60_000]) for _ in "ab")
        most = chosen.randint(1, 10**6)
        found = fitted(width, height, {"max_pixels": most, "min_pixels": None})
        assert 1 <= found[0] * found[1] <= most or found == (width, height)
        assert found[0] * found[1] <= most
        least = chosen.randint(1, 10**6)
        found = fitted(width, height, {"min_pixels": least})
        assert found[0] * found[1] >= least
        assert max(fitted(width, height, {"longest": 448})) <= 448
    assert fitted(1000, 500, {"max_pixels": 500_000}) == (1000, 500)
    assert fitted(2000, 1000, {"max_pixels": 500_000}) == (1000, 500)
    assert fitted(100, 50, {"min_pixels": 500_000}) == (1000, 500)
    assert fitted(1000, 500, {"longest": 100}) == (100, 50)


@pytest.mark.parametrize(
    ("asked", "size"),
    [
        ({"max_pixels": 200}, (20, 10)),
        ({"min_pixels": 3200}, (80, 40)),
        ({"image_size": 20}, (20, 10)),
        ({"image_size": [30, 30]}, (30, 30)),
        ({"resized_width": 28, "resized_height": 56}, (28, 56)),
        ({"max_pixels": 200.0, "min_pixels": None}, (20, 10)),
        ({"image": {"path": None, "max_pixels": 8}, "max_pixels": 200}, (4, 2)),
    ],
)
def test_an_image_that_asks_for_a_size_is_given_it(asked, size):
    value = {"bytes": encoded((40, 20)), **asked}
    if isinstance(asked.get("image"), dict):
        value = {"image": {"bytes": value.pop("bytes"), **asked["image"]}, "max_pixels": asked["max_pixels"]}
    for source in (source_of(value), source_of({"image": Twice(value, encoded((40, 20)), "both")})):
        assert size_of(source) == open_image(source).size == size


def test_a_photograph_taken_sideways_is_turned_before_it_is_resized():
    exif = Pillow.Exif()
    exif[0x0112] = 6
    source = source_of({"bytes": encoded((40, 20), exif=exif), "image_size": 20})
    assert size_of(source) == open_image(source).size == (10, 20)


def test_the_resized_image_is_what_pillows_bicubic_filter_gives():
    data = encoded((40, 20))
    wanted = Pillow.open(io.BytesIO(data)).convert("RGB").resize((20, 10), Pillow.Resampling.BICUBIC)
    assert open_image(source_of({"bytes": data, "max_pixels": 200})).tobytes() == wanted.tobytes()


@pytest.mark.parametrize(
    "asked",
    [
        {"max_pixels": 0},
        {"max_pixels": "many"},
        {"max_pixels": True},
        {"min_pixels": 2.5},
        {"min_pixels": 10, "max_pixels": 5},
        {"image_size": [1, 2, 3]},
        {"image_size": "448x448"},
        {"resized_width": 28},
        {"max_pixels": 1e30},
        {"resized_width": 2**70, "resized_height": 1},
        {"image_size": [0, 5]},
    ],
)
def test_what_is_not_a_size_is_refused(asked):
    with pytest.raises(RowError, match=r"an image (has|is to have)"):
        source_of({"bytes": encoded((40, 20)), **asked})


def test_a_size_that_would_take_all_memory_is_refused():
    with pytest.raises(RowError, match=r"would be given .* more than 89,478,485"):
        size_of(source_of({"bytes": encoded((40, 20)), "min_pixels": 10**12}))
