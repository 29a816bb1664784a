"""The out directory: nothing is written outside of it, and nothing of another kind beside it."""

from __future__ import annotations

from pathlib import Path

from lens_attr.errors import InputError
from lens_attr.runs.job import Job
from lens_attr.runs.lock import LOCKED
from lens_attr.runs.manifest import MANIFEST, PLAN
from lens_attr.runs.shards import FOLDER
from lens_attr.runs.sources import find

OURS = (MANIFEST, PLAN, FOLDER)
UNFINISHED = ".tmp"
"""Ending of files that were being written when a process was killed."""


def own_directory(job: Job) -> Path:
    """The out directory, made if it is not there.

    Raises:
        InputError: it is a file, cannot be made, holds something else or shards of a run that
            nothing is known of, or leads elsewhere by a link.
    """
    out = Path(job.out).expanduser()
    if out.exists() and not out.is_dir():
        raise InputError(f"out {out} is a file: give a directory.")
    old = any((out / FOLDER).glob("*"))  # asked first: another process may be starting this run
    held = [path.name for path in out.iterdir()] if out.exists() else []
    for path in [out / name for name in filter(_is_ours, held)] + _unfinished(out):
        if path.is_symlink():
            raise InputError(f"{path} is a link: a run writes nothing outside its out directory.")
    if old and MANIFEST not in held:
        raise InputError(
            f"out {out} holds shards but no {MANIFEST}, so nobody knows which run made them: "
            "restore it, or choose another out directory."
        )
    strangers = [name for name in held if not _is_ours(name)]
    if strangers and MANIFEST not in held:
        raise InputError(f"out {out} holds other things ({strangers[0]}): give a new directory.")
    try:
        (out / FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the out directory {out}: {error}") from error
    return out.resolve()


def refuse_own_output(job: Job) -> None:
    """Raise where the run would read what it writes.

    Raises:
        InputError: data inside ``out``.
    """
    out = Path(job.out).expanduser().resolve()
    for path in find(job.data):
        if path.resolve().is_relative_to(out):
            raise InputError(f"the data {path} lies in the run's own out directory {out}.")


def _is_ours(name: str) -> bool:
    return name in OURS or name.endswith((UNFINISHED, LOCKED))


def _unfinished(out: Path) -> list[Path]:
    return [*out.glob(f".*{UNFINISHED}"), *(out / FOLDER).glob(f".*{UNFINISHED}")]


def sweep(out: Path) -> None:
    """Remove what killed processes left half written; only where nobody else is at work."""
    for path in _unfinished(out):
        path.unlink(missing_ok=True)
