from math import lcm

import attrs

from sftcore import hookimpl, plugin
from sftcore.plugin_api import filler_of, multiple_of, pad_rows


def _are_lengths(instance, attribute, value):
    if not value or min(value) < 1:
        raise ValueError(f"lengths is a list of numbers above 0, got {value}")


@plugin
class Buckets:
    """Batches padded to the next of a few lengths, so that what is compiled for a shape meets few shapes."""

    lengths: list[int] = attrs.field(factory=lambda: [128, 256, 512, 1024, 2048, 4096], validator=_are_lengths)

    @hookimpl
    def flattens(self):
        return False

    @hookimpl
    def make_collator(self, processor, plan):
        return BucketCollator(tuple(sorted(self.lengths)), filler_of(processor), multiple_of(plan))


@attrs.frozen
class BucketCollator:
    """Rows longer than the last length are padded to a multiple of it."""

    lengths: tuple[int, ...]
    pad_token_id: int
    multiple: int

    def __call__(self, rows):
        longest = max(len(row["input_ids"]) for row in rows)
        length = next((one for one in self.lengths if one >= longest), self.lengths[-1])
        return pad_rows(rows, pad_token_id=self.pad_token_id, pad_to_multiple_of=lcm(length, self.multiple))
