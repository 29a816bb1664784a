"""Pairs of prompts for patching: clean ones, and corrupted ones that differ in what decides.

`read_pairs` reads csv files with these columns (others are an error, but for an index without a
name):

* ``clean``, ``corrupted``: the prompts, without trailing space, equally long in tokens;
* ``answer``, ``foil``: the continuations of ``clean``, with their leading space;
* or ``correct_idx``, ``incorrect_idx``: the same as token ids of your model's tokenizer;
* or ``label``: for the greater-than task, the last two digits of the clean year (Hanna et al.
  2023).

`read_ioi` reads the indirect-object files of EAP-IG (Hanna et al. 2024): ``clean``, ``corrupted``
(the repeated name is replaced by a third one), ``corrupted_hard`` (by the other name),
``correct_idx`` and ``incorrect_idx`` (ids of one tokenizer, not used: the names are taken from the
text, so that the file works with every model). `sva_pairs` makes agreement pairs.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lens_attr.circuits.aligned import different_lengths
from lens_attr.demo import generate, words
from lens_attr.errors import InputError, did_you_mean
from lens_attr.graph import ModelGraph, resolve
from lens_attr.graph.tokens import TokenBatch, tokenize
from lens_attr.targets import GreaterThan, LogitDiff, Target
from lens_attr.types import Sample

PROMPTS = ("clean", "corrupted")
TARGETS = (("answer", "foil"), ("correct_idx", "incorrect_idx"), ("label",))
IOI = ("clean", "corrupted", "corrupted_hard", "correct_idx", "incorrect_idx")
_NAME = re.compile(r"\b[A-Z][a-z]+\b")


@dataclass(frozen=True)
class Pairs:
    """Clean and corrupted prompts, and what is measured.

    Attributes:
        clean: prompts on which a good model prefers the answer.
        corrupted: the same prompts with the deciding word changed.
        answer: the answer to ``clean`` (string or token id), one per pair; empty for years.
        foil: what it competes with, likewise.
        years: of the greater-than task, one per pair; else empty.
        suffix: what follows the explained word, one per pair; read by masked models only.
        source: where the pairs come from.
        dropped: how many were left out by `aligned` and `of_one_length`.
    """

    clean: list[str]
    corrupted: list[str]
    answer: list[str] | list[int] = field(default_factory=list)
    foil: list[str] | list[int] = field(default_factory=list)
    years: Sequence[int] = ()
    suffix: Sequence[str] = ()
    source: str = ""
    dropped: int = 0

    def __post_init__(self) -> None:
        if not self.clean:
            raise InputError("there are no pairs.")
        given = (self.years,) if self.years else (self.answer, self.foil)
        for column in (self.corrupted, *given):
            if len(column) != len(self.clean):
                raise InputError(
                    f"{len(self.clean)} clean prompts but {len(column)} corrupted prompts or "
                    "answers: pairs need one each."
                )

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, chosen: int | slice) -> Pairs:
        """One of the pairs, or some of them.

        Raises:
            InputError: out of range, or none is left.
        """
        if isinstance(chosen, slice):
            return self.rows(range(len(self))[chosen])
        if not -len(self) <= chosen < len(self):
            raise InputError(f"pair {chosen} is out of range: there are {len(self)}.")
        return self.rows([range(len(self))[chosen]])

    def __iter__(self) -> Iterator[Pairs]:
        return (self[row] for row in range(len(self)))

    @property
    def target(self) -> Target:
        """What is measured on the clean prompts."""
        if self.years:
            return GreaterThan(list(self.years))
        return LogitDiff(self.answer, self.foil)

    def inputs(self, model: Any) -> tuple[list[str], list[str], Target]:
        """Clean prompts, corrupted prompts and target, as `patch` takes them.

        A masked model reads each prompt, its mask token, and the suffix.

        Raises:
            InputError: a pair that cannot be used, with its row: prompts that differ in how many
                tokens they have, an answer that starts as its foil or does not continue the
                prompt. `aligned` leaves such pairs out.
        """
        graph = resolve(model)
        for row, why in self._problems(graph).items():
            where = f"{self.source}, row {row}" if self.source else f"row {row}"
            raise InputError(
                f"{where}: {why} Mend the pair, or leave out all that cannot be used: "
                "pairs.aligned(model), on the command line --skip-misaligned."
            )
        return (*self._prompts(graph), self.target)

    def _prompts(self, graph: ModelGraph) -> tuple[list[str], list[str]]:
        """Clean and corrupted prompts as the model reads them."""
        if not graph.is_masked_model:
            return self.clean, self.corrupted
        ends = self.suffix or [""] * len(self)
        mask = graph.tokenizer.mask_token
        clean, corrupted = (
            [f"{text} {mask}{end}" for text, end in zip(texts, ends, strict=True)]
            for texts in (self.clean, self.corrupted)
        )
        return clean, corrupted

    def _problems(self, graph: ModelGraph) -> dict[int, str]:
        """Why pairs cannot be used, by row."""
        clean, corrupted = (tokenize(graph, texts) for texts in self._prompts(graph))
        found = {}
        for row, (one, other) in enumerate(zip(clean.lengths, corrupted.lengths, strict=True)):
            if one != other:
                found[row] = different_lengths(one, other, self.clean[row])
        try:
            self.target.resolve(graph, clean)
        except InputError:
            apart = self._problems_of_targets(graph, clean)
            if not apart:
                raise
            found = apart | found
        return dict(sorted(found.items()))

    def _problems_of_targets(self, graph: ModelGraph, clean: TokenBatch) -> dict[int, str]:
        found = {}
        for row, pair in enumerate(self):
            try:
                pair.target.resolve(graph, clean.rows([row]))
            except InputError as error:
                found[row] = str(error)
        return found

    def rows(self, index: Sequence[int]) -> Pairs:
        """Some of the pairs.

        Raises:
            InputError: none is left.
        """
        columns = ("clean", "corrupted", "answer", "foil", "years", "suffix")
        given = {name: getattr(self, name) for name in columns}
        return replace(
            self, **{name: [column[i] for i in index] for name, column in given.items() if column}
        )

    def aligned(self, model: Any) -> Pairs:
        """The pairs that can be used; the others are counted in ``dropped``.

        Both prompts have equally many tokens, and answer and foil can be told apart at the first
        token after the clean one.

        Raises:
            InputError: none can.
        """
        problems = self._problems(resolve(model))
        kept = [row for row in range(len(self)) if row not in problems]
        if not kept:
            raise InputError(f"none of the {len(self)} pairs can be used. Row 0: {problems[0]}")
        return self._kept(kept)

    def of_one_length(self, model: Any) -> Pairs:
        """The largest set of aligned pairs of one length, for effects by position.

        Raises:
            InputError: none can be used.
        """
        aligned, graph = self.aligned(model), resolve(model)
        lengths = tokenize(graph, aligned._prompts(graph)[0]).lengths
        common = max(sorted(set(lengths)), key=lengths.count)
        return aligned._kept([row for row, length in enumerate(lengths) if length == common])

    def _kept(self, index: Sequence[int]) -> Pairs:
        return replace(self.rows(index), dropped=self.dropped + len(self) - len(index))


def read_pairs(path: str | Path) -> Pairs:
    """One's own pairs, or the greater-than file: a csv with the columns described above.

    A file with ``corrupted_hard`` is read by `read_ioi`.

    Raises:
        InputError: unknown or missing columns, a row with more or fewer cells than the header, or
            with an empty or unreadable cell.
    """
    columns = _read(path)
    if "corrupted_hard" in columns:
        return read_ioi(path)
    known = [*PROMPTS, *(name for group in TARGETS for name in group)]
    _check_columns(path, columns, PROMPTS, known)
    found = [group for group in TARGETS if set(group) <= set(columns)]
    if len(found) != 1:
        groups = " or ".join(" and ".join(group) for group in TARGETS)
        raise InputError(
            f"{path}: the answers must stand in columns {groups}; it has {list(columns)}."
        )
    clean, corrupted = (_cells(path, columns, name) for name in PROMPTS)
    if found[0] == ("answer", "foil"):
        answer, foil = (_cells(path, columns, name) for name in found[0])
        return Pairs(clean, corrupted, answer, foil, source=str(path))
    numbers = [_numbers(path, name, _cells(path, columns, name)) for name in found[0]]
    if found[0] == ("label",):
        return Pairs(clean, corrupted, years=numbers[0], source=str(path))
    return Pairs(clean, corrupted, numbers[0], numbers[1], source=str(path))


def read_ioi(
    path: str | Path, corrupted: Literal["corrupted", "corrupted_hard"] = "corrupted"
) -> Pairs:
    """Indirect-object pairs; the answer is the name that appears once, the foil the repeated one.

    Args:
        path: a csv with the columns of EAP-IG's file.
        corrupted: which column is the corrupted prompt.

    Raises:
        InputError: unknown or missing columns, or a row whose two names cannot be told.
    """
    columns = _read(path)
    if corrupted not in IOI[1:3]:
        raise InputError(f"corrupted must be one of {IOI[1:3]}, got {corrupted!r}.")
    _check_columns(path, columns, ("clean", corrupted), IOI)
    clean, other = _cells(path, columns, "clean"), _cells(path, columns, corrupted)
    names = [_names(path, row, text) for row, text in enumerate(clean)]
    answers, foils = ([f" {pair[i]}" for pair in names] for i in (0, 1))
    return Pairs(clean, other, answers, foils, source=str(path))


def sva_pairs(n: int, seed: int = 0, split: Literal["train", "heldout"] = "heldout") -> Pairs:
    """Agreement pairs: ``the keys near the table`` against ``the key near the table``.

    The corrupted subject has the other number, so it prefers the foil. Samples of
    `lens_attr.demo.generate`, in order; `Pairs.aligned` keeps those that fit a tokenizer.
    """
    samples = generate("sva", n, seed=seed, split=split)
    return Pairs(
        clean=[sample.text for sample in samples],
        corrupted=[_other_number(sample) for sample in samples],
        answer=[sample.answer for sample in samples],
        foil=[sample.foil for sample in samples],
        suffix=[sample.suffix for sample in samples],
        source=f"lens_attr generator, sva, split {split}, seed {seed}",
    )


_OTHER_NUMBER = {one: other for pair in words.NOUNS for one, other in (pair, pair[::-1])}


def _other_number(sample: Sample) -> str:
    ((start, end),) = sample.truth
    return sample.text[:start] + _OTHER_NUMBER[sample.text[start:end]] + sample.text[end:]


Columns = dict[str, list[str]]


def _read(path: str | Path) -> Columns:
    """The cells of every named column; a column without a name is an index, and left out.

    Raises:
        InputError: no csv, a name that stands there twice, or a row of another length.
    """
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            lines = [cells for cells in csv.reader(file, strict=True) if cells]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"cannot read {path} as csv: {error}") from error
    if not lines:
        raise InputError(f"cannot read {path} as csv: it is empty.")
    header, *rows = lines
    twice = [name for name in header if name and header.count(name) > 1]
    if twice:
        raise InputError(f"{path} has two columns called {twice[0]!r}.")
    for row, cells in enumerate(rows):
        if len(cells) != len(header):
            raise InputError(
                f"{path} row {row} has {len(cells)} cells, the header {len(header)}: put a text "
                f'that holds a comma in quotes ("one, two"). The row: {",".join(cells)}'
            )
    return {name: [cells[i] for cells in rows] for i, name in enumerate(header) if name}


def _check_columns(
    path: str | Path, columns: Columns, wanted: Sequence[str], known: Sequence[str]
) -> None:
    for name in columns:
        if name not in known:
            raise InputError(f"{path}: unknown column {name!r}; {did_you_mean(name, known)}")
    missing = [name for name in wanted if name not in columns]
    if missing:
        raise InputError(f"{path} has no column {missing[0]!r}; it has {list(columns)}.")


def _cells(path: str | Path, columns: Columns, name: str) -> list[str]:
    for row, cell in enumerate(columns[name]):
        if not cell.strip():
            raise InputError(f"{path} row {row}: {name!r} is empty.")
    return columns[name]


def _numbers(path: str | Path, name: str, cells: Sequence[str]) -> list[int]:
    for row, cell in enumerate(cells):
        if not cell.isdecimal():
            raise InputError(f"{path} row {row}: {name!r} must be a whole number, got {cell!r}.")
    return [int(cell) for cell in cells]


def _names(path: str | Path, row: int, text: str) -> tuple[str, str]:
    """(indirect object, subject): the subject is the name that stands there twice."""
    found = _NAME.findall(text)
    twice = [name for name in dict.fromkeys(found) if found.count(name) == 2]
    pair = re.search(r"\b([A-Z][a-z]+) and ([A-Z][a-z]+)\b", text)
    if pair is None or len(twice) != 1 or twice[0] not in pair.groups():
        raise InputError(
            f"{path} row {row}: expected two names joined by 'and', one of them repeated later: "
            f"{text!r}."
        )
    (other,) = set(pair.groups()) - set(twice)
    return other, twice[0]
