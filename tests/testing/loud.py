"""A format whose module prints."""

from __future__ import annotations

from sftcore import hookimpl, plugin
from tests.testing.faulty import read

print("hello from import")


@plugin
class Loud:
    """Rows with q and a."""

    @hookimpl
    def make_formatter(self, columns):
        return read
