"""What each field of SFTConfig may hold: types, names out of a list, ranges of numbers, mappings and files.

Lists of names are read from the installed libraries (`sftcore.config.settings.declared`); ranges stand here, since no
library declares them, and a test asks for one of every number.
"""

from __future__ import annotations

import base64
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

from attrs import frozen

from sftcore.config.foreign import values as foreign
from sftcore.config.foreign.spelling import misspelt
from sftcore.config.settings.declared import choices, enum_values, trackers
from sftcore.config.settings.zero import NAMES, by_name
from sftcore.core.errors import OptionTypeError, RecipeError, nearest
from sftcore.core.options import structure, type_name
from sftcore.core.types import PACKING_STRATEGIES
from sftcore.util.secrets import hides, masked
from sftcore.util.shown import shortened


@frozen
class Range:
    """The numbers that a field takes: from `low` to below `below`; `above` says that `low` itself is not one."""

    low: float
    below: float = math.inf
    above: bool = False
    others: tuple[float, ...] = ()

    def __contains__(self, value: float) -> bool:
        return value in self.others or ((value > self.low if self.above else value >= self.low) and value < self.below)

    def __str__(self) -> str:
        low = f"above {self.low}" if self.above else f"at least {self.low}"
        others = "".join(f"{value} or " for value in self.others)
        return f"{others}{low}{f' and below {self.below}' if self.below < math.inf else ''}"


ADAPTER_DTYPES = ("float32", "bfloat16")
"""The dtypes that an adapter can be trained in; the range of float16 is too small for weight updates."""
_COUNT, _SHARE, _NOT_NEGATIVE, _POSITIVE, _SEED = Range(1), Range(0, 1), Range(0), Range(0, above=True), Range(0, 2**32)

RANGES: Mapping[str, Range] = {
    "per_device_train_batch_size": _COUNT, "per_device_eval_batch_size": _COUNT, "gradient_accumulation_steps": _COUNT,
    "num_train_epochs": _POSITIVE, "max_steps": Range(1, others=(-1,)), "learning_rate": _NOT_NEGATIVE,
    "warmup_steps": _NOT_NEGATIVE, "weight_decay": _NOT_NEGATIVE, "adam_beta1": _SHARE, "adam_beta2": _SHARE,
    "adam_epsilon": _NOT_NEGATIVE, "max_grad_norm": Range(0, others=(math.inf,)), "label_smoothing_factor": _SHARE,
    "neftune_noise_alpha": _NOT_NEGATIVE, "torch_empty_cache_steps": _COUNT, "logging_steps": _NOT_NEGATIVE,
    "eval_steps": _NOT_NEGATIVE, "save_steps": _NOT_NEGATIVE, "eval_delay": _NOT_NEGATIVE,
    "eval_accumulation_steps": _COUNT, "save_total_limit": _COUNT, "seed": _SEED, "data_seed": _SEED,
    "dataloader_num_workers": _NOT_NEGATIVE, "dataloader_prefetch_factor": _COUNT, "ddp_bucket_cap_mb": _COUNT,
    "ddp_timeout": _COUNT, "local_rank": Range(-1), "router_aux_loss_coef": _NOT_NEGATIVE, "dataset_num_proc": _COUNT,
    "max_image_pixels": _COUNT, "max_length": Range(2), "pad_to_multiple_of": _COUNT,
    "divergence_factor": Range(1, above=True), "early_stopping_patience": _COUNT,
    "early_stopping_threshold": _NOT_NEGATIVE, "loss_watchdog_threshold": _POSITIVE,
    "loss_watchdog_patience": _COUNT, "evals_per_epoch": _COUNT, "saves_per_epoch": _COUNT, "sample_prompts": _COUNT,
    "sample_max_new_tokens": _COUNT, "sample_temperature": _NOT_NEGATIVE,
}  # fmt: skip
"""The range of each field that holds a number."""

_WHY = {"max_length": ", which leaves no token to predict"}
_USUAL = {"label_smoothing_factor": ", such as 0.1 (0, the default, is off)"}
_WHOLE_TOO = ("auto", "none", "null")
_METRICS_INPUTS = ("inputs", "loss")
_COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
_OWN: Mapping[str, tuple[str, ...]] = {
    "adapter_dtype": ADAPTER_DTYPES,
    "on_nonfinite": ("stop", "skip", "continue"),
    "packing_strategy": PACKING_STRATEGIES,
    "truncation_mode": ("keep_start", "keep_end"),
    "long_rows": ("cut", "drop", "split", "refuse"),
    "mask_style": ("turn", "trl"),
    # transformers says these in prose alone
    "include_num_input_tokens_seen": ("all", "non_padding", "no"),
    "include_for_metrics": _METRICS_INPUTS,
    "torch_compile_mode": _COMPILE_MODES,
}
SEVERAL = ("fsdp", "debug")
"""Fields whose text holds several names with blanks between them."""

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
"""Names of the dtypes that a model is loaded in."""
_MEANT = {**foreign.DTYPES, **foreign.OPTIMIZERS, **foreign.SCHEDULES, **foreign.NEVER}
"""What other tools call values of ours."""

