"""Installed versions against what sftcore and the libraries themselves require, from metadata alone."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator, Sequence

from attrs import frozen
from packaging.markers import UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from sftcore.core.discovery import normalized
from sftcore.tools.doctor.line import Line, found_in
from sftcore.util.versions import LIBRARIES, TESTED

AREA = "versions"
_IMPORTED = ("torchvision", "torchaudio", "torchao", "tokenizers", "triton")
"""Beside our own requirements: what torch and transformers import wherever it is installed."""
_OFTEN = (
    "unsloth", "unsloth-zoo", "trl", "deepspeed", "xformers", "vllm", "bitsandbytes", "liger-kernel", "flash-attn",
    "llmcompressor", "kernels",
)  # fmt: skip
"""What is often installed beside, and holds other libraries back."""


@frozen
class Unmet:
    """A requirement that an installed distribution does not meet."""

    by: str
    requirement: Requirement
    found: str | None

    @property
    def target(self) -> str:
        """The normalised name of what is required."""
        return normalized(self.requirement.name)

    def __str__(self) -> str:
        found = "which is not installed" if self.found is None else f"and {self.found} is installed"
        return f"{self.by} needs {self.requirement.name}{self.requirement.specifier}, {found}"


def version_lines(*, needed: Sequence[str] = ()) -> list[Line]:
    """Bounds that are not kept, and pairs of libraries that do not go together, each with the one package to change.

    Args:
        needed: further distributions that the run needs; what is wrong between others is a warning.
    """
    own = [one for one in requirements("sftcore") if _applies(one)]
    matters = {normalized(one.name) for one in own} | set(_IMPORTED) | {normalized(one) for one in needed}
    broken = [one for one in unmet("sftcore", own) if one.found is None or not _meets(one)]
    lines = [Line(AREA, "error", f"{one}.", f'Run: pip install "{one.requirement}"') for one in broken]
    lines += _pairs(own, matters, {one.target for one in broken})
    lines += _builds()
    named = [f"{name} {version}" for name in LIBRARIES if (version := version_of(name))]
    return found_in(AREA, [*lines, *_untested()], f"Python {platform.python_version()}, {', '.join(named)}")


def version_of(name: str) -> str | None:
    """The installed version, also where it changed since this process began; None where there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def requirements(name: str) -> list[Requirement]:
    """What an installed distribution requires, with its extras; nothing where its metadata cannot be read."""
    try:
        texts = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = []
    for text in texts:
        try:
            found.append(Requirement(text))
        except InvalidRequirement:
            continue
    return found


def unmet(by: str, wanted: Sequence[Requirement]) -> Iterator[Unmet]:
    """Those of the requirements that what is installed does not meet."""
    for one in wanted:
        answer = Unmet(by, one, version_of(one.name))
        if answer.found is None or not _meets(answer):
            yield answer


def _applies(one: Requirement, extra: str = "") -> bool:
    try:
        return one.marker is None or one.marker.evaluate({"extra": extra})
    except UndefinedEnvironmentName:
        return False


def _meets(one: Unmet) -> bool:
    try:
        # a build of 2.13 with a label of its own, such as 2.13.0+cpu, is that version
        return one.requirement.specifier.contains(Version(one.found or ""), prereleases=True)
    except InvalidVersion:
        return False


def _pairs(own: Sequence[Requirement], matters: set[str], said: set[str]) -> Iterator[Line]:
    """Requirements that installed libraries have of each other and that are not kept, one line for each to change."""
    known = {normalized(name): name for name in (*LIBRARIES, *(one.name for one in own), *_IMPORTED, *_OFTEN)}
    by_target: dict[str, list[Unmet]] = {}
    for name in known.values():
        if name == "sftcore" or (version := version_of(name)) is None:
            continue
        wanted = [one for one in requirements(name) if normalized(one.name) in known and _applies(one)]
        for one in unmet(f"{name} {version}", wanted):
            if one.found is not None and one.target not in said:
                by_target.setdefault(one.target, []).append(one)
    for target, found in by_target.items():
        is_error = any(_name(one.by) in matters for one in found)
        bounds = [one for one in own if normalized(one.name) == target]
        fix = _change(target, found, bounds[0].specifier if bounds else SpecifierSet())
        yield Line(AREA, "error" if is_error else "warning", f"{'; '.join(map(str, found))}.", fix)


def _name(by: str) -> str:
    return normalized(by.partition(" ")[0])


def _change(target: str, found: Sequence[Unmet], bounds: SpecifierSet) -> str:
    """The one package to change: what is required, within all bounds, unless that is torch or has no version left."""
    together = bounds
    for one in found:
        together = together & one.requirement.specifier
    if target != "torch" and _can_be_met(together):
        return f'Run: pip install "{found[0].requirement.name}{together}"'
    others = sorted({_name(one.by) for one in found})
    given = found[0]
    beside = f'"{given.requirement.name}=={given.found}"'
    if len(others) == 1:
        return f"Run: pip install --upgrade {others[0]} {beside}, or remove {others[0]}: pip uninstall {others[0]}"
    return f"Change {' and '.join(others)} to versions that go with {given.requirement.name} {given.found}."


def _can_be_met(together: SpecifierSet) -> bool:
    """Whether a version that one of the bounds names, or the next patch after it, lies within all of them."""
    named = [one.version.removesuffix(".*") for one in together if one.operator != "!="]
    tried = [Version(f"{text}{more}") for text in named for more in ("", ".1")] if named else [Version("0")]
    return any(together.contains(one, prereleases=True) for one in tried)


def _builds() -> Iterator[Line]:
    """Builds of torch's companions for another accelerator than torch's own."""
    torch = _build("torch")
    for name in ("torchvision", "torchaudio"):
        own = _build(name)
        if torch and own and torch != own:
            yield Line(
                AREA,
                "error",
                f"torch {version_of('torch')} is built for {torch}, and {name} {version_of(name)} for {own}.",
                f"Install the {name} that was built for {torch}, from where torch came.",
            )


def _build(name: str) -> str:
    """The label of a build: `cpu`, `cu128`, `rocm6.3`; empty where it has none."""
    return (version_of(name) or "").partition("+")[2]


def _untested() -> Iterator[Line]:
    found = version_of("transformers")
    if found and Version(found).release[:2] > Version(TESTED[1]).release and Version(found).major < 6:
        yield Line(
            AREA,
            "warning",
            f"transformers {found} is newer than {TESTED[1]}, the newest that sftcore was tested with.",
            f'If something fails: pip install "transformers=={TESTED[1]}.*"',
        )
