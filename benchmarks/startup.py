"""What lens_attr adds to the start of a program, and how fast its command answers.

Every start is a process of its own. What an import adds is measured inside that process, after
TransformerLens has been imported.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial

from benchmarks.harness import Options, Row, interleaved, seconds_of

IMPORT_AIM, HELP_AIM = 0.3, 0.5
"""Seconds."""

ADDED = """
import time
import transformer_lens
start = time.perf_counter()
import lens_attr
{use}
print(time.perf_counter() - start)
"""


def rows(options: Options) -> Iterator[Row]:
    """The import, the import with everything `attribute` needs, and the command."""
    wall = Options(clock="wall")  # a child's processor time is not ours
    calls = {
        "import lens_attr, after transformer_lens": partial(_added, ""),
        "the same, and lens_attr.attribute": partial(_added, "lens_attr.attribute"),
        "lens-attr --help": partial(seconds_of, wall, _help),
    }
    aims = (IMPORT_AIM, None, HELP_AIM)
    runs = options.runs or (2 if options.quick else 5)
    for (what, times), aim in zip(interleaved(calls, runs).items(), aims, strict=True):
        base = [aim] * runs if aim else []
        against = f"the aim of {aim} s" if aim else ""
        yield Row(what, "a new process", times, "s", against, base, aim and 1.0)


def _added(use: str) -> float:
    command = [sys.executable, "-c", ADDED.format(use=use)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _help() -> None:
    command = [sys.executable, "-m", "lens_attr.cli", "--help"]
    subprocess.run(command, check=True, capture_output=True)
