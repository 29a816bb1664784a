"""Processes at work in one out directory know of each other by locks, which end with them."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lens_attr.errors import InputError

LOCKED = ".lock"
"""Ending of the files that are locked. They are empty, and stay."""


@contextmanager
def at_work(out: Path, rank: int) -> Iterator[Callable[[], bool]]:
    """Hold this rank's place in ``out``; yields a function that says if nobody else is there.

    That function is asked last of all: where the answer is no, others see this process no more.
    Where the system knows no locks, nothing is refused and the answer is no.

    Raises:
        InputError: another process holds the place, or nothing can be written there.
    """
    with ExitStack() as stack:
        everyone = _opened(out / LOCKED, stack)
        mine = _opened(out / f".rank{rank}{LOCKED}", stack)
        if _lock(mine, "LOCK_EX", "LOCK_NB") is False:
            raise InputError(
                f"another process is running this job in {out} (as rank {rank}): let it come to "
                "its end, or choose another out directory."
            )
        _lock(everyone, "LOCK_SH")
        yield lambda: _lock(everyone, "LOCK_EX", "LOCK_NB") is True


def _opened(path: Path, stack: ExitStack) -> int:
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        raise InputError(f"cannot write in {path.parent}: {error}") from error
    stack.callback(os.close, handle)
    return handle


def _lock(handle: int, *flags: str) -> bool | None:
    """Whether the lock is ours now; None where there are no locks (Windows, some network disks)."""
    try:
        fcntl: Any = importlib.import_module("fcntl")
        how = [getattr(fcntl, flag) for flag in flags]
        fcntl.flock(handle, sum(how))
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True
