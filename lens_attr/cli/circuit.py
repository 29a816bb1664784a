"""``lens-attr circuit evaluate``: does the circuit do what the model does?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lens_attr.cli import console, edges, options
from lens_attr.cli import pairs as pairs_cli

if TYPE_CHECKING:
    import pandas as pd

    from lens_attr.circuits.faithfulness_results import CircuitEvaluation, FaithfulnessComparison

circuit = typer.Typer(
    no_args_is_help=True,
    help="Run a circuit with everything outside it corrupted.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

FolderArgument = Annotated[
    Path,
    typer.Argument(
        metavar="FOLDER",
        exists=True,
        file_okay=False,
        help="What lens-attr edges wrote with --save.",
        show_default=False,
    ),
]
CurveOption = Annotated[
    bool,
    typer.Option("--curve", help="Also run circuits of all sizes, and random ones beside them."),
]
SeedsOption = Annotated[
    int, typer.Option("--seeds", min=0, help="Random orders of edges to compare with.")
]


@circuit.callback()
def group() -> None:
    """Run a circuit with everything outside it corrupted."""


@circuit.command()
def evaluate(
    folder: FolderArgument,
    clean: pairs_cli.CleanOption = None,
    corrupted: pairs_cli.CorruptedOption = None,
    target: options.TargetOption = None,
    foil: options.FoilOption = None,
    pairs: pairs_cli.PairsOption = None,
    task: pairs_cli.TaskOption = None,
    skip_misaligned: pairs_cli.SkipOption = False,
    n: pairs_cli.NOption = 100,
    curve: CurveOption = False,
    seeds: SeedsOption = 3,
    batch_size: edges.BatchOption = 32,
    model: options.ModelOption = options.DEMO_MODEL,
    backend: options.BackendOption = "auto",
    dtype: options.DtypeOption = "float32",
    device: options.DeviceOption = None,
    as_json: options.JsonOption = False,
    html: options.HtmlOption = None,
    csv: pairs_cli.CsvOption = None,
    save: options.SaveOption = None,
    quiet: options.QuietOption = False,
) -> None:
    """Run a saved circuit with everything outside it corrupted: how faithful is it?

    Prompts of the built-in generator are others than those that lens-attr edges scores on.

    Example: lens-attr circuit evaluate out/circuit --task sva --curve --html faithfulness.html
    """
    import lens_attr as la

    pairs_cli.check(clean, corrupted, target, pairs, task, foil, skip_misaligned)
    pairs_cli.check_corrupted(clean, corrupted)
    found = la.circuits.Circuit.load(folder)
    scores = la.circuits.EdgeScores.load(folder) if curve else None
    with console.working(f"loading {model}", quiet):
        loaded = options.load_model(model, backend, dtype, device)
    shared: dict[str, Any] = {
        "batch_size": batch_size,
        "progress": console.wants_progress(quiet),
    }
    with console.notices(quiet):
        given = (clean, corrupted, target, foil, pairs, n, skip_misaligned)
        inputs = edges.read_inputs(loaded, *given, "heldout", quiet)
        result = la.circuits.evaluate(loaded, found, *inputs, **shared)
        curves = None
        if scores is not None:
            how = {key: found.metadata[key] for key in ("by", "ordering") if key in found.metadata}
            curves = la.circuits.compare_faithfulness(
                loaded, [scores], *inputs, seeds=seeds, **how, **shared
            )
    table = result.to_pandas() if curves is None else curves.to_pandas()
    _write(result, curves, table, html, csv, model)
    if save is not None:
        result.save(save)
        if curves is not None:
            curves.save(save)
        options.note_saved(save, "evaluation", model)
    if as_json:
        console.print_json(_document(result, curves))
        return
    console.print_table(result.to_pandas())
    if curves is not None:
        console.print_blank()
        console.print_table(curves.summary())
    if not quiet:
        console.print_written(page=html, table=csv, saved=save)


def _write(
    result: CircuitEvaluation,
    curves: FaithfulnessComparison | None,
    table: pd.DataFrame,
    html: Path | None,
    csv: Path | None,
    model: str,
) -> None:
    if csv is not None:
        options.write_csv(table, csv)
    if html is None:
        return
    from lens_attr.report import Page, Section, write_page

    prose = (
        f"{model}: {result.n_edges} of {result.n_edges_model} edges carry clean values, all "
        "others what the corrupted run writes. Faithfulness is 1 where the circuit is as good as "
        "the whole model, 0 where it is as bad as the corrupted run."
    )
    sections = [Section("The circuit", "", [result.to_pandas()])]
    if curves is not None:
        content = [curves.plot(), curves.summary(), curves.to_pandas()]
        sections.append(Section("Circuits of all sizes", "", content))
    write_page(Page("How faithful is the circuit?", prose, sections), html)


def _document(result: CircuitEvaluation, curves: FaithfulnessComparison | None) -> dict[str, Any]:
    document: dict[str, Any] = result.to_pandas().to_dict("records")[0]
    if curves is not None:
        document["summary"] = curves.summary().to_dict("records")
        document["curves"] = curves.to_pandas().to_dict("records")
    return document
