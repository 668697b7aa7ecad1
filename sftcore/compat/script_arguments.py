"""TRL's parser, arguments and data mixtures for training scripts, read from the command line and YAML files."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import itertools
import logging
import os
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import HfArgumentParser  # noqa: TID253 - scripts alone import this module

from sftcore.compat.loaded import DatasetConfig, loaded
from sftcore.config import yaml12
from sftcore.config.settings.older_names import OLDER, use_current_names
from sftcore.core.errors import ConflictError, DataError, OptionTypeError, RecipeError, UnknownKeyError, nearest, quoted
from sftcore.data.mixing.mixture import DataSource, Mixture
from sftcore.data.rules.numbers import numbered
from sftcore.data.source.load import split_rows

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

SPLIT_SEED = 42
"""Seed of the test split, so that `get_dataset` always splits off the same rows."""


@dataclass
class ScriptArguments:
    """The data set on which a script trains."""

    dataset_name: str | None = None
    """Hub id, folder or file of the data set; ignored if `datasets` is given."""
    dataset_config: str | None = None
    """Configuration of the data set."""
    dataset_train_split: str = "train"
    """Split used for training."""
    dataset_test_split: str = "test"
    """Split used for evaluation."""
    dataset_streaming: bool = False
    """Stream the data set instead of loading it."""
    ignore_bias_buffers: bool = False
    """Exclude boolean buffers from DDP's synchronisation, for models that fail on them."""


@dataclass
class DatasetMixtureConfig:
    """Several data sets to train on together, usually given in a YAML file."""

    datasets: list[DatasetConfig] = field(default_factory=list)
    """The data sets, each a mapping with path, name, data_dir, data_files, split, columns and fraction."""
    streaming: bool = False
    """Stream the data sets instead of loading them."""
    test_split_size: float | None = None
    """Fraction or number of rows to split off for evaluation."""

    def __post_init__(self) -> None:
        self.datasets = [_dataset_config(one, i) for i, one in enumerate(self.datasets)]


def get_dataset(mixture_config: DatasetMixtureConfig) -> DatasetDict:
    """Load the data sets of a mixture and concatenate them as `train`; a part that is split off becomes `test`.

    Raises:
        DataError: a data set cannot be loaded, their columns differ, or the mixture names none.
        ConflictError: only some data sets have a fraction, or fractions or a test split are asked of streams.
    """
    return _concatenated(_parts(mixture_config), mixture_config)


def get_sources(mixture_config: DatasetMixtureConfig) -> dict[str, Any]:
    """The same rows as those of `get_dataset`, also where the data sets differ in their columns.

    `train`, and `test` where a part is split off, are then each a `Mixture`, whose sources have formats of their own.

    Raises:
        DataError, ConflictError: as in `get_dataset`.
    """
    parts = _parts(mixture_config)
    # the types of a stream may not be known, and `datasets` would take those of its first rows
    if len(parts) == 1 or (parts[0].features is not None and len({str(part.features) for part in parts}) == 1):
        return dict(_concatenated(parts, mixture_config))
    names = [f"{one.path} {one.name}" if one.name else one.path for one in mixture_config.datasets]
    names = [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names)]
    if (size := mixture_config.test_split_size) is None:
        found = [DataSource(part, name) for part, name in zip(parts, names, strict=True) if _may_have_rows(part)]
        return {"train": Mixture(found)}
    lengths = [len(part) for part in parts]
    split = split_rows(sum(lengths), _test_size(size, sum(lengths)), SPLIT_SEED)
    made = {}
    for which, rows in zip(("train", "test"), split, strict=True):
        sources, start = [], 0
        for part, name, length in zip(parts, names, lengths, strict=True):
            own = sorted(row - start for row in rows if start <= row < start + length)
            sources += [DataSource(numbered(part, own), name)] if own else []
            start += length
        made[which] = Mixture(sources)
    return made


def _may_have_rows(part: Any) -> bool:
    """Whether a data set is a stream, or has rows: none are taken of one whose fraction is 0."""
    return not hasattr(part, "__len__") or len(part) > 0


