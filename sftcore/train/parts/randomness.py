"""The state of the random generators that a step may ask."""

from __future__ import annotations

import random
from typing import Any

from attrs import frozen


@frozen
class Randomness:
    """The state of every random generator that a step may ask."""

    python: Any
    numpy: Any
    torch: Any
    accelerators: Any

    @classmethod
    def now(cls) -> Randomness:
        """As it stands."""
        import numpy as np
        import torch

        module, states = _accelerator(), None
        if module is not None:
            every = hasattr(module, "get_rng_state_all")  # MPS is a single device, and says so
            states = module.get_rng_state_all() if every else [module.get_rng_state()]
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), states)

    def restore(self) -> None:
        """Go back to it."""
        import numpy as np
        import torch

        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)
        if (module := _accelerator()) is not None and self.accelerators is not None:
            if hasattr(module, "set_rng_state_all"):
                module.set_rng_state_all(self.accelerators)
            else:
                module.set_rng_state(self.accelerators[0])


def _accelerator() -> Any:
    """torch's module of this machine's accelerator, such as torch.cuda; None where there is none."""
    import torch

    return torch.get_device_module() if torch.accelerator.is_available() else None


def torch_random() -> str:
    """torch's random state on the CPU, in hexadecimal digits."""
    import torch

    return bytes(torch.get_rng_state().numpy()).hex()


def set_torch_random(state: str) -> None:
    """Take up what `torch_random` gave."""
    import torch

    torch.set_rng_state(torch.frombuffer(bytearray.fromhex(state), dtype=torch.uint8))
