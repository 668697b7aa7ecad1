"""Shell scripts as text: the command that trains, with its options, and nothing is run.

Line continuations, quotes, and variables that the same file sets to plain texts are followed. What a command, a loop or
the caller would put there (`$(…)`, `$1`) is not known, and is named.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from attrs import define, field

from sftcore.core.errors import RecipeError
from sftcore.importers.read.source import ENVIRONMENT, LAUNCHER, Place, Source, Unread, text_of
from sftcore.importers.read.words import Command, Word, commands
from sftcore.importers.read.yaml11 import scalar

_PROGRAM = re.compile(
    r"(?:^|/)(?:python[\d.]*|torchrun|accelerate(?:-launch)?|deepspeed|trl|swift|megatron|axolotl|tune|"
    r"llamafactory-cli|lmf|sftcore|uv|poetry|pdm|conda|srun|mpirun|env|nohup|time|sudo)$"
)
_VERB = re.compile(r"^(?:sft|pt|train|run)$|\.py$|^[\w.]+\.(?:train|sft|cli)(?:\.\w+)*$")
_PROCESSES = ("nproc_per_node", "num_processes", "num_gpus", "nproc-per-node", "num-processes", "num-gpus")


@define
class Script:
    """The command of a script that trains.

    `program` are the words up to the script or the verb, `files` what follows it without an option's name.
    """

    source: Source = field(factory=Source)
    program: tuple[str, ...] = ()
    files: list[tuple[str, Place]] = field(factory=list)


def read_shell(path: Path) -> Script:
    """The training command of a script: the one with most options.

    Raises:
        RecipeError: no command of the file has options.
    """
    return read_command(text_of(path), str(path))


def read_command(text: str, where: str) -> Script:
    """The same for a script's text."""
    found = commands(text)
    candidates = [
        one for one in found if any(word.text.startswith("--") or _VERB.search(word.text) for word in one.words)
    ]
    if not candidates:
        raise RecipeError("no command in this script has options.", where=where, fix="Name the script that trains.")
    chosen = max(candidates, key=lambda one: (_trains(one), sum(word.text.startswith("--") for word in one.words)))
    script = Script()
    for one in found:
        _environment(script.source, one, chosen)
    _arguments(script, chosen)
    return script


def _trains(command: Command) -> bool:
    return bool(command.words) and bool(_PROGRAM.search(command.words[0].text))


def _environment(source: Source, command: Command, chosen: Command) -> None:
    """Variables that are set for the commands, and other commands, which are not run."""
    for name, word in command.assigned:
        if command is chosen or command.exported:
            source.set((ENVIRONMENT, name), word.text if word.known else "(not known)", Place(word.line))
    if command is not chosen and command.words and not command.harmless:
        shown = " ".join(word.text for word in command.words)
        source.unread.append(Unread(Place(command.words[0].line), shown, "another command of the script, not run"))


def _arguments(script: Script, command: Command) -> None:
    words = command.words
    at = next((i for i, word in enumerate(words) if _VERB.search(word.text) and not _is_value(words, i)), 0)
    script.program = tuple(word.text for word in words[: at + 1])
    _options(script.source, words[:at], (LAUNCHER,), [])
    _options(script.source, words[at + 1 :], (), script.files)


def _is_value(words: list[Word], i: int) -> bool:
    """Whether a word is the value of the option before it, as `--config_file x.py` has."""
    before = words[i - 1].text if i else ""
    return before.startswith("--") and "=" not in before and before not in ("--module", "--standalone")


def _options(source: Source, words: list[Word], under: tuple[str, ...], files: list[tuple[str, Place]]) -> None:
    """Options of the form `--key value…`, `--key=value`, `--flag`, and `key=value` of OmegaConf and torchtune."""
    i = 0
    while i < len(words):
        word = words[i]
        i += 1
        match = re.match(r"-{1,2}([A-Za-z][\w.-]*)(?:=(.*))?$", word.text, re.DOTALL)
        if match is None:
            pair = re.match(r"([A-Za-z_][\w.]*)=(.*)$", word.text, re.DOTALL) if not under else None
            if pair and word.known:
                source.set(tuple(pair[1].split(".")), _value(pair[2]), Place(word.line))
            elif pair:
                source.not_known(tuple(pair[1].split(".")), word.text, Place(word.line))
            elif not under:
                files.append((word.text, Place(word.line)))
            continue
        values = [] if match[2] is None else [Word(match[2], word.line, word.known)]
        single = match[2] is not None
        while i < len(words) and not single and not re.match(r"-{1,2}[A-Za-z]", words[i].text):
            if values and not under and re.match(r"[A-Za-z_][\w.]*=", words[i].text):
                break  # a setting of OmegaConf's kind, behind an option's value
            values.append(words[i])
            i += 1
        if under and len(values) > 1:  # a launcher's options have one value
            i -= len(values) - 1
            del values[1:]
        _option(source, (*under, match[1].replace("-", "_")), values, word)


def _option(source: Source, key: tuple[str, ...], values: list[Word], word: Word) -> None:
    place = Place(word.line)
    if not all(value.known for value in values):
        source.not_known(key, f"{key[-1]}: {' '.join(value.text for value in values)}", place)
        return
    if key[-1] in _PROCESSES:
        key = (*key[:-1], "num_processes")
    elif not values and key[-1].startswith("no_") and len(key) == 1 and key[-1] not in ("no_cuda",):
        source.set((key[-1][3:],), False, place)
        return
    read = [value.text if value.quoted else _value(value.text) for value in values]
    source.set(key, True if not read else read[0] if len(read) == 1 else read, place)


def _value(text: str) -> Any:
    return text if text[:1] in ("{", "[") else scalar(text)
