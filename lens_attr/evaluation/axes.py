"""The choices around a method, one at a time, and the claims of LRPx 5.2 about each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from lens_attr import display
from lens_attr.display import Glance, Shown
from lens_attr.errors import InputError
from lens_attr.evaluation.benchmark import Settings, Tasks, bench
from lens_attr.evaluation.comparing import Claim, compare_runs, mean_over_methods, verdict
from lens_attr.evaluation.intervals import paired_test
from lens_attr.evaluation.results import BenchTable, title_of
from lens_attr.evaluation.running import BATCH, SAMPLES, Methods
from lens_attr.evaluation.store import write_text
from lens_attr.evaluation.tasks import Task

MARGIN = 1.0
"""Percentage points that are too few to matter."""
ABOUT = 5.0
"""Percentage points that "about equal" allows."""

JUDGED_BY = ("pg", "mrr", "rma")


@dataclass(frozen=True)
class Axis:
    """One choice, both ways.

    Attributes:
        name: of the choice.
        claim: what LRPx 5.2 says of it.
        first: what is said to be at least as good.
        second: the other way.
        kind: whether the first is said to be at least as good or equal.
        margin: percentage points that are too few to count against the claim.
    """

    name: str
    claim: str
    first: str
    second: str
    kind: Claim
    margin: float


AXES = (
    Axis("target", "contrastive is at least as good", "contrastive", "logit", "at least", MARGIN),
    Axis(
        "special tokens", "leaving special tokens out is at least as good", "left out", "judged",
        "at least", MARGIN,
    ),
    Axis(
        "question", "judging the context only is at least as good", "context", "whole text",
        "at least", MARGIN,
    ),
    Axis("precision", "a lower precision makes no difference", "full", "low", "equal", MARGIN),
    Axis(
        "embeddings", "full and token embeddings are about equal", "full", "token",
        "equal", ABOUT,
    ),
)  # fmt: skip


@dataclass(frozen=True, repr=False)
class AxesTable(Shown):
    """Both ways of every choice, compared sample by sample.

    Attributes:
        base: the run with the settings that every other one differs from in one choice.
        differences: columns of `comparing.compare_runs`, preceded by ``axis``.
        claims: one row per choice and metric: axis, claim, metric, difference, low, high, p, n,
            margin, verdict; of each sample's mean over the methods.
        left_out: the reason, by name of a choice that could not be made.
    """

    base: BenchTable
    differences: pd.DataFrame
    claims: pd.DataFrame
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def headline(self) -> str:
        """How many claims hold here."""
        verdicts = list(self.claims["verdict"]) if len(self.claims) else []
        found = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))
        return f"{display.count(len(verdicts), 'claim')} about the choices: {found or 'none'}"

    def glance(self) -> Glance:
        """The claims with their verdicts, and what was not compared."""
        notes = [f"{name} is not compared: {why}" for name, why in self.left_out.items()]
        columns = ["axis", "claim", "metric", "difference", "p", "n", "verdict"]
        return Glance(self.headline, notes=notes, table=self.claims.reindex(columns=columns))

    def to_pandas(self) -> pd.DataFrame:
        """The paired differences, method by method."""
        return self.differences.copy()

    def to_markdown(self) -> str:
        """For each choice its claim, whether it holds here, and the paired table."""
        parts = [self._axis_markdown(axis) for axis in AXES if axis.name not in self.left_out]
        lines = [f"- {name}: {reason}" for name, reason in self.left_out.items()]
        if lines:
            parts.append("Not compared:\n\n" + "\n".join(lines))
        return "\n\n".join(parts) + "\n"

    def _axis_markdown(self, axis: Axis) -> str:
        claims = [r for r in self.claims.to_dict("records") if r["axis"] == axis.name]
        found = [
            f"- {title_of(row['metric'])}: **{row['verdict']}** (mean difference "
            f"{row['difference']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}] points, "
            f"p = {row['p']:.3g}, n = {row['n']}, margin {row['margin']:g})"
            for row in claims
        ]
        names = f"{axis.first} | {axis.second}"
        head = f"| task | method | metric | {names} | difference | p | n |"
        lines = [head, "|---|---|---|---:|---:|---:|---:|---:|"]
        rows = [r for r in self.differences.to_dict("records") if r["axis"] == axis.name]
        lines += [
            f"| {r['task']} | {r['method']} | {title_of(r['metric'])} | {r['first']:.1f} "
            f"| {r['second']:.1f} | {r['difference']:+.2f} [{r['low']:+.2f}, {r['high']:+.2f}] "
            f"| {r['p']:.3g} | {r['n']} |"
            for r in rows
            if r["metric"] in JUDGED_BY
        ]
        title = f"### {axis.name}: {axis.claim}?"
        return "\n\n".join([title, "\n".join(found), "\n".join(lines)])

    def __str__(self) -> str:
        return self.to_markdown()

    def save(self, folder: str | Path) -> Path:
        """Write ``axes.csv``, ``claims.csv`` and ``axes.md``."""
        folder = Path(folder)
        write_text(folder / "axes.csv", str(self.differences.to_csv(index=False)))
        write_text(folder / "claims.csv", str(self.claims.to_csv(index=False)))
        write_text(folder / "axes.md", self.to_markdown())
        return folder


def bench_axes(
    model: Any,
    tasks: Tasks = "sva",
    methods: Methods = "all",
    *,
    n: int = 1000,
    settings: Settings | None = None,
    low_precision: Any = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    out: str | Path | None = None,
    batch_size: int = BATCH,
    progress: bool = False,
    command: str = "",
) -> AxesTable:
    """Run every choice both ways on the same samples (LRPx, Tables 2 to 7).

    Args:
        model: as in `bench`, as everything not named here.
        low_precision: the same model in another precision; without it that choice is left out.
        out: a folder; each run goes into one of its own, the comparison beside them.

    Raises:
        InputError: as `bench`.
    """
    base_settings = replace(settings or Settings(), embeddings="full")
    changed: dict[str, tuple[Any, Settings]] = {
        "target": (model, replace(base_settings, contrastive=not base_settings.contrastive)),
        "special tokens": (model, replace(base_settings, special_tokens=True)),
        "question": (model, replace(base_settings, whole_text=True)),
        "precision": (low_precision, base_settings),
        "embeddings": (model, replace(base_settings, embeddings="token")),
    }
    for name in ("contrastive", "special_tokens", "whole_text"):
        if getattr(base_settings, name) != getattr(Settings(), name):
            raise InputError(f"the axes vary {name} themselves: leave it at its default.")

    def run(name: str, of: Any, chosen: Settings, on: Tasks) -> BenchTable:
        folder = None if out is None else Path(out) / name.replace(" ", "_")
        return bench(
            of, on, methods, n=n, settings=chosen, options=options, out=folder,
            batch_size=batch_size, progress=progress, command=command,
        )  # fmt: skip

    each = [tasks] if isinstance(tasks, (str, Task)) else list(tasks)
    base = run("base", model, base_settings, each)
    asking = [task for task in each if _has_question(base, task)]
    left_out: dict[str, str] = {}
    if not asking:
        left_out["question"] = "no task has a context apart from its question"
    if low_precision is None:
        left_out["precision"] = "no model in another precision was given"
    others = {
        name: run(name, *how, asking if name == "question" else each)
        for name, how in changed.items()
        if name not in left_out
    }
    table = _compared(base, others, left_out, base_settings.seed)
    if out is not None:
        table.save(out)
    return table


def _has_question(base: BenchTable, task: str | Task) -> bool:
    """Whether some text of a task lies outside the context it asks about."""
    frame = base.samples[task if isinstance(task, str) else task.name, SAMPLES]
    return any(
        not all(c or s for c, s in zip(row["context"], row["special"], strict=True))
        for row in frame.to_dict("records")
    )


def _compared(
    base: BenchTable, others: Mapping[str, BenchTable], left_out: Mapping[str, str], seed: int
) -> AxesTable:
    differences, claims = [], []
    for axis in AXES:
        if axis.name not in others:
            continue
        other = others[axis.name]
        found = compare_runs(base, other, seed)
        found.insert(0, "axis", axis.name)
        differences.append(found)
        claims += [_judged(axis, base, other, metric, seed) for metric in JUDGED_BY]
    whole = pd.concat(differences, ignore_index=True)
    return AxesTable(base, whole, pd.DataFrame(claims), left_out)


def _judged(
    axis: Axis, base: BenchTable, other: BenchTable, metric: str, seed: int
) -> dict[str, Any]:
    test = paired_test(*mean_over_methods(base, other, metric), seed)
    one = test.difference
    return {
        "axis": axis.name,
        "claim": axis.claim,
        "metric": metric,
        "difference": one.value,
        "low": one.low,
        "high": one.high,
        "p": test.p,
        "n": one.n,
        "margin": axis.margin,
        "verdict": verdict(one, axis.kind, axis.margin),
    }
