"""Every method on the demo models: the tables in ``results`` and the overview in README.

Run it from a checkout: ``python benchmarks/overview.py --n 1000``. A run that was stopped goes on
where it was (per-sample tables stay in ``out/bench-demo``). Only the small files are kept under
version control: ``summary.json``, ``table.csv`` and ``table.md`` of each model.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import lens_attr as la
from lens_attr.evaluation import BenchTable, Interval, bench
from lens_attr.evaluation.baselines import BASELINES
from lens_attr.evaluation.results import MODEL

NOTED = "†"
"""Beside a number of which the run has something to say."""

RESULTS = Path(__file__).parent / "results"
WORK = Path("out/bench-demo")
MODELS = ("demo-gpt2", "demo-llama", "demo-bert")
TASKS = ("sva", "ra", "qa")
MARKS = ("<!-- overview: python benchmarks/overview.py; a test holds the two equal -->",
         "<!-- end of overview -->")  # fmt: skip


def run(model: str, n: int, work: Path, progress: bool = True) -> BenchTable:
    """All methods on the three built-in tasks, without the per-sample tables."""
    command = f"lens-attr bench --model {model} --task {','.join(TASKS)} --methods all --n {n}"
    table = bench(
        la.load(model, device="cpu"), list(TASKS), "all",
        n=n, out=work / model, progress=progress, command=command,
    )  # fmt: skip
    return replace(table, samples={})


def readme_overview(results: Path = RESULTS) -> str:
    """PG of every method on every model and task, which methods are no better than random, and what
    the runs noted of a method's numbers."""
    tables = {name: BenchTable.load(results / name) for name in MODELS}
    head = " | ".join(f"{name.removeprefix('demo-')} {task}" for name in MODELS for task in TASKS)
    lines = [f"| method | {head} |", "|---|" + "---:|" * (len(MODELS) * len(TASKS))]
    methods = dict.fromkeys(
        method for table in tables.values() for method in table.rows["method"] if method != MODEL
    )
    for method in methods:
        cells = [_cell(tables[name], method, task) for name in MODELS for task in TASKS]
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    n = {table.metadata["command"].rpartition(" ")[2] for table in tables.values()}
    about = (
        f"Pointing game in percent on {' or '.join(sorted(n))} held-out samples per task, those "
        "predicted correctly; * marks what is not above random with the 95 % intervals apart, - a "
        f"method that is not defined there, {NOTED} what stands below the table."
    )
    lists = [f"- **{name}**: {_no_better(tables[name])}" for name in MODELS]
    weak = ["Methods that do not beat random on `sva`:", "", *lists]
    return "\n".join([*lines, "", about, *_footnotes(tables), "", *weak])


def _footnotes(tables: Mapping[str, BenchTable]) -> list[str]:
    """What each run said of a method, for which its cells carry a mark."""
    notes = [
        f"- {NOTED} {model}, `{method}`: {text}"
        for model, table in tables.items()
        for method, _, text in (note.partition(": ") for note in table.metadata["notes"])
    ]
    return ["", *notes] if notes else []


def _is_noted(table: BenchTable, method: str) -> bool:
    return any(note.startswith(f"{method}: ") for note in table.metadata["notes"])


def _no_better(table: BenchTable) -> str:
    found = table.beats_random()
    mine = found[(found["task"] == "sva") & ~found["beats_random"]]
    return ", ".join(f"`{method}`" for method in mine["method"]) or "none"


def _cell(table: BenchTable, method: str, task: str) -> str:
    if method in table.refused:
        return "-"
    value = table.value(method, task, "pg")
    weak = method not in BASELINES and not _above(value, table.value("random", task, "pg"))
    noted = NOTED if _is_noted(table, method) else ""
    return f"{value.value:.1f}{'*' if weak else ''}{noted}"


def _above(one: Interval, other: Interval) -> bool:
    return one.low > other.high


def write_readme(readme: Path) -> None:
    """Put the overview between its marks."""
    before, rest = readme.read_text(encoding="utf-8").split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    text = f"{before}{MARKS[0]}\n{readme_overview()}\n{MARKS[1]}{after}"
    readme.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=1000, help="samples per task")
    parser.add_argument("--work", type=Path, default=WORK, help="where per-sample tables stay")
    options = parser.parse_args()
    for model in MODELS:
        run(model, options.n, options.work).save(RESULTS / model)
        print(f"{model}: done", flush=True)
    write_readme(Path(__file__).parents[1] / "README.md")


if __name__ == "__main__":
    main()
