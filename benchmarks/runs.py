"""Does the memory of a data-set run grow with the number of samples? How fast is it?

Every size runs in a process of its own, the command as users give it: `lens-attr run` on demo-gpt2.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lens_attr as la
from benchmarks.harness import Options, Row
from lens_attr.demo import generate

DIFFERENT = 2000
"""Sentences that are repeated to make the data set."""
SIZES, HUGE = (5_000, 20_000), 100_000
GROWTH = 1.1
"""Largest ratio of resident memory between the sizes."""


def rows(options: Options) -> Iterator[Row]:
    """Two sizes, one after another."""
    yield from _compared(options, (200, 400) if options.quick else SIZES)


def huge_rows(options: Options) -> Iterator[Row]:
    """A hundred thousand samples."""
    yield from _compared(options, (200, 800) if options.quick else (SIZES[0], HUGE))


def _compared(options: Options, sizes: tuple[int, int]) -> Iterator[Row]:
    found = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            found.append(_measure(Path(folder), size, options.device))
    small, large = found
    where = f"demo-gpt2, attnlrp, {options.device}"
    for one in found:
        note = f"{one['rows'] / one['seconds']:.0f} rows per second"
        yield Row(f"{one['rows']:,} rows", where, [one["seconds"]], "s", note=note)
    yield Row(
        f"largest resident set of {large['rows']:,} rows",
        where,
        [large["rss"]],
        "MiB",
        f"that of {small['rows']:,} rows",
        [small["rss"]],
        GROWTH,
        f"planner's estimate of a batch: {large['estimate']:.0f} MiB",
    )


def _measure(folder: Path, size: int, device: str) -> dict[str, Any]:
    """One run in a child process, which prints what it took."""
    write_data(folder / "data.jsonl", size)
    job = {
        "model": "demo-gpt2",
        "data": str(folder / "data.jsonl"),
        "method": "attnlrp",
        "out": str(folder / "out"),
        "device": device,
    }
    (folder / "job.yaml").write_text(json.dumps(job))
    command = [sys.executable, "-m", "benchmarks.runs", str(folder / "job.yaml")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def write_data(path: Path, size: int) -> None:
    """Short samples of the built-in generator: about eight tokens each."""
    samples = generate("sva", min(size, DIFFERENT), seed=0)
    with path.open("w", encoding="utf-8") as file:
        for i in range(size):
            sample = samples[i % len(samples)]
            row = {"text": sample.text, "target": sample.answer, "foil": sample.foil}
            file.write(json.dumps(row) + "\n")


def child(job: str) -> None:
    """Run a job and print rows, seconds and peaks as JSON."""
    options = Options()
    start = options.now()
    report = la.run(job, progress=False)
    seconds = options.now() - start
    assert report.complete and report.errors == 0
    manifest = json.loads((report.out / "manifest.json").read_text())
    found = {
        "rows": report.rows,
        "seconds": seconds,
        "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "estimate": manifest["batches"]["estimated_peak_bytes"] / 2**20,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    child(sys.argv[1])
