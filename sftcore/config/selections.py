"""What a recipe or a configuration says, turned into plugin selections.

Python users and recipes take the same way: `plugins`, the TRL-style fields and the defaults all end here. The tables
below are the one place that names plugins: the documented defaults, and what fields of TRL stand for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from attrs import evolve

from sftcore.config.installed import Installed
from sftcore.core.errors import ConflictError, OptionTypeError, RecipeError, UnknownKeyError
from sftcore.core.types import AUTO, KINDS, REPEATABLE_KINDS, ModelRequest, Selection
from sftcore.util.warned import warn

DEFAULTS = {"format": AUTO, "collator": "padded", "loader": "hf", "attention": AUTO, "loss": "nll"}
"""What a run uses where nothing else is asked for. Each yields to an explicit choice."""

DEFAULT_COLLATORS = {"end to end": "flattened", "vision": "vlm"}
"""The default collator where documents are laid end to end, and for vision-language models."""

ASKED_FOR_BY = {
    "use_liger_kernel": (("kernel", "liger"), ("loss", "liger")),
    "neftune_noise_alpha": (("noise", "neftune"),),
}
"""The plugins that TRL's fields stand for; each takes its options from the fields itself, or does without."""

ADAPTER_OF_PEFT_CONFIG = "lora"

RENAMED_LOSSES = {"chunked_nll": "nll"}
"""Values of TRL's `loss_type` that have another name by now."""


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
    installed: Installed,
    *,
    where: str,
    peft_config: Any = None,
) -> list[Selection]:
    """The explicit choices of a run: those of the user, and those that fields of SFTConfig ask for.

    `settings` are these fields, and `where` is their place in errors. `chosen` are from a recipe's kinds or from
    `SFTConfig.plugins`. A ready `peft_config` becomes the adapter's `config`, and the model's `attn_implementation`
    asks for an attention.

    Raises:
        ConflictError: a field and an explicit choice ask for different plugins of one kind.
        RecipeError: fields of a plugin contradict each other.
    """
    explicit = list(chosen)
    for selection in _from_fields(settings, model, installed, where, peft_config):
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
    return explicit


def default_selections(model: ModelRequest, installed: Installed, taken: Collection[str]) -> list[Selection]:
    """What a run uses of the kinds that are not taken; its collator comes last, see `default_collator`."""
    left = {kind: name for kind, name in DEFAULTS.items() if kind != "collator" and kind not in taken}
    found = [Selection(kind, name, path="default", default=True) for kind, name in left.items()]
    own = installed.loader_of(model) if "loader" in left else None
    return [
        evolve(one, name=own.name, distribution=own.distribution) if own and one.kind == "loader" else one
        for one in found
    ]


def default_collator(settings: Mapping[str, Any], model: ModelRequest, *, end_to_end: bool, where: str) -> Selection:
    """The collator of a run that names none, by what its model reads and how its rows are laid out."""
    name = DEFAULTS["collator"]
    if model.vision:
        name = DEFAULT_COLLATORS["vision"]
    elif end_to_end:
        name = DEFAULT_COLLATORS["end to end"]
    if settings.get("padding_free"):
        return Selection("collator", name, path=_at(where, "padding_free"))
    return Selection("collator", name, path=AUTO, default=True)


def _selection(kind: str, spelled: str, options: Mapping[str, Any], path: str) -> Selection:
    name, _, distribution = spelled.partition("@")
    return Selection(kind, name, dict(options), distribution or None, path)


def _from_fields(
    settings: Mapping[str, Any], model: ModelRequest, installed: Installed, where: str, peft_config: Any
) -> Iterator[Selection]:
    loss = settings.get("loss_type")
    if loss in RENAMED_LOSSES:
        warn(f'loss_type "{loss}" is now "{RENAMED_LOSSES[loss]}".', FutureWarning)
        loss = RENAMED_LOSSES[loss]
    if loss is not None and loss != DEFAULTS["loss"]:
        yield Selection("loss", loss, path=_at(where, "loss_type"))
    for field, plugins in ASKED_FOR_BY.items():
        for kind, name in plugins if settings.get(field) not in (None, False) else ():
            selection = Selection(kind, name, path=_at(where, field))
            try:
                options = installed.options_from(selection, settings)
            except RecipeError as error:
                error.where = _at(where, error.where)
                raise
            if options is not None:
                yield evolve(selection, options=options)
    attention = model.init_kwargs.get("attn_implementation")
    if isinstance(attention, str):
        path = _at(where, "model_init_kwargs.attn_implementation")
        entry, options = installed.attention_named(attention, model, where=path)
        name, distribution = (attention, None) if entry is None else (entry.name, entry.distribution)
        yield Selection("attention", name, options, distribution, path)
    if peft_config is not None:
        yield Selection("adapter", ADAPTER_OF_PEFT_CONFIG, {"config": peft_config}, path="peft_config")


def _at(where: str, field: str) -> str:
    return f"{where}.{field}" if where else field
