"""Inspects a whole data set row by row without training: what a run would do with it, and what looks wrong in it."""

from __future__ import annotations

import itertools
import re
import statistics
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Any

from attrs import define, field

from sftcore.check.findings import Findings, Location
from sftcore.check.images import Images, Media, identity_of, with_broken_media
from sftcore.check.inspect import Inspector, Inspectors
from sftcore.check.near import NearRows, Seen
from sftcore.check.row_list import RowList
from sftcore.check.set_report import Counts, FileReport, Role, SetReport, Tokens
from sftcore.check.text import LONG_CHARACTERS, Words, answer_of, text_faults, turn_faults, whole_of, words_of
from sftcore.core.errors import ConflictError, DataError, RowError, SFTCoreError
from sftcore.core.types import IGNORED, Example, Row, TokenizedRow
from sftcore.data.account.table import BROKEN, CUT, DROPPED, KEPT, REFUSED
from sftcore.data.pipeline import Inspected
from sftcore.data.source.rows import Raw
from sftcore.data.unread import unread
from sftcore.report.lengths import Packed, describe, packed
from sftcore.util.shown import EXAMPLE, shortened

SAMPLE = 1000
"""How many rows decide the format by their columns, as in a run."""
BATCH = 256
_HUGE = 20
"""A row is huge if it is longer than this many times the median, and than LONG_CHARACTERS."""


