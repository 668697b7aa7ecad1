"""Lines that map the columns of a data set to a format, tried on its first rows before they are offered."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import frozen

from sftcore.core.errors import SFTCoreError
from sftcore.core.registry import Bound
from sftcore.core.types import Example, Row

TRIED = 20
"""On how many rows a suggestion is tried."""


@frozen
class Suggestion:
    """A format with the options by which it reads the rows; `is_conversation` None where no row could be tried."""

    bound: Bound
    is_conversation: bool | None = None

    @property
    def line(self) -> str:
        """What a recipe needs."""
        return f"format: {{{self.bound.entry.name}: {{{_inner(self.bound.selection.options)}}}}}"

    @property
    def python(self) -> str:
        """What SFTConfig needs."""
        options = json.dumps(dict(self.bound.selection.options), ensure_ascii=False)
        return f'SFTConfig(plugins={{"format": {{"{self.bound.entry.name}": {options}}}}})'


def suggested(
    offers: Sequence[tuple[Bound, Mapping[str, Any]]],
    read: Callable[[Bound, Row], Sequence[Example]],
    bound_with: Callable[[Bound, Mapping[str, Any]], Bound],
    rows: Sequence[Row] = (),
    has_template: bool | None = None,
) -> tuple[list[Suggestion], str]:
    """The offers that read the rows, each a format with options for it, or why the first one does not.

    With a chat template, conversations are offered alone where there are any, and without one, texts.
    """
    found, why = [], ""
    for one, options in offers:
        try:
            bound = bound_with(one, options)
        except SFTCoreError:
            continue
        (examples, refused), tried = _examples(bound, rows[:TRIED], read), len(rows[:TRIED])
        if 2 * len(examples) > tried or not tried:  # some rows may lack something, whatever reads them
            found.append(Suggestion(bound, _is_conversation(examples[0]) if examples else None))
        elif refused and not why:
            why = f"{Suggestion(bound).line} does not read them: {refused}"
    if has_template is not None:
        found = [one for one in found if one.is_conversation in (None, has_template)] or found
    return found, "" if found else why


def spelled(found: Sequence[Suggestion], *, in_python: bool) -> str:
    """The suggestions for an error, empty where there are none."""
    shown = [one.python if in_python else one.line for one in found]
    if {True, False} <= {one.is_conversation for one in found}:
        which = {True: " (a conversation)", False: " (texts, for a model without a chat template)", None: ""}
        shown = [line + which[one.is_conversation] for line, one in zip(shown, found, strict=True)]
    if not shown:
        return ""
    also = f" (in a recipe: {found[0].line})" if in_python else ""
    return f"Map them: {' or '.join(shown)}{also}"


def _examples(
    bound: Bound, rows: Sequence[Row], read: Callable[[Bound, Row], Sequence[Example]]
) -> tuple[list[Example], str]:
    """The first example of each row that the format reads, and why it refuses the first that it does not."""
    found: list[Example] = []
    why = ""
    for row in rows:
        try:
            found += read(bound, row)[:1]
        except SFTCoreError as error:
            why = why or error.what
    return found, why


def _is_conversation(example: Example) -> bool:
    return example.messages is not None or (example.prompt is not None and not isinstance(example.prompt, str))


def _inner(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in options.items())
