"""The arguments of `from_pretrained` that a configuration gives, in today's spelling."""

from __future__ import annotations

import inspect
from typing import Any

from sftcore.config.settings.values import wrong_dtype
from sftcore.core.errors import ConflictError, RecipeError, UnknownKeyError
from sftcore.util.foreign import in_our_words
from sftcore.util.warned import warn

OF_BITS = ("bnb_4bit_", "llm_int8_")
"""How settings of bitsandbytes begin that go with `load_in_4bit` or `load_in_8bit`."""
ADD_BITS = "Add one of the two, or write all of them in quantization_config."


def current_init_kwargs(kwargs: dict[str, Any] | str | None, *, where: str) -> dict[str, Any] | None:
    """`from_pretrained` arguments in today's spelling; older ones are translated and say so.

    Raises:
        RecipeError: a dtype that torch does not have.
        ConflictError: 8-bit and 4-bit at once, or beside a quantization_config; settings of bits without the bits.
    """
    if not isinstance(kwargs, dict):
        return None
    current = dict(kwargs)
    if "torch_dtype" in current:
        warn("torch_dtype is now dtype.", FutureWarning)
        current.setdefault("dtype", current.pop("torch_dtype"))
    if error := wrong_dtype(current.get("dtype"), where):
        raise error
    bits = [name for name in ("load_in_8bit", "load_in_4bit") if current.pop(name, False)]
    beside = {name: current.pop(name) for name in [*current] if name.startswith(OF_BITS)}
    if beside and not bits:
        raise ConflictError(f"{', '.join(beside)} without load_in_4bit or load_in_8bit.", where=where, fix=ADD_BITS)
    if bits:
        if len(bits) > 1 or current.get("quantization_config") is not None:
            raise ConflictError(
                "load_in_8bit, load_in_4bit and quantization_config exclude each other.", fix="Keep one."
            )
        from transformers import BitsAndBytesConfig

        known = inspect.signature(BitsAndBytesConfig).parameters
        for name in beside.keys() - known.keys():
            raise UnknownKeyError(name, known.keys() - {"kwargs"}, where=where)
        asked = {bits[0]: True, **beside}
        spelled = ", ".join(f"{name}={value!r}" for name, value in asked.items())
        warn(f"{bits[0]} is now quantization_config=BitsAndBytesConfig({spelled}).", FutureWarning)
        with in_our_words("transformers does not take these settings", RecipeError, where=where):
            current["quantization_config"] = BitsAndBytesConfig(**asked)
    return current
