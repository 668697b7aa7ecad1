"""Turns a configuration of another tool into a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from attrs import frozen

from sftcore.core.errors import RecipeError, SFTCoreError, nearest
from sftcore.importers.draft import Draft, Line
from sftcore.importers.peers import axolotl, llamafactory, swift, torchtune, trl, unsloth
from sftcore.importers.peers.shared import beside
from sftcore.importers.read.python import read_python
from sftcore.importers.read.shell import Script, read_shell
from sftcore.importers.read.source import ACCELERATE, LAUNCHER, Source, dotted
from sftcore.importers.read.yaml11 import read_yaml
from sftcore.importers.written import values, written
from sftcore.util.secrets import masked
from sftcore.util.shown import shortened

SHELL, PYTHON, YAML = (
    (".sh", ".bash", ".zsh", ".slurm", ".sbatch", ".txt"),
    (".py", ".ipynb"),
    (".yaml", ".yml", ".json"),
)


@frozen
class Peer:
    """A tool: how it is called, the version whose defaults are written out, and what fills a draft in."""

    title: str
    version: str
    fill: Callable[[Draft, Path], None] | None = None
    fill_python: Callable[[Draft], None] | None = None


PEERS: Mapping[str, Peer] = {
    "trl": Peer("TRL", trl.VERSION, lambda draft, _: trl.fill(draft), trl.fill_python),
    "axolotl": Peer("Axolotl", axolotl.VERSION, lambda draft, _: axolotl.fill(draft)),
    "llamafactory": Peer("LLaMA-Factory", llamafactory.VERSION, llamafactory.fill),
    "unsloth": Peer("Unsloth", unsloth.VERSION, None, unsloth.fill),
    "swift": Peer("ms-swift", swift.VERSION, lambda draft, _: swift.fill(draft)),
    "torchtune": Peer("torchtune", torchtune.VERSION, lambda draft, _: torchtune.fill(draft)),
}


@frozen
class Brought:
    """A recipe of another tool's file: its text, its values, what became of each line, and what was left of a GPU's."""

    text: str
    values: dict[str, object]
    account: tuple[Line, ...]
    left_of_gpu: tuple[str, ...]


def bring(name: str, file: Path, *, without_gpu: bool = False) -> Brought:
    """The recipe that a tool's configuration becomes. Nothing of the file is run.

    Args:
        name: the tool, one of PEERS.
        file: a YAML or JSON file, a shell script or a Python script.
        without_gpu: leave out what needs a GPU, and name it.

    Raises:
        RecipeError: the tool is not known, or the file cannot be read.
    """
    if name not in PEERS:
        raise RecipeError(f'there is no import from "{name}".{nearest(name, PEERS)}', fix=f"Known: {', '.join(PEERS)}.")
    peer = PEERS[name]
    kind = _kind(file)
    fill = peer.fill_python if kind == "python" else peer.fill
    if fill is None:
        takes = "a Python script" if kind != "python" else "YAML or the options of a shell script"
        raise RecipeError(f"{peer.title} is set up by {takes}.", where=str(file), fix="Name that file.")
    source = read_python(file) if kind == "python" else _read(file, kind)
    draft = Draft(source, name, peer.version, without_gpu)
    draft.peer = peer.title
    _fill(draft, peer, file, kind)
    draft.finish()
    text = written(draft, file=file.name, verb=name)
    return Brought(text, values(draft), tuple(draft.account), tuple(draft.left_of_gpu))


def _fill(draft: Draft, peer: Peer, file: Path, kind: str) -> None:
    """Fill the draft in; a value of a kind that the tool does not take is an error that names its setting."""
    try:
        if kind == "python" and peer.fill_python is not None:
            peer.fill_python(draft)
        elif peer.fill is not None:
            peer.fill(draft, file)
    except SFTCoreError:
        raise
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError):
        what = (
            f"{dotted(draft.asked)} is {shortened(masked(draft.get(draft.asked)))}, which {peer.title} does not take."
        )
        raise RecipeError(what, where=str(file), fix="Mend it there, or take it out.") from None


def _kind(file: Path) -> str:
    if file.suffix.lower() in PYTHON:
        if file.suffix.lower() == ".ipynb":
            raise RecipeError("a notebook is not read.", where=str(file), fix="Save it as a Python script.")
        return "python"
    if file.suffix.lower() in YAML:
        return "yaml"
    if file.suffix.lower() in SHELL:
        return "shell"
    raise RecipeError(
        f"{file.name} is not YAML, JSON, a shell script or Python.",
        where=str(file),
        fix="Name the training's own file.",
    )


def _read(file: Path, kind: str) -> Source:
    if kind == "yaml":
        return read_yaml(file)
    script = read_shell(file)
    for source, under in _beside(script, file):
        script.source.add(source, under=(under,) if under else ())
    return script.source


def _beside(script: Script, file: Path) -> list[tuple[Source, str]]:
    """The files that the command names: its configuration, and accelerate's."""
    found = []
    named = [str(one) for one, _ in script.files if Path(one).suffix.lower() in YAML]
    for key in ("config",):
        if isinstance(value := script.source.values.get(key), str) and Path(value).suffix.lower() in YAML:
            named.append(value)
            place = script.source.places.pop((key,))
            del script.source.values[key]
            script.source.places[(LAUNCHER, "config_file")] = place
            script.source.values.setdefault(LAUNCHER, {})["config_file"] = value
    for name in named:
        if path := beside(file, name):
            found.append((read_yaml(path, name=name), ""))
    launcher = script.source.values.get(LAUNCHER, {})
    if isinstance(name := launcher.get("config_file"), str) and (path := beside(file, name)) and name not in named:
        found.append((read_yaml(path, name=name), ACCELERATE))
    return found
