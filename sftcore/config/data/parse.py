"""Reads the `data` of a recipe, with every mistake in it.

data: [chat.jsonl, {path: code.parquet, format: alpaca, weight: 2, rows: 1000, name: code}]
data: {train: […], stop: all, eval: {dev: dev.jsonl, hard: {path: hard.jsonl, format: alpaca}}}
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from attrs import evolve, frozen

from sftcore.config.data.section import DataSection, SampleBy, SourceSection, Stop
from sftcore.config.fields import config_fields
from sftcore.config.near_names import unknown_inside
from sftcore.config.selections import parse_choice
from sftcore.core.errors import OptionTypeError, RecipeError, SFTCoreError, nearest
from sftcore.core.options import structure
from sftcore.core.types import KINDS, Selection

_PATHS = str | list[str]
SOURCE_KEYS: dict[str, Any] = {
    "path": _PATHS, "name": str | None, "format": Any, "weight": float | None, "rows": int | None,
    "max_rows": int | None, "columns": list[str] | None, "sample_by": SampleBy | None, "config": str | None,
    "split": str,
}  # fmt: skip
SECTION_KEYS: dict[str, Any] = {
    "train": Any, "eval": Any, "eval_fraction": float | None, "config": str | None, "split": str, "eval_split": str,
    "streaming": bool, "stop": str | None, "rows": int | None, "max_rows": int | None, "eval_rows": int | None,
    "sample_by": SampleBy | None,
}  # fmt: skip
_ALIKE = {".jsonl": ".json", ".ndjson": ".json", ".tsv": ".csv"}
"""Endings of files that one source may hold together."""
_ROWS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
"""Endings of files that say themselves what a row is."""


def parse_data(value: Any, place: str, errors: list[SFTCoreError]) -> DataSection:
    """Parse the entry `data` of the recipe at `place`; what is wrong with it is added to `errors`."""
    found = _Parser(errors).section(value, f"{place}: data")
    return DataSection() if found is None else found


@frozen
class _Parser:
    """Reads the section, and goes on after errors so that all of them are reported."""

    errors: list[SFTCoreError]

    def section(self, value: Any, where: str) -> DataSection | None:
        spelled = where
        if isinstance(value, Mapping) and "path" in value and "train" not in value:
            own = {key: part for key, part in value.items() if key in SOURCE_KEYS or key not in SECTION_KEYS}
            value = {"train": own, **{key: part for key, part in value.items() if key not in own}}
        elif isinstance(value, Mapping):
            spelled = f"{where}.train"
        else:
            value = {"train": value}
        known = self._one_name(self._typed(value, SECTION_KEYS, where, "data"), where)
        if known.get("train") in (None, "", [], {}):
            if "train" not in known or len(value) > 1:
                what = 'the key "train" is missing.'
                self.errors.append(RecipeError(what, where=where, fix="Write data: {train: train.jsonl}."))
            else:
                self.errors.append(RecipeError("no data are named.", where=where, fix="Write data: train.jsonl."))
            return None
        general: dict[str, Any] = {key: known[key] for key in ("config", "split", "rows", "sample_by") if key in known}
        sources = self.sources(known["train"], spelled, general)
        evaluated = {**general, "split": known.get("eval_split", "test"), "rows": None}
        sets = self.eval_sets(known.get("eval"), f"{where}.eval", evaluated)
        made = DataSection(
            sources, sets, known.get("eval_fraction"), known.get("streaming", False), eval_rows=known.get("eval_rows")
        )
        return self._combined(made, known, where)

    def _one_name(self, known: dict[str, Any], where: str) -> dict[str, Any]:
        """The values with `rows` for `max_rows`, which are the same."""
        longer = known.pop("max_rows", None)
        if longer is not None and known.get("rows") is not None:
            what = "rows and max_rows are the same setting."
            self.errors.append(RecipeError(what, where=where, fix="Keep one of the two."))
        return known if longer is None else {**known, "rows": longer}

    def sources(self, value: Any, where: str, general: Mapping[str, Any]) -> tuple[SourceSection, ...]:
        """One source, or each of a list; `general` is what those that do not say it themselves take."""
        if isinstance(value, (str, Mapping)) or _is_one_source(value):
            found = [self._source(value, where, general)]
        elif isinstance(value, list):
            found = [self._source(one, f"{where}[{i}]", general) for i, one in enumerate(value)]
        else:
            what = f"expected a file, a list or a mapping, got {type(value).__name__} {value!r}."
            self.errors.append(OptionTypeError(what, where=where))
            return ()
        return self._told_apart([one for one in found if one is not None])

    def eval_sets(self, value: Any, where: str, general: Mapping[str, Any]) -> dict[str, tuple[SourceSection, ...]]:
        """The evaluation sets by name: one without a name, or those of a mapping that is not itself a source."""
        if value in (None, "", []):
            return {}
        if not isinstance(value, Mapping) or "path" in value:
            return {"": self.sources(value, where, general)}
        if not value:
            what, fix = "the mapping names no evaluation set.", "Write eval: {dev: dev.jsonl}, or drop eval."
            self.errors.append(RecipeError(what, where=where, fix=fix))
        if value and set(map(str, value)) <= {*SOURCE_KEYS}:
            what = f"the evaluation set has {', '.join(map(str, value))}, and no path."
            self.errors.append(RecipeError(what, where=where, fix="Write eval: {path: dev.jsonl, …}."))
            return {}
        found = {}
        for name, one in value.items():
            if not str(name).strip():
                what = "an evaluation set has an empty name."
                self.errors.append(RecipeError(what, where=where, fix="Write eval: {dev: dev.jsonl}."))
            elif one in (None, "", [], {}):
                what = f'the evaluation set "{name}" has no path.'
                self.errors.append(RecipeError(what, where=where, fix=f"Write eval: {{{name}: {name}.jsonl}}."))
            else:
                found[str(name)] = self.sources(one, f"{where}.{name}", general)
        return found

    def _source(self, value: Any, where: str, general: Mapping[str, Any]) -> SourceSection | None:
        if isinstance(value, Mapping):
            known = self._one_name(self._typed(value, SOURCE_KEYS, where, "source"), where)
        else:
            known = self._typed({"path": value}, {"path": _PATHS}, where, "source", inner=False)
        if not known.get("path"):
            if (isinstance(value, Mapping) and value.get("path") in (None, "", [])) or value in ("", []):
                what = "the source has no path."
                self.errors.append(RecipeError(what, where=where, fix="Write {path: train.jsonl, …}."))
            return None
        path = known["path"]
        given = {key: part for key, part in {**general, **known}.items() if part is not None and key != "format"}
        given["path"] = tuple(path) if isinstance(path, list) else path
        if "sample_by" not in known and not _may_be_text(path):
            given.pop("sample_by", None)
        if "columns" in given:
            given["columns"] = tuple(given["columns"])
        self._refuse_numbers(given, where)
        name = given.pop("name", "").strip()
        chosen = self._format(known.get("format"), f"{where}.format")
        shown = name or (path if isinstance(path, str) else f"{path[0]} and {len(path) - 1} more")
        return SourceSection(**given, name=shown, format=chosen, place=where, named=bool(name))

    def _refuse_numbers(self, given: Mapping[str, Any], where: str) -> None:
        weight, rows = given.get("weight"), given.get("rows")
        if weight is not None and not (0 < weight < math.inf):
            what = f"a weight is a number above 0, got {weight:g}."
            fix = "Remove the source if none of its rows are to be trained on."
            self.errors.append(RecipeError(what, where=f"{where}.weight", fix=fix))
        if rows is not None and rows < 1:
            what = f"rows is how many rows are read, at least 1, got {rows}."
            self.errors.append(RecipeError(what, where=f"{where}.rows", fix="Leave it out to read all rows."))
        if given.get("columns") == ():
            self.errors.append(RecipeError("columns names none.", where=f"{where}.columns", fix="Leave it out."))

    def _format(self, value: Any, where: str) -> Selection | None:
        try:
            found = parse_choice("format", value, where="")
        except SFTCoreError as error:
            error.where = where
            self.errors.append(error)
            return None
        return evolve(found[0], path=where) if found else None

    def _told_apart(self, sources: list[SourceSection]) -> tuple[SourceSection, ...]:
        """The sources with names that differ: a path that stands twice is numbered, a name that does is refused."""
        for name, count in Counter(one.name for one in sources if one.named).items():
            if count > 1:
                last = [one for one in sources if one.named and one.name == name][-1]
                what, fix = f'{count} sources have the name "{name}".', "Give each a name of its own."
                self.errors.append(RecipeError(what, where=f"{last.place}.name", fix=fix))
        seen: Counter[str] = Counter(one.name for one in sources if one.named)
        found = []
        for one in sources:
            if not one.named:
                seen[one.name] += 1
                one = evolve(one, name=one.name if seen[one.name] == 1 else f"{one.name} ({seen[one.name]})")
            found.append(one)
        return tuple(found)

    def _combined(self, made: DataSection, known: Mapping[str, Any], where: str) -> DataSection:
        """The section, once its keys are known to go together."""
        fraction, stop = made.eval_fraction, known.get("stop")
        if known.get("sample_by") and not any(one.sample_by for one in made.every):
            what = "sample_by says what a row of a .txt file is, and no source is one."
            self.errors.append(RecipeError(what, where=f"{where}.sample_by", fix="Leave it out."))
        if made.eval_rows is not None and made.eval_rows < 1:
            what = f"eval_rows is how many training rows are evaluated on instead, at least 1, got {made.eval_rows}."
            self.errors.append(RecipeError(what, where=where, fix="Leave it out to hold none back."))
        if made.eval_rows is not None and fraction is not None:
            what, fix = "eval_rows and eval_fraction contradict each other.", "Keep one of the two."
            self.errors.append(RecipeError(what, where=where, fix=fix))
        if fraction is not None and not 0 < fraction < 1:
            self.errors.append(RecipeError(f"eval_fraction must be between 0 and 1, got {fraction}.", where=where))
        named = "eval_fraction" if fraction is not None else "eval_rows"
        if made.held_back is not None and made.eval_sets:
            what, fix = f"eval and {named} contradict each other.", "Keep one of the two."
            self.errors.append(RecipeError(what, where=where, fix=fix))
        if made.held_back is not None and made.streaming:
            what = f"{named} does not work with streaming, because the whole stream would have to be read first."
            fix = "Name evaluation rows with eval, or drop streaming."
            self.errors.append(RecipeError(what, where=where, fix=fix))
        if stop is not None and stop not in get_args(Stop):
            what = f'stop is "first" or "all", got "{stop}".{nearest(stop, get_args(Stop))}'
            self.errors.append(RecipeError(what, where=f"{where}.stop"))
            stop = None
        weighted = any(one.weight is not None for one in made.every)
        if stop is not None and not weighted:
            what = "stop says where a mixture ends, and no source has a weight: the sources are read one after another."
            self.errors.append(RecipeError(what, where=f"{where}.stop", fix="Give the sources a weight, or drop stop."))
        return evolve(made, stop=stop or "first")

    def _typed(
        self, value: Mapping[str, Any], types: Mapping[str, Any], where: str, section: str, *, inner: bool = True
    ) -> dict[str, Any]:
        found = {}
        for key, given in value.items():
            if key not in types:
                top = ("model", "data", *KINDS, "block", *config_fields())
                self.errors.append(unknown_inside(section, str(key), types, where=where, given=value, top=top))
                continue
            try:
                found[key] = structure(given, types[key], path=f"{where}.{key}" if inner else where)
            except SFTCoreError as error:
                self.errors.append(error)
        return found


def _is_one_source(value: Any) -> bool:
    """Whether a list holds the files of one source: local paths whose endings go together."""
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        return False
    endings = {Path(one).suffix.lower() for one in value}
    return all(map(_looks_local, value)) and len({_ALIKE.get(ending, ending) for ending in endings}) == 1


def _may_be_text(path: str | list[str]) -> bool:
    paths = [path] if isinstance(path, str) else path
    return not any(suffix in _ROWS for one in paths for suffix in Path(one.lower()).suffixes[-2:])


def _looks_local(path: str) -> bool:
    special = path.startswith((".", "/", "~", "\\")) or any(sign in path for sign in "*?[")
    return special or bool(Path(path).suffix) or Path(path).exists()
