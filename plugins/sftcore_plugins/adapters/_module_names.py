"""Names of modules in an adapter's configuration, compared with those that the model has, by PEFT's own rules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sftcore import Problem
from sftcore.plugin_api import nearest

FUSED_EXPERTS = ("w1", "w2", "w3", "gate_proj", "up_proj", "down_proj", "gate_up_proj")
"""Layers of experts that transformers 5 holds as one tensor, and PEFT finds by the name that they had before."""

NOT_ADAPTED = ("norm", "ln_", "act", "drop", "rotary", "loss")
"""Parts of the names of layers that an adapter cannot be put on."""

_SHOWN = 12
_ALL = ("all", "all-linear", "all_linear", "linear")
"""What stands in other tools, or in a list, for all linear layers."""


def unknown_names(config: Mapping[str, Any], module_names: Sequence[str]) -> Iterator[Problem]:
    """Problems with names that match no module: PEFT passes over them, and what was meant would not be trained.

    Args:
        config: a PEFT configuration as plain values.
        module_names: of the model, as in `named_modules`.
    """
    fused = any(name.rpartition(".")[2] == "experts" for name in module_names)
    for option in ("target_modules", "exclude_modules"):
        names = config.get(option)
        if isinstance(names, str):
            yield from _pattern(option, names, module_names, fused=fused)
            continue
        for name in names or ():
            if not (_is_end(str(name), module_names) or (fused and str(name).rpartition(".")[2] in FUSED_EXPERTS)):
                yield _unknown(option, name, _adapted(module_names))
    indices = config.get("trainable_token_indices")
    whole = {"modules_to_save": config.get("modules_to_save") or ()}
    whole["trainable_token_indices"] = indices if isinstance(indices, Mapping) else ()
    for option, names in whole.items():
        if isinstance(names, str):
            yield Problem(f'{option} is the text "{names}", and a list is wanted.', fix=f'Write a list: ["{names}"].')
            continue
        for name in names:
            if not any(one.endswith(name) for one in module_names):
                yield _unknown(option, name, module_names)
    yield from _patterns(config, module_names, fused=fused)
    yield from _unknown_layers(config, module_names)


def _is_end(name: str, module_names: Iterable[str]) -> bool:
    return any(one == name or one.endswith(f".{name}") for one in module_names)


def _patterns(config: Mapping[str, Any], module_names: Sequence[str], *, fused: bool) -> Iterator[Problem]:
    """Problems with the keys of `rank_pattern` and `alpha_pattern`, regular expressions of the ends of names."""
    names = [*module_names, *(config.get("target_parameters") or ())]
    for option in ("rank_pattern", "alpha_pattern"):
        for key in config.get(option) or ():
            try:
                expression = re.compile(rf"(.*\.)?({key})$")
            except re.error as error:
                what = f'{option}: "{key}" is not a regular expression: {error}.'
                yield Problem(what, fix="Write the end of a module's name.")
                continue
            if not fused and not any(expression.match(name) for name in names):
                yield _unknown(option, key, _adapted(module_names))


def _unknown_layers(config: Mapping[str, Any], module_names: Sequence[str]) -> Iterator[Problem]:
    """Problems with `layers_to_transform`, numbers of layers: PEFT passes over those that the model does not have."""
    asked = config.get("layers_to_transform")
    asked = [asked] if isinstance(asked, int) else asked
    if not asked or isinstance(config.get("target_modules"), str):  # beside a text PEFT refuses them itself
        return
    given = config.get("layers_pattern") or r"[^.]*"
    patterns = [given] if isinstance(given, str) else given
    numbered = [re.match(rf"(?:^|.*?\.){one}\.(\d+)\.", name) for one in patterns for name in module_names]
    known = sorted({int(found[1]) for found in numbered if found})
    if not known:
        yield Problem(
            f'no layers of the model are numbered behind "{", ".join(patterns)}".',
            "layers_pattern",
            "Name the list that holds the layers, such as layers or h, or leave it out.",
        )
    elif wrong := [one for one in asked if one not in known]:
        yield Problem(
            f"layers_to_transform names layer {wrong[0]}, and the model has layers {known[0]} to {known[-1]}.",
            fix="Name layers that it has.",
        )


def _pattern(option: str, pattern: str, module_names: Sequence[str], *, fused: bool) -> Iterator[Problem]:
    """Problems with a text, which PEFT takes for a regular expression of whole names."""
    if pattern == "all-linear" and option == "target_modules":
        return
    try:
        expression = re.compile(pattern)
    except re.error as error:
        yield Problem(f'{option} "{pattern}" is not a regular expression: {error}.', fix="Write a list of names.")
        return
    if fused or any(expression.fullmatch(one) for one in module_names):
        return
    if _is_end(pattern, module_names):
        yield Problem(
            f'{option} "{pattern}" is a text, which PEFT takes for a regular expression of whole names, and no '
            "module's name is that.",
            fix=f'Write a list: ["{pattern}"].',
        )
        return
    layers = _adapted(module_names)
    names = [one.strip() for one in pattern.split(",")]
    if option == "target_modules" and pattern.lower() in _ALL:
        yield _all_linear(option, pattern)
    elif len(names) > 1 and all(one in module_names or _is_end(one, module_names) for one in names):
        what = f'{option} "{pattern}" is a text, which PEFT takes for a regular expression of whole names.'
        listed = ", ".join(f'"{one}"' for one in names)
        yield Problem(what, fix=f"Write a list: [{listed}].")
    elif re.fullmatch(r"\w+", pattern):
        words = ["all-linear"] if option == "target_modules" else []
        near = nearest(pattern, [*words, *_last_parts(layers, 1)])
        yield Problem(f'{option} "{pattern}" matches no module of the model.{near}', fix=_shown(layers))
    else:
        yield Problem(f'{option} "{pattern}" matches the whole name of no module.', fix=_shown(layers))


def _adapted(module_names: Sequence[str]) -> list[str]:
    """The layers, without what holds others and without those that an adapter cannot be put on."""
    parents = {name.rpartition(".")[0] for name in module_names}
    layers = [name for name in module_names if name not in parents]
    return [name for name in layers if not any(part in name.rpartition(".")[2].lower() for part in NOT_ADAPTED)]


def _all_linear(option: str, name: str) -> Problem:
    what = f'{option} "{name}" matches no module of the model. Did you mean "all-linear"?'
    return Problem(what, fix="Write target_modules: all-linear, which is a text, not a list.")


def _unknown(option: str, name: Any, module_names: Sequence[str]) -> Problem:
    if option == "target_modules" and str(name).lower() in _ALL:
        return _all_linear(option, str(name))
    depth = str(name).count(".") + 1
    near = nearest(str(name), _last_parts(module_names, depth))
    return Problem(f'{option} names "{name}", and no module of the model is called so.{near}', fix=_shown(module_names))


def _last_parts(module_names: Iterable[str], depth: int) -> list[str]:
    """The last parts of the names, each once, without numbers alone."""
    found = dict.fromkeys(".".join(name.split(".")[-depth:]) for name in module_names)
    return [name for name in found if not name.isdigit()]


def _shown(module_names: Sequence[str]) -> str:
    parents = {name.rpartition(".")[0] for name in module_names}
    names = _last_parts([name for name in module_names if name not in parents], 1)
    more = ", …" if len(names) > _SHOWN else ""
    return f"Its layers: {', '.join(names[:_SHOWN])}{more}."
