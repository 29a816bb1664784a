"""The choices around a method, one at a time, and the claims of LRPx 5.2 about each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lens_attr import display
from lens_attr.attribution import MethodTable
from lens_attr.display import Glance, Shown
from lens_attr.errors import InputError
from lens_attr.evaluation.benchmark import Settings, bench
from lens_attr.evaluation.comparing import (
    COMPARED,
    Claim,
    compare_runs,
    mean_over_methods,
    verdict,
)
from lens_attr.evaluation.intervals import paired_test
from lens_attr.evaluation.results import BenchTable, title_of
from lens_attr.evaluation.running import (
    BATCH,
    SAMPLES,
    Methods,
    has_embeddings,
    methods_by_name,
)
from lens_attr.evaluation.store import write_text
from lens_attr.evaluation.tasks import Task, Tasks
from lens_attr.rules import RuleSet

if TYPE_CHECKING:
    import plotly.graph_objects as go

MARGIN = 1.0
"""Percentage points that are too few to matter."""
ABOUT = 5.0
"""Percentage points that "about equal" allows."""

JUDGED_BY = ("pg", "mrr", "rma")
CLAIMS = ("axis", "claim", "metric", "difference", "low", "high", "p", "n", "margin", "verdict")

Reacts = Callable[[str | RuleSet, Mapping[str, Any]], bool]
"""Whether a choice can make a difference to a method with its options."""


def _always(method: str | RuleSet, options: Mapping[str, Any]) -> bool:
    return True


def _explains_the_target(method: str | RuleSet, options: Mapping[str, Any]) -> bool:
    return isinstance(method, RuleSet) or MethodTable()[method].target_aware


def _chooses_embeddings(method: str | RuleSet, options: Mapping[str, Any]) -> bool:
    return "embeddings" not in options and (isinstance(method, RuleSet) or has_embeddings(method))


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
        reacts: which methods the choice can make a difference to; only these are judged.
        otherwise: why it makes none to the others.
    """

    name: str
    claim: str
    first: str
    second: str
    kind: Claim
    margin: float
    reacts: Reacts = _always
    otherwise: str = ""


AXES = (
    Axis(
        "target", "contrastive is at least as good", "contrastive", "logit", "at least", MARGIN,
        _explains_the_target, "explains no target",
    ),
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
        "equal", ABOUT, _chooses_embeddings, "has no choice of embeddings",
    ),
)  # fmt: skip


@dataclass(frozen=True, repr=False)
class AxesTable(Shown):
    """Both ways of every choice, compared sample by sample.

    Attributes:
        base: the run with the settings that every other one differs from in one choice.
        differences: columns of `comparing.compare_runs`, preceded by ``axis``.
        claims: one row per choice and metric, with the columns `CLAIMS`; of each sample's mean over
            the methods that the choice can make a difference to.
        left_out: the reason, by name of a choice that could not be made.
        unmoved: the methods that a choice can make no difference to, by its name.
    """

    base: BenchTable
    differences: pd.DataFrame
    claims: pd.DataFrame
    left_out: Mapping[str, str] = field(default_factory=dict)
    unmoved: Mapping[str, Sequence[str]] = field(default_factory=dict)

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

    def plot(self, metric: str = "pg") -> go.Figure:
        """Every method's paired difference with its interval, choice by choice."""
        return display.figure_of("axes", self, metric=metric)

    @property
    def compared(self) -> list[Axis]:
        """The choices that were made both ways."""
        return [axis for axis in AXES if axis.name not in self.left_out]

    def verdicts(self, axis: Axis) -> list[str]:
        """What was found of one claim: a line for each metric, and which methods were not asked."""
        rows = [row for row in self.claims.to_dict("records") if row["axis"] == axis.name]
        lines = [f"{title_of(row['metric'])}: {_verdict(row)}" for row in rows]
        if self.unmoved.get(axis.name):
            lines.append(f"not judged, {axis.otherwise}: {', '.join(self.unmoved[axis.name])}")
        return lines

    def to_markdown(self) -> str:
        """For each choice its claim, whether it holds here, and the paired table."""
        parts = [self._axis_markdown(axis) for axis in self.compared]
        lines = [f"- {name}: {reason}" for name, reason in self.left_out.items()]
        if lines:
            parts.append("Not compared:\n\n" + "\n".join(lines))
        return "\n\n".join(parts) + "\n"

    def _axis_markdown(self, axis: Axis) -> str:
        found = [f"- {line}" for line in self.verdicts(axis)]
        names = f"{axis.first} | {axis.second}"
        head = f"| task | method | metric | {names} | difference | p | n |"
        lines = [head, "|---|---|---|---:|---:|---:|---:|---:|"]
        rows = [r for r in self.differences.to_dict("records") if r["axis"] == axis.name]
        lines += [_line(row) for row in rows if row["metric"] in JUDGED_BY]
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


