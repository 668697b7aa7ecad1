"""A format whose module imports torch at its top."""

from __future__ import annotations

import torch

from sftcore import hookimpl, plugin
from tests.testing.faulty import read


@plugin
class Heavy:
    """Rows with q and a."""

    @hookimpl
    def make_formatter(self, columns):
        return torch.no_grad()(read)