_MAPPINGS_FROM_FILES = ("accelerator_config", "fsdp_config", "deepspeed")


FORMS = 'A prompt is a text, a conversation ([{"role": "user", "content": "…"}]), or a row with "messages" or "prompt".'
"""What sample_prompts may hold."""
_OFFLOADED = (
    "Use true. With activation_offloading: true what is kept moves to the host, as there; Unsloth's own is loader: "
    "unsloth with adapter: {unsloth-lora: {offload_checkpoints: true}}."
)
_INSTEAD = {("gradient_checkpointing", value): _OFFLOADED for value in foreign.OFFLOADED}
"""What to write instead of values that other tools take."""


def names_of(field: str) -> tuple[str, ...]:
    """The names out of which a field is chosen; none where it may be any text."""
    if field in _OWN:
        return _OWN[field]
    if field == "report_to":
        return ("none", "all", *trackers())
    if field == "fsdp":
        return enum_values("FSDPOption")
    if field == "torch_compile_backend":
        return tuple(one.lower() for one in enum_values("DynamoBackend", "accelerate.utils.dataclasses"))
    return choices(field)


def as_ours(field: str, value: Any) -> Any:
    """The value here of one that other tools write, or that a command line holds as a text.

    >>> as_ours("bf16", "auto"), as_ours("seed", "auto")
    (None, 'auto')
    >>> as_ours("sample_prompts", "3"), as_ours("sample_prompts", "Who are you?"), as_ours("sample_prompts", '["A"]')
    (3, ['Who are you?'], ['A'])
    """
    if field == "bf16" and isinstance(value, str) and value.lower() == "auto":
        return None
    return _listed(value) if field == "sample_prompts" else value


def _listed(value: Any) -> Any:
    """Prompts as a list: one alone, or JSON of several; a text of digits is a number."""
    if isinstance(value, Mapping):
        return [value]
    if isinstance(value, (list, tuple)):
        return [list(one) if isinstance(one, tuple) else one for one in value]
    if not isinstance(value, str):
        return value
    if value.strip().isdecimal():
        return int(value)
    if value.lstrip()[:1] in ("[", "{"):
        with suppress(ValueError):
            found = json.loads(value)
            return [found] if isinstance(found, dict) else found
    return [value]


def plain_value(value: Any, wanted: Any) -> Any:
    """A value of Python as the plain one that it stands for: of numpy, a path, a tuple, a whole number as a float."""
    arms = get_args(wanted) or (wanted,)
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        value = value.item()
    if isinstance(value, os.PathLike) and str in arms:
        return os.fspath(value)
    if isinstance(value, (tuple, set, frozenset)) and any(arm is list or list in (arm, _origin(arm)) for arm in arms):
        return list(value)
    if isinstance(value, float) and float not in arms and int in arms and value.is_integer():
        return int(value)
    return value


def _origin(arm: Any) -> Any:
    return getattr(arm, "__origin__", arm)


def wrong_value(field: str, value: Any, wanted: Any, where: str) -> RecipeError | None:
    """What is wrong with the value of a field, in itself; None if nothing.

    Args:
        field: its name.
        value: from a recipe, or from Python.
        wanted: its type, None where plain values cannot represent it.
        where: its place in the error.
    """
    if wanted is None:
        if value is None or not isinstance(value, (str, bool, int, float, list, Mapping)):
            return None
        return OptionTypeError(
            f"{field} takes accelerate's ParallelismConfig, got {type(value).__name__} {shortened(value)}.",
            where=where,
            fix="Leave it to accelerate launch, or build one in Python.",
        )
    try:
        structure(value, wanted, path=field)
    except OptionTypeError:
        return _wrong_type(field, value, wanted, where)
    if field == "output_dir" and value == "":
        return RecipeError("output_dir is empty.", where=where, fix="Name a folder.")
    if field == "hub_model_id" and value is not None and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value):
        return RecipeError(f"hub_model_id is {shortened(value)}.", where=where, fix="Write name, or owner/name.")
    if isinstance(value, (int, float)) and not isinstance(value, bool) and field in RANGES:
        limits = RANGES[field]
        if value in limits:
            return None
        usual, finite = _USUAL.get(field, ""), "" if math.isfinite(value) else "a finite number, "
        return RecipeError(
            f"{field} is {value!r}{_WHY.get(field, '')}.", where=where, fix=f"It must be {finite}{limits}{usual}."
        )
    found = next(_wrong_texts(field, value), None) or _wrong_mapping(field, value, wanted)
    return RecipeError(found[0], where=where, fix=found[1]) if found else None


def wrong_dtype(value: Any, where: str) -> RecipeError | None:
    """What is wrong with a model's dtype: a name, one of torch's own, or names for the parts of a model."""
    if value is None or type(value).__module__ == "torch" or isinstance(value, Mapping):
        return None
    return wrong_choice("dtype", value, DTYPES, where)


