"""`use_cache` of the model's configuration: off while the run trains, and what it was in all that outlives it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sftcore.train.parts.part import Part


class CacheSetting(Part):
    """Sets `use_cache` for as long as a training lasts; a forward pass that trains has no use for a cache.

    Args:
        config: of the model; one without the setting is left alone.
        in_training: what it is meanwhile, as `TrainingArguments.use_cache` asks.
    """

    def __init__(self, config: Any, *, in_training: bool) -> None:
        self._config, self._in_training = config, in_training
        self._own: Any = getattr(config, "use_cache", None)

    @contextmanager
    def training(self) -> Iterator[None]:
        """As the run asks inside, and as before afterwards, whatever happens."""
        self._own = getattr(self._config, "use_cache", None)
        with self._set_to(self._in_training):
            yield

    @contextmanager
    def around_save(self) -> Iterator[None]:
        """As before the training, so that it is saved."""
        with self._set_to(self._own):
            yield

    @contextmanager
    def _set_to(self, value: Any) -> Iterator[None]:
        if not hasattr(self._config, "use_cache"):
            yield
            return
        before, self._config.use_cache = self._config.use_cache, value
        try:
            yield
        finally:
            self._config.use_cache = before
