"""The JSON schema (draft 2020-12) of recipes, with the options of installed plugins, for editors that know YAML."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

import attrs

from sftcore.config.data.parse import SECTION_KEYS, SOURCE_KEYS
from sftcore.config.described.fields import described_fields
from sftcore.config.fields import config_fields
from sftcore.config.plugins.bound import OPEN, by_itself
from sftcore.config.settings.older_names import RENAMED, TRANSLATED, WITHOUT_EFFECT
from sftcore.config.settings.values import DTYPES, RANGES, SEVERAL, Range, names_of
from sftcore.core.discovery import Catalog, PluginEntry
from sftcore.core.plugin_class import options, summary
from sftcore.core.types import AUTO, KINDS, REPEATABLE_KINDS

Schema = dict[str, Any]
DRAFT = "https://json-schema.org/draft/2020-12/schema"

_SIMPLE: Mapping[Any, str] = {
    bool: "boolean", int: "integer", float: "number", str: "string", dict: "object", list: "array", tuple: "array",
    type(None): "null",
}  # fmt: skip
_ONLY_PYTHON = ("plugins", "block", "model_init_kwargs")
"""Fields for which a recipe has keys of its own."""


def recipe_schema(catalog: Catalog) -> Schema:
    """The schema of a recipe, with the plugins of this catalog.

    Each plugin's module is imported for its options, as `list-plugins --details` does. One that cannot be imported
    takes any options here.
    """
    properties: Schema = {"model": _model(), "data": {"$ref": "#/$defs/data"}}
    properties |= {kind: _choice(kind, catalog) for kind in KINDS}
    properties["block"] = {
        "description": "Plugins that must not be used, as kind:name.",
        "anyOf": [{"type": "null"}, {"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    }
    described = described_fields()
    for name, wanted in config_fields().items():
        if name in _ONLY_PYTHON or name in properties:
            continue
        found = described[name]
        properties[name] = {"description": found.text, **_field(name, wanted)}
        if not (isinstance(found.default, str) and found.default.startswith("<")):
            properties[name]["default"] = found.default
    for name in (*RENAMED, *TRANSLATED, *WITHOUT_EFFECT, "warmup_ratio"):
        now = RENAMED.get(name, TRANSLATED[name][1] if name in TRANSLATED else "")
        now = "warmup_steps, where a value below 1 is a share" if name == "warmup_ratio" else now
        said = f"The older name of {now}." if now else "No longer needed."
        properties.setdefault(name, {"deprecated": True, "description": said})
    return {
        "$schema": DRAFT,
        "title": "Recipe of sftcore",
        "type": "object",
        "properties": properties,
        "required": ["model", "data"],
        "additionalProperties": False,
        "$defs": {
            "format": properties["format"],
            "source": _source(),
            "sources": _sources(),
            "data": _data(),
        },
    }


def schema_of(wanted: Any) -> Schema:
    """The schema of a type, or of a type expression; {} where plain values cannot represent it.

    >>> schema_of(int | None), schema_of(list[str])
    ({'anyOf': [{'type': 'integer'}, {'type': 'null'}]}, {'type': 'array', 'items': {'type': 'string'}})
    """
    origin, parts = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        arms = [schema_of(part) for part in parts]
        return {} if {} in arms else {"anyOf": arms}
    if origin is Literal:
        return {"enum": list(parts)}
    simple = _SIMPLE.get(origin or wanted)
    found: Schema = {"type": simple} if simple else {}
    if simple == "array" and parts and (items := schema_of(parts[0])):
        found["items"] = items
    if simple == "object" and len(parts) == 2 and (values := schema_of(parts[1])):
        found["additionalProperties"] = values
    return found


def _field(name: str, wanted: Any) -> Schema:
    """The schema of a field of SFTConfig, with its names and its range."""
    if wanted is None:
        return {}
    known, arms = names_of(name), []
    for arm in get_args(wanted) if get_origin(wanted) in (Union, types.UnionType) else (wanted,):
        found = schema_of(arm)
        kind = found.get("type")
        if kind == "string" and known and name not in SEVERAL:
            found = {"enum": list(known)}
        elif kind == "array" and known:
            found["items"] = {"enum": list(known)}
        elif kind in ("integer", "number") and name in RANGES:
            found = _within(found, RANGES[name])
        elif kind == "string" and name == "pad_to_multiple_of":
            found = {"pattern": "^(auto|none|null|[1-9][0-9]*)$", **found}
        arms.append(found)
    if name == "bf16":
        arms.append({"enum": [AUTO]})
    if name == "resume_from_checkpoint":
        arms.append({"type": "boolean"})
    if name == "torch_compile_backend":
        arms.append({"type": "string"})
    return arms[0] if len(arms) == 1 else {"anyOf": arms}


def _within(found: Schema, limits: Range) -> Schema:
    bounded = {**found, "exclusiveMinimum" if limits.above else "minimum": limits.low}
    if limits.below < float("inf"):
        bounded["exclusiveMaximum"] = limits.below
    others = [value for value in limits.others if abs(value) < float("inf")]
    return {"anyOf": [bounded, {"enum": others}]} if others else bounded


def _model() -> Schema:
    keys = {
        "name": {"type": "string", "description": "A hub id, a folder or a .gguf file."},
        "revision": {"type": "string"},
        "dtype": {"enum": list(DTYPES), "description": "What the weights are held in; float32 if absent."},
        "init_kwargs": {"type": "object", "description": "Arguments for from_pretrained."},
        "torch_dtype": {"enum": list(DTYPES), "deprecated": True, "description": "The older name of dtype."},
    }
    mapping = {"type": "object", "properties": keys, "required": ["name"], "additionalProperties": False}
    said = "The model: a hub id, a folder or a .gguf file, or a mapping."
    return {"description": said, "anyOf": [{"type": "string", "minLength": 1}, mapping]}


def _choice(kind: str, catalog: Catalog) -> Schema:
    """A plugin of this kind: its name, or its name with options; several where a run may have several."""
    entries = {entry.name: entry for entry in catalog.of_kind(kind)}
    names = [*entries, *([AUTO] if kind in OPEN else [])]
    elsewhere = "@"  # name@distribution
    by_name = {name: {"anyOf": [{"type": "null"}, _options(entry)]} for name, entry in entries.items()}
    with_options: Schema = {
        "type": "object",
        "properties": by_name,
        "patternProperties": {elsewhere: {"type": ["object", "null"]}},
        "additionalProperties": False,
    }
    if kind not in REPEATABLE_KINDS:
        with_options |= {"minProperties": 1, "maxProperties": 1}
    one: list[Schema] = [{"enum": names}, {"type": "string", "pattern": elsewhere}, with_options]
    several: Schema = {"type": "array", "items": {"anyOf": one}}
    if kind not in REPEATABLE_KINDS:
        several["maxItems"] = 1
    return {"description": f"The {kind}.", "anyOf": [{"type": "null"}, *one, several]}


def _options(entry: PluginEntry) -> Schema:
    """The options of a plugin."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what a module prints must not end up inside the schema
            cls = type(by_itself(entry).bound[0].plugin)
    except Exception:  # a third party's code may raise anything; list-plugins --details says what
        return {"type": "object"}
    properties = {}
    for option in options(cls):
        found = schema_of(option.type) if not isinstance(option.type, str) else {}
        if _is_plain(option.default):
            found["default"] = option.default
        properties[option.name.lstrip("_")] = found
    return {"type": "object", "description": summary(cls), "properties": properties, "additionalProperties": False}


