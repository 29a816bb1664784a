"""The result files under a directory, read into results: nothing is computed, nothing is guessed.

A folder that holds ``about.json`` (what was run there) opens a chapter; results in folders without
one belong to the nearest such folder above them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from lens_attr.attribution.generation import Generation
from lens_attr.attribution.relevance import Relevance
from lens_attr.circuits import (
    Agreement,
    Circuit,
    CircuitEvaluation,
    EdgeScores,
    FaithfulnessComparison,
    PatchResult,
    PruningComparison,
    Ranking,
)
from lens_attr.circuits.files import read_json, write_json
from lens_attr.errors import InputError, LensAttrError, SavedResultError
from lens_attr.evaluation import BenchTable

ABOUT = "about.json"
SHOWN_ROWS = 6
"""Rows of a data-set run that are shown as text."""


@dataclass(frozen=True)
class DataSetRun:
    """What a data-set run left behind: its manifest, its shards' records and some rows."""

    manifest: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    rows: pd.DataFrame


def _run(folder: Path) -> DataSetRun:
    manifest = _plain(folder / "manifest.json")
    if not {"job", "model", "input", "batches"} <= manifest.keys():
        raise SavedResultError(f"{folder / 'manifest.json'} is no manifest of a run.")
    shards = sorted((folder / "shards").glob("*.parquet"))
    # A record counts a shard as done; of a shard being written there is none.
    records = [_plain(path) for s in shards if (path := s.with_suffix(".json")).exists()]
    batches = pq.ParquetFile(shards[0]).iter_batches(SHOWN_ROWS) if shards else iter(())
    first = next(batches, None)
    return DataSetRun(manifest, records, pd.DataFrame() if first is None else first.to_pandas())


def _plain(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise SavedResultError(f"{path} is no json object.")
    return content


def _coverage(folder: Path) -> dict[str, Any]:
    content = read_json(folder, "coverage.json")
    if not {"rules", "accepted", "reasons", "coverage"} <= content.keys():
        raise SavedResultError(f"{folder / 'coverage.json'} does not hold what check saves.")
    return content


READERS: dict[str, Callable[[Path], Any]] = {
    "relevance.json": Relevance.load,
    "generation.json": Generation.load,
    "ranking.json": Ranking.load,
    "pruning.json": PruningComparison.load,
    "patching.json": PatchResult.load,
    "agreement.json": Agreement.load,
    "edges.json": EdgeScores.load,
    "circuit.json": Circuit.load,
    "evaluation.json": CircuitEvaluation.load,
    "faithfulness.json": FaithfulnessComparison.load,
    "coverage.json": _coverage,
    "summary.json": BenchTable.load,
    "claims.csv": lambda folder: pd.read_csv(folder / "claims.csv"),
    "manifest.json": _run,
}
"""What reads a folder, by the file in it that says what it holds."""


@dataclass(frozen=True)
class Found:
    """One result and the file it came from.

    Attributes:
        file: path below the directory that was searched, with forward slashes.
        result: what the file holds.
    """

    file: str
    result: Any

    @property
    def name(self) -> str:
        """Of the file, without its folder."""
        return self.file.rpartition("/")[2]

    @property
    def folder(self) -> str:
        """Where it lies, below the directory that was searched; empty for that directory."""
        return self.file.rpartition("/")[0]


@dataclass(frozen=True)
class Chapter:
    """The results that belong together: what one folder and those below it hold.

    Attributes:
        folder: below the directory that was searched; empty for that directory.
        about: title, commands and remarks, as far as ``about.json`` says.
        found: the results, in order of their paths.
    """

    folder: str
    about: Mapping[str, Any]
    found: Sequence[Found]

    def of(self, name: str) -> list[Found]:
        """The results of one kind, by the name of their file."""
        return [found for found in self.found if found.name == name]

    @cached_property
    def title(self) -> str:
        """Given, or the folder's name."""
        return str(self.about.get("title") or self.folder or "Results")


@dataclass(frozen=True)
class RunFiles:
    """Everything that a directory holds.

    Attributes:
        chapters: those with results, in the order that the directory's ``about.json`` gives, then
            of their paths.
        problems: by file, why it could not be read.
        about: of the directory itself.
    """

    chapters: Sequence[Chapter]
    problems: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)


def read_run(directory: str | Path) -> RunFiles:
    """Read every result file in ``directory`` and below it; hidden folders are left out.

    A file that cannot be read does not keep the others from being shown: it is in ``problems``.

    Raises:
        InputError: not a directory, or no result file in it.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory: give one that holds saved results.")
    chapters: dict[str, dict[str, Any]] = {}
    found: dict[str, list[Found]] = {}
    problems: dict[str, str] = {}
    for folder, names in _folders(directory):
        below = folder.relative_to(directory).as_posix()
        below = "" if below == "." else below
        if ABOUT in names or not below:
            chapters[below] = _about(folder, below, problems) if ABOUT in names else {}
        home = _home(below, chapters)
        for name in READERS:
            if name in names:
                file = f"{below}/{name}".lstrip("/")
                _read(folder, name, file, found.setdefault(home, []), problems)
    order = [name for name in chapters[""].get("order", ()) if name in chapters]
    homes = dict.fromkeys([*order, *chapters])
    read = [Chapter(home, chapters[home], found[home]) for home in homes if found.get(home)]
    if not read:
        why = "; ".join(f"{file}: {problem}" for file, problem in problems.items())
        raise InputError(
            f"{directory} holds no result that can be shown"
            + (f" ({why})." if why else ": save one with --save, or give another directory.")
        )
    return RunFiles(read, problems, chapters[""])


def _folders(directory: Path) -> Iterator[tuple[Path, set[str]]]:
    for folder, below, names in os.walk(directory):
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield Path(folder), set(names)


def _home(below: str, chapters: Mapping[str, Any]) -> str:
    """The nearest folder above, or this one, that opened a chapter."""
    while below not in chapters:
        below = below.rpartition("/")[0]
    return below


def _read(folder: Path, name: str, file: str, found: list[Found], problems: dict[str, str]) -> None:
    try:
        found.append(Found(file, READERS[name](folder)))
    except (LensAttrError, OSError, ValueError, KeyError, TypeError) as error:
        problems[file] = " ".join(str(error).split())


def _about(folder: Path, below: str, problems: dict[str, str]) -> dict[str, Any]:
    try:
        return read_json(folder, ABOUT)
    except SavedResultError as error:
        problems[f"{below}/{ABOUT}".lstrip("/")] = str(error)
        return {}


def write_about(directory: str | Path, made: str, command: str, **facts: Any) -> None:
    """Write down what was run in a directory, beside what earlier commands left there.

    Args:
        directory: where results were saved.
        made: what the command made; making it again replaces the command.
        command: what repeats it.
        facts: ``title``, ``task``, ``refused``, ... as pages show them; they replace earlier ones.
    """
    directory = Path(directory)
    before = read_json(directory, ABOUT) if (directory / ABOUT).exists() else {}
    commands = dict(before.get("commands", {})) | {made: command}
    write_json(directory, ABOUT, before | facts | {"commands": commands})
