from math import cos, pi
from typing import Literal

import attrs
from attrs.validators import ge

from sftcore import hookimpl, plugin


@plugin
class Gaussian:
    """Gaussian noise on the embeddings in training, which fades over a number of batches."""

    std: float = attrs.field(default=0.05, validator=ge(0))
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    batches: int = attrs.field(default=1000, validator=ge(1))
    _seen: int = attrs.field(default=0, init=False)  # here and not in the hook, which is put on anew after evaluations

    @hookimpl
    def claims(self):
        return ["embedding.noise"]

    @hookimpl
    def inject_noise(self, loaded, plan):
        import torch

        def add(module, args, output):
            std = self.std * self.left(self._seen)
            self._seen += 1
            return output + std * torch.randn_like(output)

        return loaded.model.get_input_embeddings().register_forward_hook(add)

    def left(self, seen):
        """The share of the noise that is left after this many batches."""
        done = min(seen / self.batches, 1.0)
        return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + cos(pi * done)) / 2}[self.schedule]
