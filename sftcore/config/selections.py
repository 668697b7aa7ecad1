"""What a recipe or a configuration says, turned into plugin selections: the one place that knows names.

Python users and recipes take the same way: `plugins`, the TRL-style fields and the defaults all end here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from attrs import evolve

from sftcore.core.errors import ConflictError, OptionTypeError, RecipeError, UnknownKeyError
from sftcore.core.registry import AUTO
from sftcore.core.types import KINDS, REPEATABLE_KINDS, ModelRequest, Selection

DEFAULTS = {"format": AUTO, "collator": "padded", "loader": "hf", "attention": "sdpa", "loss": "nll"}
"""What a run uses where nothing else is asked for. Each yields to an explicit choice."""

FILE_LOADERS = {".gguf": "gguf"}
"""Loaders chosen by the ending of the model's file name."""

ATTENTION_NAMES = {"flash_attention_2": "flash-2", "flex_attention": "flex"}
"""transformers' names for attention implementations, where ours differ."""

FLATTENED = "flattened"
"""The collator that lays batches end to end."""

VISION = "vlm"
"""The collator of vision-language models."""

TAKES_BOUNDARIES = ("varlen", "flash-1", "flash-2")
"""Attentions that compute documents one by one, so that one long row of them costs no more than several."""

LOSS_ALIASES = {"chunked_nll": "nll"}


def parse_choice(kind: str, value: Any, *, where: str) -> list[Selection]:
    """The selections that one recipe entry asks for.

    >>> [s.label for s in parse_choice("format", "chat@acme", where="recipe.yaml")]
    ['format "chat@acme"']
    >>> parse_choice("adapter", {"lora": {"r": 8}}, where="recipe.yaml")[0].options
    {'r': 8}

    Raises:
        RecipeError: it is neither a name, nor a name with options, nor (where several are allowed) a list of them.
    """
    path = f"{where}: {kind}" if where else kind
    if value is None:
        return []
    if isinstance(value, (list, tuple)):
        if kind not in REPEATABLE_KINDS and len(value) > 1:
            raise RecipeError(f"a run has one {kind}, got {len(value)}.", where=path, fix="Name one of them.")
        found = [selection for item in value for selection in parse_choice(kind, item, where=where)]
        names = [selection.name for selection in found]
        if twice := {name for name in names if names.count(name) > 1}:
            raise RecipeError(
                f'"{sorted(twice)[0]}" stands twice.', where=path, fix="Name it once, with all its options."
            )
        return found
    if isinstance(value, str):
        return [_selection(kind, value, {}, path)]
    if isinstance(value, Mapping):
        if len(value) != 1 and kind not in REPEATABLE_KINDS:
            raise RecipeError(
                f"expected one name with its options, got {len(value)} keys: {', '.join(map(str, value))}.",
                where=path,
                fix=f"Write {kind}: {{name: {{option: value}}}}.",
            )
        for name, options in value.items():
            if options is not None and not isinstance(options, Mapping):
                raise OptionTypeError(
                    f"the options of {name} are a mapping, got {type(options).__name__} {options!r}.",
                    where=path,
                    fix=f"Write {kind}: {{{name}: {{option: value}}}}.",
                )
        return [_selection(kind, str(name), options or {}, path) for name, options in value.items()]
    raise OptionTypeError(f"expected a name or a name with options, got {type(value).__name__} {value!r}.", where=path)


def parse_plugins(plugins: Mapping[str, Any] | None, *, where: str) -> list[Selection]:
    """The selections of a mapping from kind to choice, as in `SFTConfig.plugins`."""
    if plugins is not None and not isinstance(plugins, Mapping):
        raise OptionTypeError(
            f"expected a mapping from kind to plugin, got {type(plugins).__name__}.",
            where=where,
            fix='Write plugins={"noise": {"name": {"option": 1}}}.',
        )
    for kind in plugins or {}:
        if kind not in KINDS:
            raise UnknownKeyError(str(kind), KINDS, where=where)
    return [one for kind, value in (plugins or {}).items() for one in parse_choice(kind, value, where=where)]


