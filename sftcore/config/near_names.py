"""Refuses keys that nobody reads, and offers the key that was meant: one misspelt, or another tool's name for it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from attrs import evolve, frozen

from sftcore.config.foreign.data import OF_A_SOURCE
from sftcore.config.foreign.entry import Foreign
from sftcore.config.foreign.model import OF_A_MODEL
from sftcore.config.foreign.spelling import misspelt
from sftcore.config.foreign.table import lookup, names
from sftcore.core.errors import RecipeError, UnknownKeyError
from sftcore.core.types import KINDS

REQUIRED = {"model": "model: HuggingFaceTB/SmolLM2-135M-Instruct", "data": "data: train.jsonl"}
"""The keys that a recipe needs, each with an example."""

_OF_TRAINER = {"data": "train_dataset", "data.train": "train_dataset", "data.eval": "eval_dataset", "model": "model",
               "adapter": "peft_config"}  # fmt: skip
"""Keys of a recipe that in Python are arguments of SFTTrainer."""


@frozen
class Offer:
    """What is said of a key that nobody reads: the one that was probably meant, and a sentence; both may be empty."""

    key: str = ""
    note: str = ""

    def __str__(self) -> str:
        asked = f'did you mean "{self.key}"?' if self.key else ""
        return f"{asked} {self.note}".strip()


def wrong_keys(raw: Mapping[str, Any], known: Iterable[str], *, where: str) -> Iterator[RecipeError]:
    """The error of a recipe that lacks `model` or `data`, or has keys that nobody reads: one for all of them.

    Args:
        raw: the recipe's plain values.
        known: the keys that somebody reads.
        where: the recipe, in errors.

    Yields:
        nothing, an UnknownKeyError where one key is unknown and none is missing, or else a RecipeError.
    """
    keys = tuple(known)
    missing = [section for section in REQUIRED if raw.get(section) in (None, "")]
    unknown = {str(key): _beside(raw, offer(str(key), keys, missing)) for key in raw if key not in keys}
    if not missing and not unknown:
        return
    if not missing and len(unknown) == 1:
        ((key, found),) = unknown.items()
        yield _error(key, keys, where, found)
        return
    wrong = [f'the key "{section}" is missing' for section in missing]
    wrong += [f'unknown key "{key}"' + (f" ({found})" if str(found) else "") for key, found in unknown.items()]
    offered = {found.key.partition(".")[0] for found in unknown.values()}
    examples = [REQUIRED[section] for section in missing if section not in offered]
    fix = f"Add {'a line' if len(examples) == 1 else 'lines'} such as: {' and '.join(examples)}" if examples else ""
    yield RecipeError(f"{'; '.join(wrong)}.", where=where, fix=fix)


def unknown_key(key: str, known: Collection[str], *, where: str) -> UnknownKeyError:
    """The error of a key that nobody reads, with what was meant."""
    return _error(key, known, where, offer(key, known))


def unknown_inside(
    section: str, key: str, known: Collection[str], *, where: str, given: Collection[str], top: Collection[str] = ()
) -> UnknownKeyError:
    """The error of a key that a section of a recipe does not have: `model`, `data`, or a `source` of data.

    Args:
        section: its name.
        key: what stands there.
        known: the keys of the section.
        where: its place.
        given: the keys that stand there too.
        top: the keys of the recipe itself, for those that stand one level too deep.
    """
    near = misspelt(key, known)
    found = lookup(key) or (None if near else lookup(misspelt(key, names())))
    head, _, inner = (found.ours if found else "").partition(".")
    by_name = {"source": OF_A_SOURCE, "model": OF_A_MODEL}.get(section, {})
    if (meant := by_name.get(key.lower(), "")) in known and meant not in given:
        return _error(key, known, where, Offer(meant))
    if found and found.ours == section == "model" and "name" not in given:
        return _error(key, known, where, Offer("name", found.note))
    if found and head in (section, "data" if section == "source" else section) and inner in known:
        return _error(key, known, where, Offer(inner, found.note))
    if near:
        return _error(key, known, where, Offer(near))
    if key in top:
        return _error(key, known, where, Offer(note=f'"{key}" stands at the top of a recipe, beside model and data.'))
    if found:
        return _error(key, known, where, offer(key, (*top, *known)))
    return _error(key, known, where, Offer(next(iter(get_close_matches(key.lower(), known, n=1, cutoff=0.75)), "")))


def offer(key: str, known: Collection[str], missing: Collection[str] = ()) -> Offer:
    """The key that was probably meant, one of the missing where it is near.

    >>> keys = ["model", "data", "adapter", "tracker", "project"]
    >>> [offer(key, keys).key for key in ("mdoel", "lora_rank", "wandb_project", "zebra")]
    ['model', 'adapter.lora.r', 'tracker.project', '']
    """
    found = lookup(key)
    if found is None:
        near = misspelt(key, known) or next(iter(get_close_matches(key.lower(), missing, n=1, cutoff=0.75)), "")
        found = None if near else lookup(misspelt(key, names()))
        if found is None:
            return Offer(near)
    head = found.ours.partition(".")[0]
    if not head:
        return Offer(note=found.note)
    if head in known and ("data" in known or found.ours == head):
        return Offer(found.ours, found.note)
    return _in_python(found, known)


def _in_python(found: Foreign, known: Collection[str]) -> Offer:
    """What is said where the keys are not those of a recipe, but arguments of SFTConfig or SFTTrainer."""
    head, _, inner = found.ours.partition(".")
    if head in KINDS and "peft_config" in known and head == "adapter":
        return Offer("peft_config", found.note)
    if argument := _OF_TRAINER.get(found.ours):
        return Offer(argument) if argument in known else Offer(note=f"It belongs to SFTTrainer, as {argument}.")
    if head == "data":
        return Offer(note=f"It belongs to the data set that SFTTrainer is given; in a recipe it is {found.ours}.")
    if head in KINDS:
        where = _nested({"plugins": found.ours})
        also = " or give SFTTrainer a peft_config." if head == "adapter" else ""
        return Offer(note=f"Write SFTConfig({where}),{also}" if also else f"Write SFTConfig({where}).")
    if head == "model":
        where = _nested({"model_init_kwargs": inner.removeprefix("init_kwargs.")})
        return Offer(note=f"Write SFTConfig({where}). {found.note}".strip())
    if head in known:
        return Offer(note=f"Write {_nested({head: inner})}. {found.note}".strip())
    return Offer(note=found.note)


def _nested(named: Mapping[str, str]) -> str:
    """An argument of Python whose value is a mapping with this dotted path in it.

    >>> _nested({"plugins": "adapter.lora.r"})
    'plugins={"adapter": {"lora": {"r": …}}}'
    """
    ((name, path),) = named.items()
    value = "…"
    for key in reversed(path.split(".")):
        value = f'{{"{key}": {value}}}'
    return f"{name}={value}"


def _beside(raw: Mapping[str, Any], found: Offer) -> Offer:
    """The offer with the adapter that the recipe has, instead of LoRA."""
    adapter = raw.get("adapter")
    name = adapter if isinstance(adapter, str) else next(iter(adapter), "") if isinstance(adapter, Mapping) else ""
    head, dot, option = found.key.rpartition(".")
    return evolve(found, key=f"adapter.{name}.{option}") if name and dot and head == "adapter.lora" else found


def _error(key: str, known: Collection[str], where: str, found: Offer) -> UnknownKeyError:
    error = UnknownKeyError(key, known, where=where, meant=found.key)
    error.fix = f"{error.fix} {found.note}".strip()
    return error
