"""Every benchmark, in one table: ``python -m benchmarks [--quick] [--only presets ...]``.

Writes ``results/benchmarks.md`` and ``.json`` beside this file (or into ``--out``), section by
section as they end. Run it on an idle machine, or with ``--clock cpu --threads 1``.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import alti_logit, circuits, many_targets, memory, presets, runs, startup
from benchmarks.harness import Options, Row, machine, table

Section = tuple[str, Callable[[Options], Iterator[Row]], Any]

SECTIONS: dict[str, Section] = {
    "startup": ("Start", startup.rows, startup),
    "presets": ("Presets beside gradient x input", presets.rows, presets),
    "launches": ("Operations of the backward", presets.launch_rows, presets.launch_rows),
    "memory": ("Peak memory", memory.rows, memory),
    "long": ("Long contexts", memory.long_context_rows, memory.long_context_rows),
    "many_targets": ("Several targets of one text", many_targets.rows, many_targets),
    "alti_logit": ("ALTI-Logit", alti_logit.rows, alti_logit),
    "circuits": ("Pruning, patching, edges", circuits.rows, circuits),
    "runs": ("Data-set runs", runs.rows, runs),
    "alti_logit_xl": ("ALTI-Logit at GPT-2-xl shape", alti_logit.xl_rows, alti_logit.xl_rows),
    "runs_huge": ("A hundred thousand samples", runs.huge_rows, runs.huge_rows),
}
"""Title, measurement, and the object whose docstring explains it."""

ON_REQUEST = ("alti_logit_xl", "runs_huge")
"""Sections that run only when they are named: 12 GiB, or many minutes."""


def main() -> int:
    """Run the sections; 1 if one of them failed."""
    arguments = _parsed()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    options = Options(
        arguments.quick, arguments.runs, arguments.device, arguments.clock, arguments.seed
    )
    found: dict[str, Any] = {"machine": machine(options), "quick": options.quick, "sections": {}}
    for name in arguments.only:
        start = time.perf_counter()
        print(f"{name} ...", flush=True)
        found["sections"][name] = _section(name, options)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        _write(found, arguments.out)
    print(page(found))
    failed = [name for name, section in found["sections"].items() if section["error"]]
    return int(bool(failed))


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser("benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small cells, to see that all works")
    usual = [name for name in SECTIONS if name not in ON_REQUEST]
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=usual)
    parser.add_argument("--runs", type=int, help="timed runs of every candidate")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args()


def _section(name: str, options: Options) -> dict[str, Any]:
    """Rows of a section, as many as came before anything went wrong."""
    _, measure, _ = SECTIONS[name]
    rows: list[Row] = []
    error = ""
    try:
        for row in measure(options):
            rows.append(row)
            print("  " + " | ".join(row.cells()), flush=True)
    except Exception as problem:
        traceback.print_exc()
        error = f"{type(problem).__name__}: {problem}"
    return {"rows": rows, "error": error}


def page(found: dict[str, Any]) -> str:
    """Everything in Markdown."""
    where = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    rows = [row for section in found["sections"].values() for row in section["rows"]]
    aimed = [row for row in rows if row.met is not None]
    lines = [
        "# Benchmarks",
        "",
        f"`python -m benchmarks{' --quick' * found['quick']}`, {where['date']}: "
        f"{where.get('gpu', where['cpu'])}, {where['threads']} threads, "
        f"{where['dtype']}, {where['clock']}-clock seconds, Python {where['python']}; {versions}.",
        "",
        "Random weights. Medians with their quartiles; candidates run in turn, and ratios are "
        "taken run by run. Aims are for a CPU and say how large the ratio may be: "
        f"{sum(bool(row.met) for row in aimed)} of {len(aimed)} are met.",
    ]
    for name, section in found["sections"].items():
        title, _, explained = SECTIONS[name]
        lines += [
            "",
            f"## {title}",
            "",
            *_paragraphs(explained.__doc__),
            "",
            table(section["rows"]),
        ]
        if section["error"]:
            lines += ["", f"Stopped by {section['error']}"]
    return "\n".join(lines) + "\n"


def _paragraphs(doc: str | None) -> list[str]:
    return [line.strip() for line in (doc or "").strip().splitlines()]


def _write(found: dict[str, Any], out: Path) -> None:
    """The page and the raw numbers."""
    out.mkdir(parents=True, exist_ok=True)
    sections = {
        name: section | {"rows": [_plain(row) for row in section["rows"]]}
        for name, section in found["sections"].items()
    }
    raw = json.dumps(found | {"sections": sections}, indent=1)
    (out / "benchmarks.json").write_text(raw + "\n")
    (out / "benchmarks.md").write_text(page(found))


def _plain(row: Row) -> dict[str, Any]:
    ratio = float(np.median(row.ratios)) if row.base else None
    return asdict(row) | {"ratio": ratio, "met": row.met}


if __name__ == "__main__":
    raise SystemExit(main())
