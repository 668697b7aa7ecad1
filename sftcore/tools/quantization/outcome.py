"""Options, calibration rows and outcome of a quantisation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

if TYPE_CHECKING:
    from sftcore.core.types import TokenizedRow
    from sftcore.tools.quantization.perplexity import Perplexity


@frozen
class Options:
    """How to quantise.

    Args:
        method: a key of `quantize.METHODS`.
        bits: bits per weight.
        group_size: how many consecutive weights in a row of a matrix share a scale; None is the largest power of two
            up to `quantize.GROUP_SIZE` that divides the width of every layer.
        samples: how many rows to calibrate on.
        max_length: cut these rows to this many tokens.
        dtype: dtype of whatever is not quantised: embeddings, head, norms and scales.
        data: a file, a folder or a hub id with rows to use instead of the run's own.
        seed: seed for shuffling rows.
    """

    method: str = "gptq"
    bits: int = 4
    group_size: int | None = None
    samples: int = 256
    max_length: int = 512
    dtype: str = "bfloat16"
    data: str | None = None
    seed: int = 42


@frozen
class Calibration:
    """Token rows to calibrate on and token rows held out; `of` and `held_out_of` say where they come from."""

    rows: tuple[TokenizedRow, ...]
    held_out: tuple[TokenizedRow, ...]
    of: str
    held_out_of: str

    @property
    def num_tokens(self) -> int:
        """The number of tokens in the calibration rows."""
        return sum(len(row.input_ids) for row in self.rows)


@frozen
class Outcome:
    """Where the model was saved and how it compares with the original; sizes are those of the weight files."""

    folder: Path
    calibration: Calibration
    group_size: int
    before: Perplexity
    after: Perplexity
    bytes_before: int
    bytes_after: int
    seconds: float
    notes: tuple[str, ...]

    def as_dict(self, options: Options) -> dict[str, Any]:
        """As the manifest records it."""
        return {
            "method": options.method,
            "bits": options.bits,
            "group_size": self.group_size,
            "dtype": options.dtype,
            "seed": options.seed,
            "calibration": {
                "of": self.calibration.of,
                "rows": len(self.calibration.rows),
                "tokens": self.calibration.num_tokens,
            },
            "perplexity": {
                "of": self.calibration.held_out_of,
                "rows": len(self.calibration.held_out),
                "supervised_tokens": self.before.num_supervised,
                "tokens": self.before.num_tokens,
                "before": {"supervised": self.before.supervised, "all": self.before.every},
                "after": {"supervised": self.after.supervised, "all": self.after.every},
            },
            "bytes": {"before": self.bytes_before, "after": self.bytes_after},
            "seconds": round(self.seconds, 1),
            "notes": list(self.notes),
        }