def selections_for(
    chosen: Iterable[Selection],
    settings: Mapping[str, Any],
    model: ModelRequest,
    *,
    where: str,
    peft_config: Any = None,
    without: Iterable[str] = (),
) -> tuple[Selection, ...]:
    """All selections of a run, in the order of the kinds: explicit choices, those that fields ask for, defaults.

    Args:
        chosen: from a recipe's kinds or from `SFTConfig.plugins`.
        settings: fields of SFTConfig.
        model: decides the loader where nobody chose one.
        where: the place of `settings`, for errors.
        peft_config: a ready PEFT configuration; it becomes the adapter's `config`.
        without: kinds of which the run needs none (a ready model needs no loader).

    Raises:
        ConflictError: a field and an explicit choice ask for different plugins of one kind.
    """
    explicit = [_with_field_options(one, settings) for one in chosen]
    for selection in _from_fields(settings, model, where, peft_config):
        same = [one for one in explicit if one.kind == selection.kind]
        if selection.kind in REPEATABLE_KINDS:
            same = [one for one in same if one.name == selection.name]
        if not same:
            explicit.append(selection)
        elif any(one.name != selection.name or dict(one.options) != dict(selection.options) for one in same):
            raise ConflictError(
                f"{selection.path} asks for {selection.label}, {same[0].path or 'plugins'} for {same[0].label}.",
                fix="Keep one of the two.",
            )
    kinds = {one.kind for one in explicit}
    defaults = [
        Selection(kind, name, path="default", default=True)
        for kind, name in _defaults_for(model, settings, explicit).items()
        if kind not in kinds
    ]
    dropped = set(without)
    return tuple(
        sorted(
            (one for one in (*explicit, *defaults) if one.kind not in dropped), key=lambda one: KINDS.index(one.kind)
        )
    )


def format_options(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Options that fields give to formats which `format: auto` considers, by format name."""
    field = settings.get("dataset_text_field")
    return {"text": {"field": field}, VISION: {"text": field}} if field is not None else {}


def _with_field_options(selection: Selection, settings: Mapping[str, Any]) -> Selection:
    given = format_options(settings).get(selection.name, {}) if selection.kind == "format" else {}
    return evolve(selection, field_options=given)


def _selection(kind: str, spelled: str, options: Mapping[str, Any], path: str) -> Selection:
    name, _, distribution = spelled.partition("@")
    return Selection(kind, name, dict(options), distribution or None, path)


def _defaults_for(model: ModelRequest, settings: Mapping[str, Any], explicit: Iterable[Selection]) -> dict[str, str]:
    defaults = dict(DEFAULTS)
    if ending := next((end for end in FILE_LOADERS if (model.name or "").lower().endswith(end)), None):
        defaults["loader"] = FILE_LOADERS[ending]
    if settings.get("packing") and any(one.kind == "attention" and one.name in TAKES_BOUNDARIES for one in explicit):
        defaults["collator"] = FLATTENED
    if model.vision:
        defaults["collator"] = VISION
    return defaults


def _from_fields(settings: Mapping[str, Any], model: ModelRequest, where: str, peft_config: Any) -> Iterable[Selection]:
    def asks(field: str, kind: str, name: str, options: Mapping[str, Any] | None = None) -> Selection:
        return Selection(kind, name, options or {}, path=f"{where}.{field}" if where else field)

    if settings.get("padding_free"):
        yield asks("padding_free", "collator", VISION if model.vision else FLATTENED)
    loss = settings.get("loss_type")
    if loss in LOSS_ALIASES:
        warnings.warn(f'loss_type "{loss}" is now "{LOSS_ALIASES[loss]}".', FutureWarning, stacklevel=2)
        loss = LOSS_ALIASES[loss]
    if loss is not None and loss != DEFAULTS["loss"]:
        yield asks("loss_type", "loss", loss)
    if settings.get("use_liger_kernel"):
        kernels, loss_options = _liger_options(settings.get("liger_kernel_config") or {}, where)
        yield asks("use_liger_kernel", "kernel", "liger", kernels)
        if loss_options is not None:
            yield asks("use_liger_kernel", "loss", "liger", loss_options)
    if settings.get("neftune_noise_alpha") is not None:
        yield asks("neftune_noise_alpha", "noise", "neftune", {"alpha": settings["neftune_noise_alpha"]})
    attention = model.init_kwargs.get("attn_implementation")
    if isinstance(attention, str):
        yield asks("model_init_kwargs.attn_implementation", "attention", ATTENTION_NAMES.get(attention, attention))
    if peft_config is not None:
        yield Selection("adapter", "lora", {"config": peft_config}, path="peft_config")


LIGER_MLPS = ("swiglu", "geglu", "relu_squared")
"""Liger's names for kernels of MLPs, of which a model has one."""


def _liger_options(config: Mapping[str, Any], where: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Options of the kernel and, where one is asked for, of the loss: Liger's own defaults, the fused loss among them.

    >>> _liger_options({"swiglu": False, "cross_entropy": True}, "")
    ({'mlp': False}, {'fused': False})
    >>> _liger_options({}, ""), _liger_options({"fused_linear_cross_entropy": False}, "")
    (({}, {}), ({}, None))
    """
    given = dict(config)
    whole = bool(given.pop("cross_entropy", False))
    fused = bool(given.pop("fused_linear_cross_entropy", not whole))
    if whole and fused:
        raise RecipeError(
            "cross_entropy and fused_linear_cross_entropy exclude each other.",
            where=f"{where}.liger_kernel_config" if where else "liger_kernel_config",
            fix="Set one of them to false.",
        )
    mlps = [given.pop(name) for name in LIGER_MLPS if name in given]
    kernels = {**given, **({"mlp": all(mlps)} if mlps else {})}
    return kernels, ({} if fused else {"fused": False}) if fused or whole else None
