"""The memory that preparing rows with pictures takes does not grow with their number."""

import io
import resource
import sys

import pytest
from datasets import Dataset
from PIL import Image

from sftcore.config.setup import set_up
from sftcore.core.types import ModelRequest
from sftcore.data.sets import DataPreparation
from sftcore.testing.tiny_vlm import make_processor
from tests.commands import context

SIDE = 512
DECODED = 3 * SIDE * SIDE
FEW, MANY = 200, 2000


def rows(count, folder):
    """Rows whose pictures are some kilobytes, and 768 KiB when they are decoded; as bytes, and as paths."""
    held = []
    for number, kind in enumerate(("PNG", "JPEG", "WEBP")):
        buffer = io.BytesIO()
        Image.new("RGB", (SIDE, SIDE), (number, 100, 200)).save(buffer, kind)
        (folder / f"{number}.{kind}").write_bytes(buffer.getvalue())
        held += [
            {"bytes": buffer.getvalue(), "path": None},
            {"bytes": None, "path": str(folder / f"{number}.{kind}")},
        ]
    asked, answered = {"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A wall."}
    return Dataset.from_list([{"messages": [asked, answered], "images": [held[at % 6]]} for at in range(count)])


def peaks(folder, sender):
    """Send the most memory of this process so far, in bytes, after preparing few rows, and after preparing many."""
    processor = make_processor("llava")
    setup = set_up([], {"dataset_cache": False}, ModelRequest(vision=True), where="test")
    found = []
    for count in (FEW, FEW, MANY):
        data = DataPreparation(setup, processor.tokenizer, 1024, processor=processor)
        assert len(data.prepare(rows(count, folder), "train_dataset")) == count
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if sys.platform == "linux" else 1))
    sender.send(found[1:])


@pytest.mark.slow
def test_ten_times_as_many_pictures_take_no_more_memory(tmp_path):
    receiver, sender = context().Pipe(duplex=False)
    process = context().Process(target=peaks, args=(tmp_path, sender))
    process.start()
    sender.close()
    few, many = receiver.recv()
    process.join()
    assert many - few < 64 * 2**20 < (MANY - FEW) * DECODED / 10