def _parts(mixture_config: DatasetMixtureConfig) -> list[Any]:
    """The data sets of a mixture, each with the rows that are taken of it."""
    chosen = mixture_config.datasets
    fractions = [one.fraction for one in chosen if one.fraction is not None]
    if fractions and len(fractions) < len(chosen):
        raise ConflictError(
            "only some data sets have a fraction.", where="datasets", fix="Give a fraction for all of them or for none."
        )
    if mixture_config.streaming and (fractions or mixture_config.test_split_size is not None):
        what = "fraction" if fractions else "test_split_size"
        raise ConflictError(
            f"{what} needs the number of rows, which is not known for streams.", fix=f"Leave out {what}."
        )
    if not chosen:
        raise DataError(
            "the mixture does not name any data set.",
            where="datasets",
            fix="Name one: --dataset_name train.jsonl, or in a YAML file datasets: [{path: train.jsonl}]",
        )
    parts = [loaded(one, streaming=mixture_config.streaming) for one in chosen]
    return list(_shares(parts, fractions)) if fractions else parts


def _concatenated(parts: Sequence[Any], mixture_config: DatasetMixtureConfig) -> DatasetDict:
    import datasets

    try:
        whole = datasets.concatenate_datasets(parts) if len(parts) > 1 else parts[0]
    except ValueError as error:
        raise DataError(
            f"the data sets cannot be concatenated: {error}",
            where="datasets",
            fix="Choose the same columns from each with `columns`, or pass the data sets to SFTTrainer as a list.",
        ) from error
    if (size := mixture_config.test_split_size) is not None:
        return whole.train_test_split(test_size=_test_size(size, len(whole)), seed=SPLIT_SEED)
    return datasets.DatasetDict({"train": whole})


class TrlParser(HfArgumentParser):  # type: ignore[misc]
    """`transformers.HfArgumentParser` that also reads a YAML file given by `--config FILE`.

    The file's values replace the defaults, and the command line overrides the file. A mapping `env` in the file sets
    environment variables. The help texts are the docstrings below the fields.

    Args:
        dataclass_types: one or several dataclasses; each field becomes an option.
        kwargs: further arguments for `argparse.ArgumentParser`.
    """

    def __init__(self, dataclass_types: Any = None, **kwargs: Any) -> None:
        super().__init__(dataclass_types, **kwargs)
        for one in self.dataclass_types:
            if any(found.name == "config" for found in dataclasses.fields(one)):
                raise ConflictError(
                    f'{one.__name__} has a field "config", but --config is the option for the YAML file.',
                    fix="Rename the field.",
                )
        documented = {name: text for one in self.dataclass_types for name, text in _documented(one)}
        for action in self._actions:
            if action.help is None and action.dest in documented:
                action.help = documented[action.dest].replace("%", "%%")

    def parse_args_and_config(
        self,
        args: Iterable[str] | None = None,
        return_remaining_strings: bool = False,
        fail_with_unknown_args: bool = True,
        separate_remaining_strings: bool = False,
    ) -> tuple[Any, ...]:
        """Make an instance of each dataclass from the command line and the file that it names.

        Args:
            args: the command line; None is that of the process.
            return_remaining_strings: also return a list of unknown arguments, with the file's as `--key value`.
            fail_with_unknown_args: refuse unknown keys in the file.
            separate_remaining_strings: return two such lists, one for the file and one for the command line.

        Raises:
            RecipeError: the file is not a YAML mapping, or an option of the command line is not known.
            UnknownKeyError: a key of the file is not known.
        """
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        first.add_argument("--config", nargs="?", const="")
        given, words = first.parse_known_args(None if args is None else list(args))
        path = given.config
        values = {} if path is None else self._current(_read_config(path), where=path)
        older, words = self._older(words)
        values |= self._current(older, where="command line")
        from_file = self.set_defaults_with_config(**values)
        if from_file and fail_with_unknown_args and not return_remaining_strings:
            raise UnknownKeyError(from_file[0].removeprefix("--"), self._names(), where=path)
        *parsed, from_words = self.parse_args_into_dataclasses(args=words, return_remaining_strings=True)
        if return_remaining_strings:
            rest = (from_file, from_words) if separate_remaining_strings else (from_file + from_words,)
            return (*parsed, *rest)
        if from_words:
            raise RecipeError(
                f"the command line has unknown arguments: {quoted(from_words)}."
                f"{nearest(from_words[0].lstrip('-').partition('=')[0], self._names())}",
                fix="Use --help to list all options.",
            )
        return tuple(parsed)

    def set_defaults_with_config(self, **kwargs: Any) -> list[str]:
        """Make these values defaults of the options, and return unknown ones as `--key value`."""
        for action in self._actions:
            if action.dest in kwargs:
                action.default, action.required = kwargs[action.dest], False
        known = self._names()
        return [word for key, value in kwargs.items() if key not in known for word in (f"--{key}", str(value))]

    def _older(self, words: list[str]) -> tuple[dict[str, Any], list[str]]:
        """The options of a command line that stand under an older name, with their values, and what is left of it."""
        found: dict[str, list[str]] = {}
        left: list[str] = []
        into = left
        for word in words:
            name, equals, value = word.removeprefix("--").partition("=")
            name = name.replace("-", "_")
            if not word.startswith("--"):
                into.append(word)
            elif self._is_older(name):
                into = found[name] = [value] if equals else []
            else:
                into = left
                into.append(word)
        texts = {name: " ".join(given) if given else "true" for name, given in found.items()}
        return {name: yaml12.load(text, where=f"--{name}") for name, text in texts.items()}, left

    def _current(self, values: dict[str, Any], *, where: str) -> dict[str, Any]:
        """The values, with older names of SFTConfig's fields replaced."""
        older = {name: value for name, value in values.items() if self._is_older(name)}
        use_current_names(older, where=where)
        return {**{name: value for name, value in values.items() if not self._is_older(name)}, **older}

    def _is_older(self, name: str) -> bool:
        """Whether it is the older name of a field of SFTConfig, where that is among the dataclasses."""
        return name in OLDER and name not in self._names() and "max_length" in self._names()

    def _names(self) -> list[str]:
        return [action.dest for action in self._actions]