def _is_plain(value: Any) -> bool:
    return value is not attrs.NOTHING and (value is None or isinstance(value, (bool, int, float, str)))


def _source() -> Schema:
    keys = {name: schema_of(wanted) for name, wanted in SOURCE_KEYS.items()}
    keys["format"] = {"$ref": "#/$defs/format"}
    keys["weight"] = {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "null"}]}
    return {"type": "object", "properties": keys, "required": ["path"], "additionalProperties": False}


def _sources() -> Schema:
    one = [{"type": "string", "minLength": 1}, {"$ref": "#/$defs/source"}]
    return {"anyOf": [*one, {"type": "array", "minItems": 1, "items": {"anyOf": one}}]}


def _data() -> Schema:
    keys = {name: schema_of(wanted) for name, wanted in SECTION_KEYS.items()}
    keys["train"] = {"$ref": "#/$defs/sources"}
    several = {"type": "object", "minProperties": 1, "additionalProperties": {"$ref": "#/$defs/sources"}}
    named = {"not": {"required": ["path"]}, **several}
    keys["eval"] = {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/sources"}, named]}
    keys["eval_fraction"] = {
        "anyOf": [{"type": "null"}, {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}]
    }
    section: Schema = {"type": "object", "properties": keys, "required": ["train"], "additionalProperties": False}
    flat = {**_source()["properties"], **{name: one for name, one in keys.items() if name != "train"}}
    flat |= {name: one for name, one in _source()["properties"].items() if name in SOURCE_KEYS}
    source: Schema = {"type": "object", "properties": flat, "required": ["path"], "additionalProperties": False}
    return {"description": "Where the rows come from.", "anyOf": [{"$ref": "#/$defs/sources"}, section, source]}
