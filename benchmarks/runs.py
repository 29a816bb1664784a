"""Does the memory of a data-set run grow with the number of samples? How fast is it?

    python benchmarks/runs.py --rows 5000 20000 100000

Every size runs in a process of its own: the command as users give it. Measured are the largest
resident set of that process (Linux), wall-clock time, and the planner's estimate of the peak.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lens_attr.demo import generate

DIFFERENT = 2000
"""Sentences that are repeated to make the data set."""


def write_data(path: Path, rows: int) -> None:
    """Short samples of the built-in generator: about eight tokens each."""
    samples = generate("sva", min(rows, DIFFERENT), seed=0)
    with path.open("w", encoding="utf-8") as file:
        for i in range(rows):
            sample = samples[i % len(samples)]
            row = {"text": sample.text, "target": sample.answer, "foil": sample.foil}
            file.write(json.dumps(row) + "\n")


def measure(folder: Path, rows: int, method: str) -> dict[str, float]:
    """One run in a child process, which prints what it took."""
    write_data(folder / "data.jsonl", rows)
    job = {
        "model": "demo-gpt2",
        "data": str(folder / "data.jsonl"),
        "method": method,
        "out": str(folder / "out"),
        "device": "cpu",
    }
    (folder / "job.yaml").write_text(json.dumps(job))
    command = [sys.executable, __file__, "--child", str(folder / "job.yaml")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def child(job: str) -> None:
    """Run a job and print rows, seconds and peaks as JSON."""
    import lens_attr as la

    start = time.perf_counter()
    report = la.run(job, progress=False)
    seconds = time.perf_counter() - start
    assert report.complete and report.errors == 0
    manifest = json.loads((report.out / "manifest.json").read_text())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    estimate = manifest["batches"]["estimated_peak_bytes"] / 2**20
    found = {"rows": report.rows, "seconds": seconds, "rss_mb": peak, "estimate_mb": estimate}
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, nargs="+", default=[5_000, 20_000, 100_000])
    parser.add_argument("--method", default="attnlrp")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child)
        return
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    print("|    rows | seconds | rows per second | largest resident set | estimated batch peak |")
    print("|--------:|--------:|----------------:|---------------------:|---------------------:|")
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(Path(folder), rows, arguments.method)
        speed = found["rows"] / found["seconds"]
        print(
            f"| {rows:7,} | {found['seconds']:7.1f} | {speed:15.0f} | {found['rss_mb']:17.0f} MB "
            f"| {found['estimate_mb']:17.0f} MB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