def init_zero_verbose() -> None:
    """Log only errors, in colour, and send warnings to the log; call it at the start of a script."""
    from rich.logging import RichHandler

    logging.basicConfig(format="%(message)s", datefmt="[%X]", handlers=[RichHandler()], level=logging.ERROR)

    def to_log(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
    ) -> None:
        logging.warning("%s:%s: %s: %s", filename, lineno, category.__name__, message)

    warnings.showwarning = to_log


def _dataset_config(given: Any, index: int) -> DatasetConfig:
    if isinstance(given, DatasetConfig):
        return given
    if not isinstance(given, dict):
        raise OptionTypeError(f"a data set must be a mapping, got {given!r}.", where=f"datasets[{index}]")
    known = [one.name for one in dataclasses.fields(DatasetConfig)]
    for key in given:
        if key not in known:
            raise UnknownKeyError(key, known, where=f"datasets[{index}]")
    if "path" not in given:
        raise RecipeError(
            "the data set has no path.", where=f"datasets[{index}]", fix="Name its path: {path: train.jsonl}"
        )
    return DatasetConfig(**given)


def _test_size(size: float, rows: int) -> float | int:
    """A share below 1, or a whole number of rows, of which some are left to train on.

    Raises:
        DataError: it is neither.
    """
    count = size if size < 1 else int(size)
    if count <= 0 or count != size or count >= rows:
        raise DataError(
            f"test_split_size is a share between 0 and 1, or a number of rows below the {rows:,} that there are, "
            f"got {size:g}.",
            where="datasets",
        )
    return count


def _shares(parts: Sequence[Dataset], fractions: Sequence[float]) -> Iterator[Dataset]:
    """The first rows of each set, in the given proportions and as many as possible without repeating a row."""
    if min(fractions) < 0 or not sum(fractions):
        raise DataError("fractions must be 0 or more, and at least one of them above 0.", where="datasets")
    shares = [fraction / sum(fractions) for fraction in fractions]
    total = min(len(part) / share for part, share in zip(parts, shares, strict=True) if share)
    for part, share in zip(parts, shares, strict=True):
        yield part.select(range(round(share * total)))


def _read_config(path: str) -> dict[str, Any]:
    if not path:
        raise RecipeError("--config needs a file.", fix="Write --config FILE.")
    if not Path(path).is_file():
        raise RecipeError("there is no such file.", where=f"--config {path}")
    values = yaml12.load(Path(path).read_text(encoding="utf-8"), where=path)
    if not isinstance(values, dict):
        raise RecipeError("the file must contain a mapping of options to values.", where=path)
    environment = values.pop("env", None) or {}
    if not isinstance(environment, dict):
        raise OptionTypeError("env must be a mapping of names to values.", where=path)
    os.environ.update({str(name): str(value) for name, value in environment.items()})
    return values


def _documented(one: type) -> Iterator[tuple[str, str]]:
    """The names of a dataclass's fields with the docstrings below them, including those of its base classes."""
    for base in reversed(one.__mro__):
        try:
            body: Any = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        except (OSError, TypeError, SyntaxError):  # a class defined at a prompt has no source
            continue
        for declared, below in itertools.pairwise(body):
            text = getattr(getattr(below, "value", None), "value", None)
            if isinstance(declared, ast.AnnAssign) and isinstance(text, str):
                yield ast.unparse(declared.target), text
