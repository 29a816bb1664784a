"""What each part of a preset is worth: built up part by part, with one left out, over T.

GIM (Edin et al. 2025) consists of three parts: frozen norms, gradient normalisation (the halves at
products of two activations) and the softmax gradient at temperature T (TSG). Every preset is such
a list of parts, and each variant is a rule set that any benchmark can measure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from lens_attr import display
from lens_attr.display import Glance, Shown
from lens_attr.errors import InputError, did_you_mean
from lens_attr.evaluation.benchmark import Settings, bench
from lens_attr.evaluation.comparing import values_of
from lens_attr.evaluation.deletion import Deletion, bench_deletion
from lens_attr.evaluation.faithfulness import Faithfulness, bench_faithfulness
from lens_attr.evaluation.intervals import mean_interval, paired_test
from lens_attr.evaluation.results import PERCENT, BenchTable, title_of
from lens_attr.evaluation.running import BATCH
from lens_attr.evaluation.store import write_text
from lens_attr.evaluation.tasks import Tasks
from lens_attr.rules import RuleSet
from lens_attr.rules.presets import SWITCHES, Switches

if TYPE_CHECKING:
    import plotly.graph_objects as go

Measure = Literal["plausibility", "deletion", "faithfulness"]
Series = Literal["cumulative", "leave one out", "temperature"]

MEASURES: dict[Measure, Callable[..., BenchTable]] = {
    "plausibility": bench,
    "deletion": bench_deletion,
    "faithfulness": bench_faithfulness,
}

TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 5.0, 10.0)

PARTS: dict[str, tuple[str, ...]] = {
    "norm freeze": ("norm",),
    "gradient normalisation": ("pattern", "z", "gate"),
    "identity activation": ("activation",),
    "TSG": ("temperature",),
}
"""Switches of `lens_attr.rules.presets.Switches` by the part of a preset they belong to."""

CONSTANT = "constant attention and gates"
"""What the second part is in LRP, which does not halve but stops."""

COLUMNS = (
    "task", "series", "step", "method", "metric", "value", "low", "high", "n",
    "against", "difference", "difference_low", "difference_high", "p",
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One row of an ablation.

    Attributes:
        series: which question it answers.
        label: what is there or missing.
        method: name of the rule set that is measured.
        against: name of the one it is compared with, sample by sample; None for a first one.
    """

    series: Series
    label: str
    method: str
    against: str | None


@dataclass(frozen=True)
class Plan:
    """The variants of a preset.

    Attributes:
        steps: what is told, in order.
        rule_sets: what is measured, each once, by name.
    """

    steps: list[Step]
    rule_sets: dict[str, RuleSet]


def parts_of(preset: str) -> dict[str, dict[str, Any]]:
    """The parts of a preset with the switches each sets, in the order they are added.

    Raises:
        InputError: unknown preset, or one without parts.
    """
    if preset not in SWITCHES or preset == "gradient":
        known = [name for name in SWITCHES if name != "gradient"]
        raise InputError(f"{preset!r} has no parts to ablate; {did_you_mean(preset, known)}")
    switches, neutral = SWITCHES[preset], Switches()
    found = {}
    for part, names in PARTS.items():
        values = {name: getattr(switches, name) for name in names}
        changed = {k: v for k, v in values.items() if v != getattr(neutral, k)}
        if changed:
            found[CONSTANT if changed.get("pattern") == 0 else part] = changed
    return found


