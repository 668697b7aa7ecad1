"""An attention made known to transformers: under a name of its own, and one that is known afterwards."""

from __future__ import annotations

from sftcore.core.door import Origin
from sftcore.core.types import AttentionBackend
from sftcore.util.process_state import left_as_found

_BUILT_IN = "eager"
"""transformers' own, which each model's module defines and the registry does not list."""


def register(backend: AttentionBackend, origin: Origin) -> None:
    """Call what makes an attention known, and look at what it did.

    Raises:
        FaultyPluginError: it put its function in the place of one of transformers' own, which is put back, or its
            implementation is not known afterwards.
    """
    if backend.register is None and origin.distribution == __name__.partition(".")[0]:
        return
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before = [(known, dict(known._global_mapping)) for known in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS)]
    if backend.register is not None:
        with left_as_found(f"{origin.label} in its register"):
            backend.register()
    taken = []
    for known, functions in before:
        now = known._global_mapping
        replaced = [name for name, one in functions.items() if _of_transformers(one) and now.get(name) is not one]
        new = [_BUILT_IN] if _BUILT_IN in now and _BUILT_IN not in functions else []
        now.update({name: functions[name] for name in replaced})
        for name in new:
            del now[name]
        taken += [*replaced, *new]
    if taken:
        raise origin.fault(
            f'registered another function as "{taken[0]}", which is transformers\' own and which other models use; '
            "expected a name of its own",
            of="register",
        )
    name = backend.implementation
    if name != _BUILT_IN and name not in ALL_ATTENTION_FUNCTIONS.valid_keys() and "/" not in name:
        raise origin.fault(
            f'returned the implementation "{name}", which transformers does not know: make it known in `register`, by '
            f'AttentionInterface.register("{name}", function)'
        )


def _of_transformers(function: object) -> bool:
    return str(getattr(function, "__module__", "")).startswith("transformers.")