@define
class Reporter:
    """Makes the report of one data set. For each row, only hashes and lengths are kept in memory.

    Args:
        inspectors: makes an inspector for the columns of each file.
        training: the hashes of the training set, if this is an evaluation set; they may come later than its rows.
        near: the rows of the evaluation sets, which those of the training set are compared with.
        progress: called from time to time with the number of rows read.
        listed: takes what becomes of each row, under the names of the set and of the source.
    """

    name: str
    source: str
    inspectors: Inspectors
    model: str | None = None
    training: Seen | None = None
    progress: Callable[[int], None] | None = None
    near: NearRows | None = None
    listed: RowList | None = None
    listed_as: tuple[str, str] = ("", "")
    max_length: int | None = field(default=None, init=False)
    findings: Findings = field(factory=Findings)
    seen: Seen = field(factory=Seen)
    _counts: Counts = field(factory=Counts)
    _tokens: Tokens = field(factory=Tokens)
    _roles: dict[str, Role] = field(factory=dict)
    _columns: Counter[str] = field(factory=Counter)
    _files: list[FileReport] = field(factory=list)
    _suggested: str = ""
    number: int = 0
    _first: int = 0
    _characters: array[int] = field(factory=lambda: array("Q"))
    _long: list[tuple[Location, int]] = field(factory=list)
    _lengths: array[int] = field(factory=lambda: array("Q"))
    _kept: array[int] = field(factory=lambda: array("Q"))
    _images: Images = field(factory=Images)
    _media: dict[str, Media] = field(factory=dict)
    _evaluated: list[tuple[int, Location]] = field(factory=list)

    # --- Reading ----------------------------------------------------------------------------------------------------
    def read(self, file: str, raws: Iterable[Raw], first: int = 0) -> int:
        """Inspect all rows of one file, and count them; the numbers of the next file's rows continue from it.

        `first` is the number of the file's first row, also where that is not read.
        """
        self._first = first
        rows = iter(raws)
        sample = list(itertools.islice(rows, SAMPLE))
        while not any(raw.row for raw in sample) and (more := list(itertools.islice(rows, SAMPLE))):
            sample += more
        columns = list(dict.fromkeys(str(key) for raw in sample if raw.row for key in raw.row))
        before = self._counts.read
        found = [raw.row for raw in sample if raw.row is not None]
        inspector = self._open(file, columns, found) if found else None
        if inspector is not None:
            self._unread(file, inspector, found)
        self._all(file, itertools.chain(sample, rows), inspector)
        label = inspector.choice.label if inspector else ""
        self._files.append(FileReport(file, self._counts.read - before, label))
        return self._counts.read - before

    def _open(self, file: str, columns: list[str], rows: Sequence[Row]) -> Inspector | None:
        try:
            inspector = self.inspectors.open(columns, file, lambda: rows)
        except (DataError, ConflictError) as error:
            # without a format no row can be read, but the files are still searched for faults
            self.findings.add("no-format", Location(file=file), what=error.what, fix=error.fix)
            return None
        self.max_length = inspector.max_length
        choice = inspector.choice
        if choice.line:
            self._suggested = choice.line
            what = f"{choice.reason} This report uses a mapping that fits; a run needs it in the recipe."
            self.findings.add(
                "format-suggested", Location(file=file), what=what, fix=f"Add to the recipe: {choice.line}"
            )
        return inspector

    def _unread(self, file: str, inspector: Inspector, rows: Sequence[Row]) -> None:
        """Name the columns that the format does not read, each with an example."""
        for column, value in unread(inspector.reader, rows).items():
            what = f'the column "{column}" is not read{EXAMPLE}{shortened(value)}.'
            self.findings.add("unread-column", Location(file=file), what=what)

    def _all(self, file: str, raws: Iterator[Raw], inspector: Inspector | None) -> None:
        batch: list[tuple[Location, dict[str, Any]]] = []
        for raw in raws:
            location = Location(None if raw.whole_file else self.number, file, raw.line)
            self.number += not raw.whole_file
            self._counts.read += not raw.whole_file
            if raw.fault is not None:
                self._counts.broken += not raw.whole_file
                self.findings.add(raw.fault.id, location, raw.fault.detail, fix=raw.fault.fix)
                self._list(location, BROKEN, ": ".join(filter(None, [raw.fault.id, raw.fault.detail])))
            elif raw.row is not None:
                self._columns.update(map(str, raw.row))
                batch.append((location, raw.row))
            if len(batch) == BATCH:
                inspector = self._look(inspector, batch)
                batch = []
        self._look(inspector, batch)

    def _look(self, inspector: Inspector | None, batch: list[tuple[Location, dict[str, Any]]]) -> Inspector | None:
        if self.progress is not None:
            self.progress(self.number)
        if inspector is None or not batch:
            for location, _ in batch:
                self._list(location, REFUSED, "no format reads it")
            return inspector
        rows, locations = [row for _, row in batch], {location.row: location for location, _ in batch}
        numbers = [location.row or 0 for location, _ in batch]
        try:
            found = _inspected(inspector, rows, numbers)
        except SFTCoreError as error:
            if inspector.pipeline is None:
                raise
            self.findings.add("tokenizer", Location(file=batch[0][0].file), what=error.what, fix=error.fix)
            inspector = self.inspectors.light(inspector)
            found = _inspected(inspector, rows, numbers)
        words = [words_of(one.example) if one.example is not None else [] for one in found]
        counts = iter(inspector.count([one.text for said in words for one in said]))
        for one, said in zip(found, words, strict=True):
            location = locations[one.number]
            self._outcome(one, location)
            if one.example is not None:
                self._words(one, said, list(itertools.islice(counts, len(said))), location, inspector)
                self._compare(one.example, location)
        return inspector

    # --- What becomes of a row --------------------------------------------------------------------------------------
    def _outcome(self, one: Inspected, location: Location) -> None:
        one = with_broken_media(one)
        if one.error is not None:
            self._counts.refused += 1
            kind, reason = _refusal(one.error)
            self.findings.add(kind, location, one.error.what, what=reason, fix=one.error.fix)
            self._list(location, REFUSED, one.error.what)
            return
        for note in one.notes:
            self.findings.add("note", location, what=f"{note[:1].upper()}{note[1:]}.")
        self._images.add(one)
        for kind in () if one.example is None else dict.fromkeys(each.modality.name for each in one.example.media):
            self._media.setdefault(kind, Media(kind)).add(one)
        if one.row is not None:
            self._lengths.append(one.tokens_in)
            self._tokens.all += one.tokens_in
        if one.dropped:
            self._counts.dropped += 1
            self._tokens.dropped += one.tokens_in
            what = f"{one.dropped}: a run drops it."
            self.findings.add("dropped", location, f"{one.tokens_in:,} tokens", what=what)
        elif one.row is not None:
            self._keep(one, one.row, location)
        counts = None
        if one.row is not None:
            cut, supervised = (0, 0) if one.dropped else (one.tokens_cut, _num_supervised(one.row))
            counts = one.tokens_in, cut, supervised
        outcome = DROPPED if one.dropped else CUT if one.tokens_cut else KEPT
        seen = one.example is not None and (one.example.images or one.example.media)
        digest = _text_key(whole_of(one.example)) if one.example is not None and not seen else 0
        self._list(location, outcome, one.dropped, counts, digest)

    def _list(
        self,
        location: Location,
        outcome: str,
        reason: str,
        counts: tuple[int, int, int] | None = None,
        digest: int = 0,
    ) -> None:
        if self.listed is not None and location.row is not None:
            self.listed.add(self.listed_as, location, self._first, outcome, reason, counts, digest)

    def _keep(self, one: Inspected, row: TokenizedRow, location: Location) -> None:
        self._counts.kept += 1
        self._kept.append(len(row.input_ids))
        self._tokens.kept += len(row.input_ids)
        self._tokens.cut += one.tokens_cut
        self._tokens.supervised += _num_supervised(row)
        if one.tokens_cut:
            self._counts.cut += 1
            what = f"longer than max_length ({self.max_length:,}): the rest is cut off."
            self.findings.add("cut", location, f"{one.tokens_in:,} tokens, {one.tokens_cut:,} cut", what=what)

    # --- What is odd about it ---------------------------------------------------------------------------------------
    def _words(self, one: Inspected, said: list[Words], tokens: list[int], location: Location, by: Inspector) -> None:
        assert one.example is not None
        for kind, detail in turn_faults(one.example):
            self.findings.add(kind, location, detail)
        for words, count in zip(said, tokens, strict=True):
            role = self._roles.setdefault(words.role, Role())
            role.turns += not words.where.endswith("reasoning")  # a second text of the same turn
            role.characters += len(words.text)
            role.tokens += count
            self._text(words, count, location, by)
        if one.row is not None:
            template = max(one.tokens_in - sum(tokens), 0) if said else 0
            self._roles.setdefault("template", Role()).tokens += template
        characters = sum(len(words.text) for words in said)
        self._characters.append(characters)
        if characters > LONG_CHARACTERS:
            self._long.append((location, characters))

    def _text(self, words: Words, tokens: int, location: Location, by: Inspector) -> None:
        for kind, detail in text_faults(words):
            self.findings.add(kind, location, detail)
        if by.pipeline is not None and self.max_length is not None:
            if tokens > self.max_length and words.role != "text":
                what = f"one turn alone is longer than max_length ({self.max_length:,} tokens)."
                self.findings.add("long-turn", location, f"{words.where}: {tokens:,} tokens", what=what)
        elif len(words.text) > LONG_CHARACTERS and words.role != "text":
            what = f"a turn of more than {LONG_CHARACTERS:,} characters."
            self.findings.add("long-turn", location, f"{words.where}: {len(words.text):,} characters", what=what)
        if by.special is not None and (found := by.special.search(words.text)):
            kind = "special-tokens-in-texts" if words.role in ("text", "prompt", "completion") else "special-tokens"
            self.findings.add(kind, location, f"{words.where}: {found.group()} at character {found.start()}")

    def _compare(self, example: Example, location: Location) -> None:
        pictures = identity_of(example)
        number, whole = location.row or 0, _text_key(whole_of(example) + pictures)
        if self.training is not None:
            self._evaluated.append((whole, location))
        if self.near is not None and not pictures:  # words that are nearly the same may be about another picture
            if self.training is not None:
                self.near.add(self.name, location, example)
            else:
                self.near.compare(number, example)
        first = self.seen.rows.setdefault(whole, number)
        if first != number:
            self.findings.add("duplicate-rows", location, f"as row {first}")
        elif (halves := answer_of(example)) is not None:
            prompt, answer = _text_key(halves[0] + pictures), _text_key(halves[1])
            earlier, its_answer = self.seen.prompts.setdefault(prompt, (number, answer))
            if its_answer != answer:
                self.findings.add("same-prompt", location, f"as row {earlier}")

    def _overlap(self) -> None:
        """Rows of an evaluation set that are trained on, word for word or nearly."""
        trained = self.training.rows if self.training is not None else {}
        same = [(location, trained[whole]) for whole, location in self._evaluated if whole in trained]
        for location, number in same:
            self.findings.add("also-in-training", location, f"as training row {number}")
        exact = {location.row for location, _ in same}
        for location, like in self.near.near(self.name) if self.near is not None else ():
            if location.row not in exact:
                self.findings.add("nearly-in-training", location, like)

    # --- The end ----------------------------------------------------------------------------------------------------
    def report(self) -> SetReport:
        """The report, once all files are read."""
        if not self._counts.read:
            self.findings.add("no-rows", Location(file=self.source))
        self._formats()
        self._overlap()
        self._huge()
        lengths = describe(self._lengths, "tokens") if self._lengths else describe(self._characters, "characters")
        tokenised = bool(self._lengths)
        if tokenised and not self._counts.kept:
            self.findings.add("nothing-left", Location(file=self.source))
        return SetReport(
            name=self.name,
            source=self.source,
            model=self.model,
            files=tuple(self._files),
            suggested=self._suggested,
            rows=self._counts,
            tokens=self._tokens if tokenised else None,
            lengths=lengths,
            max_length=self.max_length,
            roles={name: role for name, role in self._roles.items() if role != Role()},
            packing=self._packed(),
            findings=self.findings.all(),
            images=self._images if self._images.rows else None,
            media=tuple(self._media.values()),
        )

    def _packed(self) -> Packed | None:
        if not self._kept or self.max_length is None:
            return None
        strategy = self.inspectors.setup.plan.settings.get("packing_strategy") or "bfd"
        return packed(self._kept, self.max_length, strategy)

    def _formats(self) -> None:
        rows = self._counts.read - self._counts.broken
        for column, count in self._columns.items():
            if count < rows:
                what = f'the column "{column}" is in {count:,} of {rows:,} rows.'
                self.findings.add("sparse-columns", Location(file=self.source), what=what)
        found = list(dict.fromkeys(file.format for file in self._files if file.format))
        if len(found) > 1:
            what = f"a run reads all files with one format, but these need {', '.join(found)}."
            self.findings.add("mixed-formats", Location(file=self.source), what=what)
        elif found:
            try:
                self.inspectors.open(list(self._columns), self.source)
            except (DataError, ConflictError) as error:
                self.findings.add("mixed-formats", Location(file=self.source), what=error.what, fix=error.fix)

    def _huge(self) -> None:
        median = statistics.median_high(self._characters) if self._long else 0
        for location, length in self._long:
            if length > _HUGE * median:
                self.findings.add("huge-row", location, f"{length:,} characters")