def wrong_choice(field: str, value: Any, known: tuple[str, ...], where: str) -> RecipeError | None:
    """What is wrong with a text that is chosen out of these."""
    if not isinstance(value, str):
        return OptionTypeError(
            f"{field} takes str, got {type(value).__name__} {shortened(value)}.",
            where=where,
            fix=f"Use one of: {', '.join(known)}.",
        )
    if value in known:
        return None
    what, fix = _unknown(field, value, known)
    return RecipeError(what, where=where, fix=fix)


def _wrong_type(field: str, value: Any, wanted: Any, where: str) -> OptionTypeError:
    shown = "(not shown)" if hides(field, value) else shortened(masked(value), 200)
    fix = ""
    arms = get_args(wanted) or (wanted,)
    if isinstance(value, str) and {int, float} & set(arms):
        with suppress(ValueError):
            number = float(value) if float in arms else int(value)
            unlimited = number > 0 and field in RANGES and math.inf in RANGES[field]
            spelled = repr(number) if math.isfinite(number) else ".inf" if unlimited else ""
            fix = f"Write {spelled} without quotes." if spelled else "Give a number."
    elif field == "sample_prompts":
        fix = f"It is a list, or how many evaluation rows are asked. {FORMS}"
    elif isinstance(value, str) and (field, value.lower()) in _INSTEAD:
        fix = _INSTEAD[field, value.lower()]
    elif bool in arms and not isinstance(value, (list, Mapping)):
        fix = "Use true or false."
    elif names := names_of(field):
        fix = f"Use one of: {', '.join(names)}." if len(names) <= 20 else ""
    return OptionTypeError(
        f"{field} takes {type_name(wanted)}, got {type(value).__name__} {shown}.", where=where, fix=fix
    )


def _wrong_texts(field: str, value: Any) -> Iterator[tuple[str, str]]:
    """Names that the field does not know."""
    if not isinstance(value, (str, list)):
        return
    if field == "pad_to_multiple_of":
        if not (isinstance(value, str) and (value.lower() in _WHOLE_TOO or (value.isdigit() and int(value) > 0))):
            what = f'pad_to_multiple_of is a number, "auto" or "none", got "{shortened(value)[1:-1]}".'
            yield what, nearest(str(value).lower(), _WHOLE_TOO).strip()
        return
    if field == "torch_compile_backend":
        value = str(value).lower()
    known = names_of(field)
    if field == "fsdp" and isinstance(value, str):
        value = value.replace(",", " ")
    words = value if isinstance(value, list) else value.split() if field in SEVERAL else [value]
    for word in words if known else ():
        text = getattr(word, "value", word)  # one of transformers' own enumerations
        if text not in known:
            yield _unknown(field, str(text), known)


def _unknown(field: str, word: str, known: tuple[str, ...]) -> tuple[str, str]:
    others = {name: meant for name, meant in _MEANT.items() if meant in known}
    near = misspelt(word, [*known, *others], shortest=4)
    offer = f'Did you mean "{others.get(near, near)}"?' if near else ""
    listed = f"Use one of: {', '.join(known)}." if len(known) <= 20 or not offer else ""
    return f'{field} "{shortened(word)[1:-1]}" is not known.', f"{offer} {listed}".strip()


def _wrong_mapping(field: str, value: Any, wanted: Any) -> tuple[str, str] | None:
    """What is wrong with a text that stands for a mapping: JSON, or for some fields a file of it."""
    kinds = {_origin(arm) for arm in get_args(wanted)}
    if not isinstance(value, str) or dict not in kinds or (list in kinds and not value.startswith("{")):
        return None
    if value.strip().startswith("{"):
        return _wrong_json(field, value)
    if field not in _MAPPINGS_FROM_FILES:
        return f"{field} is a mapping or JSON text of one, got {shortened(value)}.", ""
    if field == "deepspeed" and not isinstance(by_name(value), str):
        return None
    path = Path(value).expanduser()
    if path.is_file():
        return _wrong_json(f"{field}: {value}", path.read_text(encoding="utf-8", errors="replace"))
    if field == "deepspeed":
        with suppress(ValueError):  # transformers takes the file's content in this form too
            json.loads(base64.urlsafe_b64decode(value))
            return None
    fix = "Name a JSON file, or write the mapping itself."
    if field == "deepspeed":
        fix = f"{nearest(value, NAMES).strip()} {fix} By name there are: {', '.join(NAMES)}.".strip()
    return f"{field}: there is no file {shortened(value)}.", fix


def _wrong_json(field: str, text: str) -> tuple[str, str] | None:
    try:
        found = json.loads(text)
    except ValueError as error:
        return f"{field} is not valid JSON: {error}.", ""
    return None if isinstance(found, dict) else (f"{field} is a mapping, got {shortened(found)}.", "")