def plan(preset: str, temperatures: Sequence[float] = TEMPERATURES) -> Plan:
    """The variants of a preset: parts added one by one, one left out, and other temperatures.

    The softmax temperature varies where relevance flows through the softmax at all.

    Raises:
        InputError: unknown preset, or a temperature that is not positive.
    """
    if not all(t > 0 for t in temperatures):
        raise InputError(f"temperatures must be positive, got {list(temperatures)}.")
    parts, made = parts_of(preset), _Variants(preset)
    steps, before = [], made.name(Switches(), "gradient")
    steps.append(Step("cumulative", "gradient", before, None))
    so_far = Switches()
    for i, (part, switches) in enumerate(parts.items(), start=1):
        so_far = replace(so_far, **switches)
        name = made.name(so_far, f"{preset}-first-{i}")
        steps.append(Step("cumulative", f"+ {part}", name, before))
        before = name
    whole = SWITCHES[preset]
    steps.append(Step("leave one out", preset, preset, None))
    for part, switches in parts.items():
        neutral = {name: getattr(Switches(), name) for name in switches}
        name = made.name(replace(whole, **neutral), f"{preset}-without-{_word(part)}")
        steps.append(Step("leave one out", f"without {part}", name, preset))
    for t in temperatures if whole.pattern else ():
        name = made.name(replace(whole, temperature=float(t)), f"{preset}-T{t:g}")
        steps.append(Step("temperature", f"T = {t:g}", name, None if name == preset else preset))
    return Plan(steps, made.rule_sets)


class _Variants:
    """Rule sets by name, equal ones only once."""

    def __init__(self, preset: str) -> None:
        self._names: dict[str, str] = {}
        self.rule_sets: dict[str, RuleSet] = {}
        self.name(SWITCHES[preset], preset)

    def name(self, switches: Switches, wanted: str) -> str:
        """How the variant with these switches is called; ``wanted``, unless it has a name."""
        name = self._names.setdefault(repr(switches), wanted)
        self.rule_sets.setdefault(name, RuleSet(switches.rules(), name=name))
        return name


def _word(part: str) -> str:
    return part.replace(" ", "-")


@dataclass(frozen=True, repr=False)
class AblationTable(Shown):
    """The variants of a preset, measured.

    Attributes:
        preset: its name.
        base: the benchmark's table, with a row for every variant and baseline.
        rows: one per task, step and metric: the columns ``task``, ``series``, ``step``,
            ``method``, ``metric``, ``value``, ``low``, ``high``, ``n``, and, paired over samples,
            the ``difference`` to the method ``against``, its interval, and ``p``.
    """

    preset: str
    base: BenchTable
    rows: pd.DataFrame

    @property
    def headline(self) -> str:
        """The preset and its tasks."""
        variants = display.count(self.rows["method"].nunique(), "variant")
        return f"parts of {self.preset}: {variants} on {', '.join(self.base.tasks)}"

    def glance(self) -> Glance:
        """Every task's tables, as in `to_markdown`."""
        names = ["task", "series"]
        tables = [
            shown(steps).assign(**{name: steps[name].iloc[0] for name in names})
            for _, steps in self.rows.groupby(names, sort=False)
        ]
        return Glance(self.headline, table=pd.concat(tables) if tables else None)

    def to_pandas(self) -> pd.DataFrame:
        """The rows."""
        return self.rows.copy()

    def plot(self, task: str | None = None, metric: str = "pg") -> go.Figure:
        """Every variant's value of one metric; the first task by default."""
        return display.figure_of("ablation", self, task=task or next(iter(self.base.tasks)),
                                 metric=metric)  # fmt: skip

    def to_markdown(self) -> str:
        """For every task one table per series."""
        parts = []
        for task, mine in self.rows.groupby("task", sort=False):
            parts.append(f"### {task}: parts of {self.preset}")
            for series, steps in mine.groupby("series", sort=False):
                parts.append(f"#### {series}\n\n{_markdown(steps)}")
        if not parts:
            parts = ["Nothing was measured."]
        return "\n\n".join(parts) + "\n"

    def __str__(self) -> str:
        return self.to_markdown()

    def save(self, folder: str | Path) -> Path:
        """Write ``ablation.csv`` and ``ablation.md`` beside the benchmark's own files."""
        folder = Path(folder)
        write_text(folder / "ablation.csv", str(self.rows.to_csv(index=False)))
        write_text(folder / "ablation.md", self.to_markdown())
        return folder


