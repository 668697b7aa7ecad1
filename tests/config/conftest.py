"""A stranger's distribution for the tests of plans."""

from tests.core.conftest import write_distribution  # noqa: F401