def _inspected(inspector: Inspector, rows: Sequence[Row], numbers: Sequence[int]) -> list[Inspected]:
    """The outcome of each row. If tokenizer or template fail for the batch, the row that causes it is found."""
    try:
        return inspector.inspect(rows, numbers)
    except SFTCoreError:
        raise
    except Exception as error:  # a template or tokenizer may raise anything for what is not a text
        if len(rows) == 1:
            return [Inspected(numbers[0], None, RowError(f"{type(error).__name__}: {error}."), None, 0, 0, "", ())]
        half = len(rows) // 2
        return _inspected(inspector, rows[:half], numbers[:half]) + _inspected(inspector, rows[half:], numbers[half:])


def _refusal(error: RowError) -> tuple[str, str]:
    """The id of the finding, and the reason without the parts that differ from row to row."""
    reason = re.sub(r"\[\d+\]", "[…]", re.sub(r"\b(message|turn|has) \d[\d,]*", r"\1 …", error.what))
    if re.search(r'role ".*" is not known', reason):
        return "unknown-role", reason
    missing = re.search(r'" is (?:null|missing)\.|has no "(?:content|role)"', reason)
    return ("null-content" if missing else "refused"), reason


def _num_supervised(row: TokenizedRow) -> int:
    """How many tokens the loss is computed on; never the first, since nothing comes before it to predict it from."""
    labels = list(row.input_ids if row.labels is None else row.labels)[1:]
    if row.weights is None:
        return len(labels) - labels.count(IGNORED)
    return sum(label != IGNORED and weight > 0 for label, weight in zip(labels, row.weights[1:], strict=True))


def _text_key(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