def shown(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per step, one column per metric: value, interval, and difference to the step named.

    ``rows`` are those of one task and one series.
    """
    found = []
    for _, cells in rows.groupby(["step", "against"], sort=False):
        records = cells.to_dict("records")
        line = {key: records[0][key] for key in ("step", "against")}
        line |= {title_of(cell["metric"]): _cell(cell) for cell in records}
        found.append({**line, "n": max(cell["n"] for cell in records)})
    return pd.DataFrame(found)


def _markdown(rows: pd.DataFrame) -> str:
    table = shown(rows)
    lines = [f"| {' | '.join(table.columns)} |", "|---|---|" + "---:|" * (len(table.columns) - 2)]
    lines += [f"| {' | '.join(map(str, row))} |" for row in table.itertuples(index=False)]
    return "\n".join(lines)


def _cell(cell: Mapping[Any, Any]) -> str:
    if not cell["n"]:
        return "-"
    digits = 1 if cell["metric"] in PERCENT else 3
    value, low, high = (f"{cell[end]:.{digits}f}" for end in ("value", "low", "high"))
    text = f"{value} [{low}, {high}]"
    if not cell["against"]:
        return text
    return f"{text}, {cell['difference']:+.{digits}f} (p = {cell['p']:.2g})"


def ablate(
    model: Any,
    preset: str = "gim",
    tasks: Tasks = "sva",
    measure: Measure = "plausibility",
    *,
    temperatures: Sequence[float] = TEMPERATURES,
    n: int = 1000,
    settings: Settings | Deletion | Faithfulness | None = None,
    out: str | Path | None = None,
    batch_size: int = BATCH,
    progress: bool = False,
    command: str = "",
) -> AblationTable:
    """Measure every variant of a preset on the same samples.

    Args:
        model: a TransformerLens model.
        preset: ``"gim"`` or another of ``la.rules.PRESETS``.
        tasks: names of built-in tasks, or `tasks.Task` objects.
        measure: `bench`, `bench_deletion` or `bench_faithfulness`.
        temperatures: of the softmax gradient.
        n: samples of each task.
        settings: those of the measure.
        out: folder for the results; a run stopped there goes on where it was.
        batch_size: samples at a time.
        progress: show a bar with the time left.
        command: what the user typed, for the record.

    Raises:
        InputError: unknown preset or measure, or as the measure.
    """
    if measure not in MEASURES:
        hint = did_you_mean(str(measure), MEASURES)
        raise InputError(f"unknown measure {measure!r}; {hint}")
    chosen = plan(preset, temperatures)
    base = MEASURES[measure](
        model, tasks, list(chosen.rule_sets.values()), n=n, settings=settings, out=out,
        batch_size=batch_size, progress=progress, command=command,
    )  # fmt: skip
    seed = base.metadata["settings"]["seed"]
    rows = [
        row for task in base.tasks for step in chosen.steps for row in _rows(base, task, step, seed)
    ]
    table = AblationTable(preset, base, pd.DataFrame(rows, columns=list(COLUMNS)))
    if out is not None:
        table.save(out)
    return table


def _rows(base: BenchTable, task: str, step: Step, seed: int) -> list[tuple[Any, ...]]:
    """Every metric of one step; none where the model refuses it."""
    if (task, step.method) not in base.samples:
        return []
    found = []
    others: Mapping[str, Any] = {}
    if step.against is not None and (task, step.against) in base.samples:
        others = values_of(base, base.samples[task, step.against])
    for metric, values in values_of(base, base.samples[task, step.method]).items():
        if metric == "degenerate":
            continue
        one = mean_interval(values, seed)
        ends = (one.value, one.low, one.high, one.n)
        compared: tuple[Any, ...] = ("", None, None, None, None)
        if metric in others:
            test = paired_test(values, others[metric], seed)
            mean = test.difference
            compared = (step.against, mean.value, mean.low, mean.high, test.p)
        found.append((task, step.series, step.label, step.method, metric, *ends, *compared))
    return found
