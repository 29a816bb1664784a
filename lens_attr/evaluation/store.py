"""Per-sample results on disk while they are made, so that a run can be stopped and resumed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from lens_attr.errors import InputError, SavedResultError
from lens_attr.evaluation.notes import merged, notes_of, with_notes

MANIFEST = "run.json"
PARTS = ".parts"


class Store:
    """A table of samples for every (task, method), in memory or in a folder.

    In a folder each batch becomes a file of its own at once, written whole or not at all; when a
    table is complete its files become one, ``samples/<task>.<method>.parquet``. The notes that rows
    carry (`notes.with_notes`) stay with them.
    """

    def __init__(self, out: str | Path | None, run: Mapping[str, Any]) -> None:
        """Start or resume.

        Args:
            out: the folder; None keeps everything in memory.
            run: everything that determines the results, apart from the methods.

        Raises:
            InputError: the folder holds another run, or is a file.
        """
        self.folder = None if out is None else Path(out)
        self._memory: dict[tuple[str, str], list[pd.DataFrame]] = {}
        if self.folder is not None:
            _claim(self.folder, run)

    def read(self, task: str, method: str) -> pd.DataFrame:
        """What is there, in the order of the samples.

        Raises:
            SavedResultError: a file is no parquet.
        """
        frames = list(self._memory.get((task, method), []))
        if self.folder is not None:
            frames += [_read(path) for path in self._files(self.folder, task, method)]
        if not frames:
            return sample_table([])
        whole = pd.concat(frames, ignore_index=True).drop_duplicates("sample")
        ordered = whole.sort_values("sample", ignore_index=True)
        return with_notes(ordered, merged(map(notes_of, frames)))

    def add(self, task: str, method: str, rows: pd.DataFrame) -> None:
        """Keep the rows of one batch."""
        if self.folder is None:
            self._memory.setdefault((task, method), []).append(rows)
            return
        parts = self._parts(self.folder, task, method)
        parts.mkdir(parents=True, exist_ok=True)
        _write(rows, parts / f"{int(rows['sample'].iloc[0]):09d}.parquet")

    def close(self, task: str, method: str) -> pd.DataFrame:
        """The complete table, which becomes one file."""
        whole = self.read(task, method)
        if self.folder is not None:
            _write(whole, self._whole(self.folder, task, method))
            shutil.rmtree(self._parts(self.folder, task, method), ignore_errors=True)
        return whole

    def _files(self, folder: Path, task: str, method: str) -> list[Path]:
        whole = self._whole(folder, task, method)
        parts = sorted(self._parts(folder, task, method).glob("*.parquet"))
        return [whole, *parts] if whole.exists() else parts

    @staticmethod
    def _whole(folder: Path, task: str, method: str) -> Path:
        return folder / "samples" / f"{file_name(task)}.{file_name(method)}.parquet"

    @staticmethod
    def _parts(folder: Path, task: str, method: str) -> Path:
        return folder / "samples" / PARTS / f"{file_name(task)}.{file_name(method)}"


def sample_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A row per sample; without any there is still the column ``sample``."""
    return pd.DataFrame(rows) if rows else pd.DataFrame({"sample": pd.Series(dtype="int64")})


def file_name(name: str) -> str:
    """A name with nothing in it that a file system could object to; different for each."""
    return quote(name, safe="").replace(".", "%2E")


def _claim(folder: Path, run: Mapping[str, Any]) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give a folder for the results.")
    manifest = folder / MANIFEST
    wanted = json.loads(json.dumps(run, default=str))
    if manifest.exists():
        try:
            found = json.loads(manifest.read_text(encoding="utf-8"))
        except ValueError as error:
            raise SavedResultError(f"{manifest} is truncated or no json: {error}") from error
        different = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
        if different:
            raise InputError(
                f"{folder} holds another run (different: {', '.join(different)}): give another "
                "folder, or remove this one."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_text(manifest, json.dumps(wanted, indent=1, ensure_ascii=False))


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise SavedResultError(f"{path} is truncated or no parquet: remove it.") from error


def _write(rows: pd.DataFrame, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".writing")
    rows.to_parquet(temporary, index=False)
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
