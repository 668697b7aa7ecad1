"""The errors: each says what is wrong, where, and how to mend it, and keeps these three parts as attributes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from attrs import Attribute

from sftcore.core.visible import message

if TYPE_CHECKING:
    from sftcore.core.types import Problem


def near_name(word: str, known: Iterable[str]) -> str:
    """The closest known name: one that is spelt almost so, or has the last part of the word, or is its first letter.

    >>> near_name("lorra", ["lora", "loss"]), near_name("lora_r", ["r", "lora_alpha"]), near_name("rank", ["r", "x"])
    ('lora', 'r', 'r')
    >>> near_name("lora_target", ["arguments", "target_modules"])
    'target_modules'
    """
    names, last = sorted(known), word.rpartition("_")[2]

    def alike(text: str, cutoff: float) -> str:
        return next(iter(difflib.get_close_matches(text, names, n=1, cutoff=cutoff)), "")

    letter = last[:1] if last[:1] in names else ""
    part = next((name for name in names if last in name.split("_")), "")
    return alike(word, 0.8) or part or alike(last, 0.6) or letter or alike(word, 0.6)


def nearest(word: str, known: Iterable[str]) -> str:
    """` Did you mean "…"?` for the closest known name, else an empty string."""
    found = near_name(word, known)
    return f' Did you mean "{found}"?' if found else ""


def quoted(names: Iterable[object]) -> str:
    """Names as `"a", "b"`, in the order given."""
    return ", ".join(f'"{name}"' for name in names)


def said_by(error: BaseException) -> str:
    """The class and the words of a stranger's error on one line without a full stop; long ones are cut."""
    try:  # behind attrs' words stand the field and the whole instance
        words = str(error.args[0] if any(isinstance(one, Attribute) for one in error.args[1:]) else error)
    except Exception:  # it cannot even say what is wrong
        words = ""
    text = " ".join(f"{type(error).__name__}: {words}".split()).rstrip(".: ")
    return text if len(text) <= 400 else f"{text[:200]} … {text[-200:]}"


class SFTCoreError(ValueError):
    """What is wrong, where (file, row, recipe path) and how to mend it."""

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(what)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        # rows, names of files and what other libraries say are quoted in errors, and errors are printed anywhere
        return message(f"{text} {self.fix}" if self.fix else text)


class RecipeError(SFTCoreError):
    """A recipe, an override or a configuration field is wrong."""


class UnknownKeyError(RecipeError):
    """A key that nobody reads; the one that was meant is offered, by default the nearest known one."""

    def __init__(self, key: str, known: Iterable[str], *, where: str, meant: str | None = None) -> None:
        self.key, self.known = key, tuple(known)
        listed = f" Known keys: {', '.join(sorted(self.known))}." if len(self.known) <= 20 else ""
        offer = nearest(key, self.known) if meant is None else f' Did you mean "{meant}"?' if meant else ""
        super().__init__(f'unknown key "{key}".', where=where, fix=(offer + listed).strip())


class OptionTypeError(RecipeError, TypeError):
    """A value of the wrong type."""


class PluginError(SFTCoreError):
    """A plugin cannot be used."""


class UnknownPluginError(PluginError):
    """No installed distribution offers a plugin of this kind and name."""


class DuplicatePluginError(PluginError):
    """Two distributions offer the same kind and name."""


class BlockedPluginError(PluginError):
    """The plugin was blocked with `--block`, `block` or `SFTCORE_BLOCK`."""


class UnavailablePluginError(PluginError):
    """The plugin is installed, but a distribution that it needs is not."""


class BrokenPluginError(PluginError):
    """The plugin does not import, or its hooks do not fit the specification."""


class FaultyPluginError(BrokenPluginError):
    """A hook of the plugin, or a function that it handed over, raised an error or gave what it may not.

    `origin` says whose hook it is, a `sftcore.core.door.Origin`, and `at` where its fault is, as `file:line`.
    """

    origin: Any = None
    at: str = ""


class ConflictError(SFTCoreError):
    """Two plugins claim one slot, or two settings contradict each other."""


class CheckError(SFTCoreError):
    """All problems that were found before any weight was read."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        head = f"{len(self.problems)} problems were found before any weight was read:" if len(self.problems) > 1 else ""
        super().__init__("\n".join(filter(None, [head, *(str(problem) for problem in self.problems)])))


class SettingsError(CheckError, RecipeError):
    """Several things are wrong with a recipe or with a configuration's fields."""


def raise_all(errors: Iterable[SFTCoreError]) -> None:
    """Raise an error as it is, and several as one.

    Raises:
        SFTCoreError: there is one.
        SettingsError: there are several.
    """
    found = list(errors)
    if len(found) == 1:
        raise found[0]
    if found:
        raise SettingsError(problems_of(found))


def problems_of(errors: Iterable[SFTCoreError]) -> list[Problem]:
    """The problems that errors are about; one error may be about several."""
    from sftcore.core.types import Problem

    found: list[Problem] = []
    for one in errors:
        found += one.problems if isinstance(one, CheckError) else [Problem(one.what, one.where, one.fix)]
    return found


class DataError(SFTCoreError):
    """A data set cannot be read, recognised or used."""


class RowError(DataError):
    """One row cannot be used.

    A formatter raises it without knowing which row it was given; the core adds data set and row number.
    """

    def __init__(self, what: str, *, fix: str = "", where: str = "", row: int | None = None) -> None:
        self.row = row
        super().__init__(what, where=where, fix=fix)

    def at(self, where: str, row: int) -> RowError:
        """The same error with its place: data set and row, counted from 0 as in `dataset[row]`."""
        self.where, self.row = f"{where} row {row}", row
        return self


class ModelError(SFTCoreError):
    """A model or tokenizer cannot be loaded, or does not do what the run needs."""


class TemplateStoppedError(ModelError):
    """A chat template took too long, or would have made too much text.

    It stops the run and not one row alone, since the template may do the same to the next. `row` is the one that it was
    given, if any.
    """

    row: int | None = None

    def at(self, where: str, row: int) -> TemplateStoppedError:
        """The same error with its place."""
        self.where, self.row = f"{where} row {row}", row
        return self


class DivergenceError(ModelError):
    """Training gave NaN or Inf, or its loss diverged; `step` is where, `rows` which rows of it, if they are known."""

    def __init__(self, what: str, *, step: int, rows: Sequence[int] = (), where: str = "", fix: str = "") -> None:
        self.step, self.rows = step, tuple(rows)
        super().__init__(what, where=where, fix=fix)


class WriteError(SFTCoreError):
    """A file cannot be written: the disk is full, or the folder may not be written to."""


class CheckpointError(SFTCoreError):
    """A checkpoint or the model cannot be written, or a checkpoint is missing or damaged."""


class ResumeError(CheckpointError):
    """A checkpoint is of another run: data, template, plugins or settings have changed since."""
