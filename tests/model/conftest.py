"""Distributions for tests of what a third party's attention declares."""

from tests.core.conftest import write_distribution  # noqa: F401
