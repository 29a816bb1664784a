"""What the modes of ``lens-attr bench`` run and show."""

from __future__ import annotations

from pathlib import Path

from lens_attr.circuits.score_ablation import TSG
from lens_attr.cli import console
from lens_attr.cli.bench_runs import (
    Measured,
    Request,
    records_of,
    run,
    run_ablation,
    run_axes,
    show_table,
)
from lens_attr.evaluation import (
    Settings,
    Speed,
    Stability,
    bench_length,
    bench_speed,
    bench_stability,
    tasks,
)
from lens_attr.evaluation.ablation import shown
from lens_attr.evaluation.axes import JUDGED_BY
from lens_attr.evaluation.results import rows_by_length
from lens_attr.evaluation.speed import EXPLICIT, GRADIENT, operations
from lens_attr.graph.precision import Float64Throughout
from lens_attr.report import Section
from lens_attr.runs import SelfRepairSettings, bench_self_repair

FLOAT64 = "float64"


def measure(request: Request, measured: Measured, as_json: bool) -> None:
    """Plausibility, deletion or faithfulness of the chosen methods."""
    table = run(request, measured)
    lengths = sorted(set(measured.lengths))
    # One length alone has its table already.
    several = request.tasks if len(lengths) > 1 else []
    sections = [
        Section(f"{task.name} by length", "", [rows_by_length(table, task.name, lengths)])
        for task in several
    ]
    show_table(table, request, as_json, sections)


# ------------------------------------------------------------------------------- axes


def axes(request: Request, measured: Measured, as_json: bool) -> None:
    """Every choice both ways, and what becomes of the claims about it."""
    table = run_axes(request, measured)
    sections = [
        Section(
            f"{axis.name}: {axis.claim}?",
            "\n\n".join(table.verdicts(axis)),
            [table.differences.query("axis == @axis.name").drop(columns="axis")],
        )
        for axis in table.compared
    ]
    if table.left_out:
        lines = [f"{name} is not compared: {why}" for name, why in table.left_out.items()]
        sections.append(Section("Not compared", "\n\n".join(lines)))
    if table.claims["n"].any():
        sections.append(Section("Differences, drawn", "", [table.plot(m) for m in JUDGED_BY]))
    document = {
        "claims": records_of(table.claims),
        "pairs": records_of(table.differences),
        "left_out": dict(table.left_out),
        "unmoved": dict(table.unmoved),
    }
    show_table(table.base, request, as_json, sections, document)


# --------------------------------------------------------------------------- ablations


def ablate(request: Request, measured: Measured, preset: str, as_json: bool) -> None:
    """The parts of a preset, by any measure."""
    table = run_ablation(request, measured, preset)
    sections = [
        Section(f"{rows['task'].iloc[0]}: {rows['series'].iloc[0]}", _prose(preset), [shown(rows)])
        for _, rows in table.rows.groupby(["task", "series"], sort=False)
    ]
    figures = [
        table.plot(task, metric)
        for task, metric in dict.fromkeys(
            zip(table.rows["task"], table.rows["metric"], strict=True)
        )
        if table.rows.query("task == @task and metric == @metric")["n"].any()
    ]
    sections.append(Section("Parts, drawn", "", figures))
    document = {"ablation": records_of(table.rows)}
    show_table(table.base, request, as_json, sections, document, figures=False)


def _prose(preset: str) -> str:
    return (
        f"Parts of {preset}. Behind the interval: the difference to the variant in the column "
        "against, on the same samples, with the p-value of a paired permutation test."
    )


# ---------------------------------------------------------------- stability and length


def stability(
    request: Request, settings: Stability, pairs: Path | None, skip_bad: bool, as_json: bool
) -> None:
    """Built-in edits of the request's tasks, or the pairs of a file."""
    edited = request.tasks if pairs is None else [tasks.read_pairs(pairs, skip_bad=skip_bad)]
    model = request.load()
    with console.notices(request.quiet):
        table = bench_stability(model, edited, request.names, settings=settings, **request.shared)
    show_table(table, request, as_json)


def length(request: Request, measured: Measured, as_json: bool) -> None:
    """The request's tasks with distractor sentences before every text."""
    assert isinstance(measured.settings, Settings)
    model = request.load()
    with console.notices(request.quiet):
        table = bench_length(
            model, request.tasks, request.names, settings=measured.settings, **request.shared
        )
    show_table(table, request, as_json)


# ------------------------------------------------------------------------------- speed


def speed(request: Request, as_json: bool) -> None:
    """Ways to the same relevance, timed text by text."""
    settings = Speed(seed=request.seed)
    if request.names != "all":
        settings = Speed([name for name in request.names if name != GRADIENT], request.seed)
    model = request.load()
    with Float64Throughout():
        exact = request.load(FLOAT64)
    shared = {key: value for key, value in request.shared.items() if key != "batch_size"}
    with console.notices(request.quiet):
        table = bench_speed(model, request.tasks, exact=exact, settings=settings, **shared)
    sections, document = [], {}
    for task in table.tasks:
        frame = table.samples.get((task, EXPLICIT))
        if frame is not None and not frame.empty:
            found = operations(table, task)
            document[task] = found.to_dict("records")
            prose = f"{task}: explicit AttnLRP by kind of operation, medians."
            sections.append(Section("Operations", prose, [found]))
    show_table(table, request, as_json, sections, {"operations": document})


# ------------------------------------------------------------------------- self-repair


def self_repair(request: Request, as_json: bool) -> None:
    """Attention scores ablated alone and in pairs."""
    model = request.load()
    settings = SelfRepairSettings(seed=request.seed)
    if request.names != "all":
        presets = ["gradient" if name == GRADIENT else name for name in request.names]
        settings = SelfRepairSettings(methods=[*presets, TSG], seed=request.seed)
    with console.notices(request.quiet):
        found = bench_self_repair(model, request.tasks, settings=settings, **request.shared)
    sections, document = [], {}
    for task, result in found.results.items():
        thresholds = settings.thresholds
        tables = {
            "agreement with exact ablation": result.agreement(),
            "predicted over exact joint effects": result.aggregation(thresholds),
            "groups of interchangeable keys": result.group_counts(thresholds),
        }
        sections += [Section(f"{task}: {name}", "", [t]) for name, t in tables.items()]
        if len(result.pairs):
            sections.append(Section(f"{task}: joint and summed effects", "", [result.plot()]))
        document[task] = {name: records_of(t) for name, t in tables.items()}
    show_table(found.table, request, as_json, sections, {"self_repair": document})
