"""``lens-attr prune``: does a ranking of heads hold when the heads are removed?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lens_attr.cli import console, options
from lens_attr.cli import pairs as pairs_cli
from lens_attr.errors import InputError, UnsupportedModelError

if TYPE_CHECKING:
    from lens_attr.circuits.results import PruningComparison, Ranking
    from lens_attr.types import Sample

RANKING_SEED, PRUNING_SEED = 0, 1
EVERY = "all"
NAMES = {"head": "attention heads", "mlp": "MLPs", "neuron": "neurons"}

TaskOption = Annotated[
    Literal["sva", "ra", "qa", "all"] | None,
    typer.Option(
        "--task",
        help="Sentences made by the built-in generator: subject-verb agreement, reflexives, "
        "questions, or all of them.",
        show_default=False,
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        exists=True,
        dir_okay=False,
        help="Your own samples instead: one JSON object per line with text, target and foil.",
        show_default=False,
    ),
]
MethodsOption = Annotated[
    list[str],
    typer.Option(
        *options.METHOD,
        help="Methods to rank with, with commas or given again; all: every one that can on this "
        "model.",
    ),
]
NOption = Annotated[int, typer.Option("--n", min=1, help="Samples to measure accuracy on.")]
NRankOption = Annotated[int, typer.Option("--n-rank", min=1, help="Other samples to rank on.")]
SeedsOption = Annotated[int, typer.Option("--seeds", min=0, help="Random orders to compare with.")]
OrderOption = Annotated[
    options.Order, typer.Option("--order", help="Which heads go first: least or most relevant.")
]
AblationOption = Annotated[
    options.Ablation,
    typer.Option("--ablation", help="What a removed head gives instead; resample: another text's."),
]
UnitOption = Annotated[
    options.Unit, typer.Option("--unit", help="Remove heads, whole MLPs, or single neurons.")
]
StepsOption = Annotated[
    int | None,
    typer.Option(
        "--steps",
        min=1,
        help="Points of the curve; default: one per removal, for neurons 50.",
        show_default=False,
    ),
]
DEFAULT_OUT = Path("out/prune")
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        file_okay=False,
        help="Folder for curves, rankings and a page; default: out/prune, unless --html or --csv "
        "say where.",
        show_default=False,
    ),
]


def prune(
    model: options.ModelOption = options.DEMO_MODEL,
    task: TaskOption = None,
    data: DataOption = None,
    methods: MethodsOption = ["gradient_x_input", "lrp", "attnlrp", "gim"],  # noqa: B006
    pool: options.PoolOption = "relu_token",
    n: NOption = 200,
    n_rank: NRankOption = 200,
    seeds: SeedsOption = 10,
    order: OrderOption = "least",
    ablation: AblationOption = "zero",
    unit: UnitOption = "head",
    steps: StepsOption = None,
    out: OutOption = None,
    backend: options.BackendOption = "auto",
    dtype: options.DtypeOption = "float32",
    device: options.DeviceOption = None,
    as_json: options.JsonOption = False,
    html: options.HtmlOption = None,
    csv: pairs_cli.CsvOption = None,
    quiet: options.QuietOption = False,
) -> None:
    """Remove heads one by one and watch the accuracy: does the ranking beat a random order?

    Heads are ranked on one set of samples and removed on another.

    Example: lens-attr prune --task sva --methods attnlrp,gim
    """
    import lens_attr as la

    if (task is None) == (data is None):
        raise typer.BadParameter("give either --task or --data.")
    names = options.method_names(methods)
    if names != [EVERY]:
        options.check_methods(names)
    ranking_set, pruning_set = _samples(task, data, n_rank, n)
    progress = console.wants_progress(quiet)
    with console.working(f"loading {model}", quiet):
        loaded = options.load_model(model, backend, dtype, device)
    with console.notices(quiet):
        if names == [EVERY]:
            names = _methods_that_rank(loaded, ranking_set[:1], unit)
        rankings = [_rank(loaded, ranking_set, name, pool, unit, progress) for name in names]
        comparison = la.circuits.compare_pruning(
            loaded,
            pruning_set,
            rankings,
            seeds=seeds,
            order=order,
            ablation=ablation,
            steps=steps,
            progress=progress,
        )
    if out is None and html is None and csv is None:
        out = DEFAULT_OUT
    if out is not None:
        comparison.save(out)
        for ranking in rankings:
            ranking.save(out / "rankings" / ranking.method)
        options.note_saved(out, "pruning", model)
    files = _files(out, html, csv)
    _write(comparison, files, model, task or str(data), len(ranking_set))
    if as_json:
        console.print_json(_document(comparison, files))
        return
    console.print_table(comparison.summary())
    if not quiet:
        console.print_facts(files)


def _methods_that_rank(model: Any, samples: list[Sample], unit: options.Unit) -> list[str]:
    """The methods that are defined for the model and give relevance of such units.

    Raises:
        InputError: there is none, with what the last of them said.
    """
    import lens_attr as la

    found, problem = [], None
    for method in la.methods():
        try:
            la.circuits.unit_scores(model, samples, unit, method.name, progress=False)
        except (InputError, UnsupportedModelError) as error:
            problem = error
        else:
            found.append(method.name)
    if not found:
        raise InputError(f"no method can rank {NAMES[unit]} here: {problem}")
    return found


def _rank(
    model: Any,
    samples: list[Sample],
    method: str,
    pool: options.Pool,
    unit: options.Unit,
    progress: bool,
) -> Ranking:
    import lens_attr as la

    return la.circuits.unit_scores(model, samples, unit, method, pool, progress=progress)


def _samples(
    task: str | None, data: Path | None, n_rank: int, n: int
) -> tuple[list[Sample], list[Sample]]:
    """Samples to rank on and samples to prune on; no text is in both."""
    if data is not None:
        return _split(_read(data), n_rank, n)
    from lens_attr.demo import generate

    ranking = generate(str(task), n_rank, seed=RANKING_SEED, split="train")
    return ranking, generate(str(task), n, seed=PRUNING_SEED, split="heldout")


def _split(samples: list[Sample], n_rank: int, n: int) -> tuple[list[Sample], list[Sample]]:
    ranking = samples[:n_rank]
    seen = {sample.text for sample in ranking}
    pruning = [sample for sample in samples[n_rank:] if sample.text not in seen][:n]
    if len(pruning) < n:
        raise InputError(
            f"{len(samples)} samples are too few to rank on {n_rank} and prune on {n} other "
            "texts: give more, or lower --n-rank and --n."
        )
    return ranking, pruning


def _read(path: Path) -> list[Sample]:
    """Samples from JSON lines; ``answer`` is another name for ``target``.

    Raises:
        InputError: text that is not UTF-8, a line that is no JSON object, or lacks a field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        line = problem.object.count(b"\n", 0, problem.start) + 1
        raise InputError(f"{path.name} line {line} is not UTF-8: save the file as UTF-8.") from None
    lines = enumerate(text.splitlines(), start=1)
    return [_sample(line, f"{path.name} line {i}") for i, line in lines if line.strip()]