def _verdict(row: Mapping[Any, Any]) -> str:
    if not row["n"]:
        return f"{row['verdict']} (no samples)"
    return (
        f"{row['verdict']} (mean difference {row['difference']:+.2f} [{row['low']:+.2f}, "
        f"{row['high']:+.2f}] points, p = {row['p']:.3g}, n = {row['n']}, margin "
        f"{row['margin']:g})"
    )


def _line(row: Mapping[Any, Any]) -> str:
    cells = ["-"] * 4
    if row["n"]:
        ends = f"[{row['low']:+.2f}, {row['high']:+.2f}]"
        cells = [f"{row['first']:.1f}", f"{row['second']:.1f}", f"{row['difference']:+.2f} {ends}"]
        cells.append(f"{row['p']:.3g}")
    names = [row["task"], row["method"], title_of(row["metric"])]
    return f"| {' | '.join([*names, *cells, str(row['n'])])} |"


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
        out: a folder for the run with the settings as they are and for the comparison; every other
            run goes into a folder of its own in it.

    Raises:
        InputError: as `bench`.
    """
    base_settings = replace(settings or Settings(), embeddings="full")
    for name in ("contrastive", "special_tokens", "whole_text"):
        if getattr(base_settings, name) != getattr(Settings(), name):
            raise InputError(f"the axes vary {name} themselves: leave it at its default.")

    def run(of: Any, chosen: Settings, on: Tasks, by: Methods, folder: Path | None) -> BenchTable:
        return bench(
            of, on, by, n=n, settings=chosen, options=options, out=folder,
            batch_size=batch_size, progress=progress, command=command,
        )  # fmt: skip

    each = [tasks] if isinstance(tasks, (str, Task)) else list(tasks)
    folder = None if out is None else Path(out)
    base = run(model, base_settings, each, methods, folder)
    plan = _planned(base, each, low_precision is not None, methods_by_name(methods), options or {})
    others = {}
    for axis, settings in _other_ways(base_settings).items():
        if axis not in plan.left_out:
            on = plan.asking if axis == "question" else each
            of = low_precision if axis == "precision" else model
            inside = None if folder is None else folder / axis.replace(" ", "_")
            others[axis] = run(of, settings, on, plan.reacting[axis], inside)
    table = _compared(base, others, plan, base_settings.seed)
    if folder is not None:
        table.save(folder)
    return table


def _other_ways(base: Settings) -> dict[str, Settings]:
    """The settings of the second way of each choice."""
    return {
        "target": replace(base, contrastive=False),
        "special tokens": replace(base, special_tokens=True),
        "question": replace(base, whole_text=True),
        "precision": base,
        "embeddings": replace(base, embeddings="token"),
    }


@dataclass(frozen=True)
class _Plan:
    """Which choices are made, and which methods each can make a difference to."""

    asking: list[str | Task]
    reacting: Mapping[str, list[str | RuleSet]]
    unmoved: Mapping[str, list[str]]
    left_out: Mapping[str, str]


def _planned(
    base: BenchTable,
    tasks: list[str | Task],
    has_low_precision: bool,
    methods: Mapping[str, str | RuleSet],
    options: Mapping[str, Mapping[str, Any]],
) -> _Plan:
    defined = {name: method for name, method in methods.items() if name not in base.refused}
    asking = [task for task in tasks if _has_question(base, task)]
    reacting: dict[str, list[str | RuleSet]] = {}
    unmoved: dict[str, list[str]] = {}
    left_out: dict[str, str] = {}
    for axis in AXES:
        moved = {n: m for n, m in defined.items() if axis.reacts(m, options.get(n, {}))}
        reacting[axis.name] = list(moved.values())
        unmoved[axis.name] = [name for name in defined if name not in moved]
        if not defined:
            left_out[axis.name] = "no method is defined for this model"
        elif not moved:
            left_out[axis.name] = f"no method reacts, each {axis.otherwise}: {', '.join(defined)}"
    if not asking:
        left_out["question"] = "no task has a context apart from its question"
    if not has_low_precision:
        left_out["precision"] = "no model in another precision was given"
    return _Plan(asking, reacting, unmoved, left_out)


def _has_question(base: BenchTable, task: str | Task) -> bool:
    """Whether some text of a task lies outside the context it asks about."""
    frame = base.samples[task if isinstance(task, str) else task.name, SAMPLES]
    return any(
        not all(c or s for c, s in zip(row["context"], row["special"], strict=True))
        for row in frame.to_dict("records")
    )


def _compared(
    base: BenchTable, others: Mapping[str, BenchTable], plan: _Plan, seed: int
) -> AxesTable:
    differences = [pd.DataFrame(columns=["axis", *COMPARED])]
    claims = []
    for axis in AXES:
        if axis.name not in others:
            continue
        other = others[axis.name]
        found = compare_runs(base, other, seed)
        found.insert(0, "axis", axis.name)
        differences.append(found)
        claims += [_judged(axis, base, other, metric, seed) for metric in JUDGED_BY]
    whole = pd.concat(differences[1:] or differences, ignore_index=True)
    judged = pd.DataFrame(claims, columns=list(CLAIMS))
    return AxesTable(base, whole, judged, plan.left_out, plan.unmoved)


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
