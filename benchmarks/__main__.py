"""Every benchmark, in one table: ``python -m benchmarks [--quick] [--only presets ...]``.

Writes ``results/benchmarks.md`` and ``.json`` beside this file (or into ``--out``), section by
section as they end, each with the machine and the versions it ran on. Sections that stand there
already stay until they are measured again on that version of TransformerLens; quick runs are
written with ``--out`` only. Run it on an idle machine, or with ``--clock cpu --threads 1``. Where
page faults are dear (in a virtual machine), have glibc keep the memory that it once got, or they
fall on one candidate or another: ``MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000``. The
sections that read the resident set (long, runs) want its usual ways.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import (
    alti_logit,
    bench_call,
    circuits,
    many_targets,
    memory,
    presets,
    runs,
    startup,
)
from benchmarks.harness import Options, Row, machine, table

RESULTS = Path(__file__).parent / "results"
Section = dict[str, Any]
"""What was measured: its name, the machine, whether it was quick, its rows, and an error."""

SECTIONS: dict[str, tuple[str, Callable[[Options], Iterator[Row]], Any]] = {
    "startup": ("Start", startup.rows, startup),
    "presets": ("Presets beside gradient x input", presets.rows, presets),
    "presets_1b": ("Presets at 1B shape", presets.llama_rows, presets.llama_rows),
    "launches": ("Operations of the backward", presets.launch_rows, presets.launch_rows),
    "memory": ("Peak memory", memory.rows, memory),
    "long": ("Long contexts", memory.long_context_rows, memory.long_context_rows),
    "many_targets": ("Several targets of one text", many_targets.rows, many_targets),
    "alti_logit": ("ALTI-Logit", alti_logit.rows, alti_logit),
    "bench": ("A thousand samples in one call", bench_call.rows, bench_call),
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
    out = arguments.out or (None if options.quick else RESULTS)
    found: dict[str, Section] = _read(out) if out else {}
    failed = False
    for name in arguments.only:
        start = time.perf_counter()
        print(f"{name} ...", flush=True)
        section = _section(name, options)
        found[_key(name, section)] = section
        failed |= bool(section["error"])
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        if out is not None:
            _write(found, out)
    print(page(found))
    return int(failed)


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
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def _section(name: str, options: Options) -> Section:
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
    where = machine(options)
    return {"name": name, "machine": where, "quick": options.quick, "rows": rows, "error": error}


def _key(name: str, section: Section) -> str:
    return f"{name}, transformer-lens {section['machine']['versions']['transformer-lens']}"


def page(found: Mapping[str, Section]) -> str:
    """Everything in Markdown."""
    aimed = [row for one in found.values() for row in one["rows"] if row.met is not None]
    lines = [
        "# Benchmarks",
        "",
        "Random weights, but for demo models. Medians with their quartiles; candidates run in turn "
        "and ratios are taken run by run. Aims are for a CPU and say how large the ratio may be: "
        f"{sum(bool(row.met) for row in aimed)} of {len(aimed)} are met.",
    ]
    order = list(SECTIONS)
    for key in sorted(found, key=lambda key: (order.index(found[key]["name"]), key)):
        lines += ["", *_chapter(found[key])]
    return "\n".join(lines) + "\n"


def _chapter(section: Section) -> list[str]:
    title, _, explained = SECTIONS[section["name"]]
    where = section["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    quick = " --quick" * section["quick"]
    allocator = "".join(f"{name}={value} " for name, value in where.get("allocator", {}).items())
    return [
        f"## {title} (transformer-lens {where['versions']['transformer-lens']})",
        "",
        *_paragraphs(explained.__doc__),
        "",
        f"`{allocator}python -m benchmarks{quick} --only {section['name']}`, {where['date']}: "
        f"{where.get('gpu', where['cpu'])}, threads: {where['threads']}, {where['dtype']}, "
        f"{where['clock']}-clock seconds, Python {where['python']}; {versions}.",
        "",
        table(section["rows"]),
        *(["", f"Stopped by {section['error']}"] if section["error"] else []),
    ]


def _paragraphs(doc: str | None) -> list[str]:
    return [line.strip() for line in (doc or "").strip().splitlines()]


def _read(out: Path) -> dict[str, Section]:
    """What stands there."""
    path = out / "benchmarks.json"
    if not path.exists():
        return {}
    names = {field.name for field in fields(Row)}
    found: dict[str, Section] = json.loads(path.read_text())
    for section in found.values():
        plain = [{k: v for k, v in row.items() if k in names} for row in section["rows"]]
        section["rows"] = [Row(**row) for row in plain]
    return found


def _write(found: Mapping[str, Section], out: Path) -> None:
    """The page and the raw numbers."""
    out.mkdir(parents=True, exist_ok=True)
    raw = {key: one | {"rows": [_plain(row) for row in one["rows"]]} for key, one in found.items()}
    (out / "benchmarks.json").write_text(json.dumps(raw, indent=1) + "\n")
    (out / "benchmarks.md").write_text(page(found))


def _plain(row: Row) -> dict[str, Any]:
    ratio = float(np.median(row.ratios)) if row.base else None
    return asdict(row) | {"ratio": ratio, "met": row.met}


if __name__ == "__main__":
    raise SystemExit(main())