def _sample(line: str, where: str) -> Sample:
    from lens_attr.types import Sample

    try:
        record = json.loads(line)
    except json.JSONDecodeError as problem:
        raise InputError(f"{where} is not JSON: {problem}") from problem
    if not isinstance(record, dict):
        raise InputError(f"{where} is not a JSON object with text, target and foil.")
    fields = {
        "text": record.get("text"),
        "target": record.get("target", record.get("answer")),
        "foil": record.get("foil"),
        "suffix": record.get("suffix", ""),
    }
    for name, value in fields.items():
        if not isinstance(value, str):
            raise InputError(f"{where} has no {name!r}, or it is not a string.")
    return Sample(
        fields["text"], fields["target"], fields["foil"], suffix=fields["suffix"], source=where
    )


def _files(out: Path | None, html: Path | None, csv: Path | None) -> dict[str, Path]:
    """Where the curves and the page go."""
    if out is not None:
        html, csv = html or out / "pruning.html", csv or out / "curve.csv"
    return {name: path for name, path in (("curves", csv), ("page", html)) if path is not None}


def _write(
    comparison: PruningComparison, files: dict[str, Path], model: str, samples: str, n_rank: int
) -> None:
    from lens_attr.report import Page, Section, write_page

    if "curves" in files:
        options.write_csv(comparison.to_pandas(), files["curves"])
    if "page" not in files:
        return
    curve = comparison.curves[0]
    prose = (
        f"{model}: {NAMES[curve.unit]} are removed, the {curve.order} relevant first "
        f"({curve.ablation} ablation). Ranked on {n_rank} samples of {samples}, measured on "
        f"{curve.n} others."
    )
    figures = [comparison.plot(), comparison.plot(y="logit_diff"), comparison.summary()]
    write_page(
        Page(f"Removing {NAMES[curve.unit]}", prose, [Section("Curves", "", figures)]),
        files["page"],
    )


def _document(comparison: PruningComparison, files: dict[str, Path]) -> dict[str, Any]:
    curves = {
        curve.method: {
            "fraction": curve.fraction.tolist(),
            "accuracy": curve.accuracy.tolist(),
            "logit_diff": curve.logit_diff.tolist(),
            "pruned": [list(head) for head in curve.pruned],
        }
        for curve in (*comparison.curves, *comparison.random)
    }
    summary = comparison.summary().to_dict("records")
    return {
        "summary": summary,
        "curves": curves,
        "files": list(files.values()),
    }
