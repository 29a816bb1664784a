"""``lens-attr edges``: which connections between heads and MLPs made the prediction?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lens_attr.cli import console, options
from lens_attr.cli import pairs as pairs_cli

if TYPE_CHECKING:
    from lens_attr.circuits.circuit import Circuit
    from lens_attr.circuits.edge_scores import EdgeScores

EdgeMethod = Literal["eap", "eap_ig", "relp", "gim", "attnlrp", "lrp", "exact"]
By = Literal["top", "greedy"]
Ordering = Literal["absolute", "signed"]

MethodOption = Annotated[
    EdgeMethod,
    typer.Option(
        *options.METHOD, help="How edges are scored; exact patches every edge, which is slow."
    ),
]
StepsOption = Annotated[
    int | None,
    typer.Option(
        "--steps",
        min=1,
        help="Points of the path from the corrupted prompt; default: 5 for eap_ig, else no path.",
        show_default=False,
    ),
]
SizeOption = Annotated[
    int, typer.Option("--edges", min=1, help="Edges of the circuit that is extracted.")
]
ByOption = Annotated[
    By, typer.Option("--by", help="Take the best edges anywhere, or grow from the logits.")
]
OrderingOption = Annotated[
    Ordering,
    typer.Option("--ordering", help="By size of the effect, or those first that support it."),
]
EMPTY = "all {} chosen edges are dead ends, on no path from the input to the logits: raise --edges."
BatchOption = Annotated[int, typer.Option("--batch-size", min=1, help="Prompts at a time.")]


def edges(
    clean: pairs_cli.CleanOption = None,
    corrupted: pairs_cli.CorruptedOption = None,
    target: options.TargetOption = None,
    foil: options.FoilOption = None,
    pairs: pairs_cli.PairsOption = None,
    task: pairs_cli.TaskOption = None,
    skip_misaligned: pairs_cli.SkipOption = False,
    n: pairs_cli.NOption = 100,
    method: MethodOption = "eap_ig",
    steps: StepsOption = None,
    size: SizeOption = 40,
    by: ByOption = "greedy",
    ordering: OrderingOption = "absolute",
    batch_size: BatchOption = 32,
    model: options.ModelOption = options.DEMO_MODEL,
    backend: options.BackendOption = "auto",
    dtype: options.DtypeOption = "float32",
    device: options.DeviceOption = None,
    top: options.TopOption = 10,
    as_json: options.JsonOption = False,
    html: options.HtmlOption = None,
    csv: pairs_cli.CsvOption = None,
    save: options.SaveOption = None,
    quiet: options.QuietOption = False,
) -> None:
    """Score every edge between heads and MLPs, and extract the circuit of the best.

    Example: lens-attr edges --task sva --edges 30 --html circuit.html --save out/circuit
    """
    import lens_attr as la

    pairs_cli.check(clean, corrupted, target, pairs, task, foil, skip_misaligned)
    pairs_cli.check_corrupted(clean, corrupted)
    _check_steps(steps, method)
    with console.working(f"loading {model}", quiet):
        loaded = options.load_model(model, backend, dtype, device)
    with console.notices(quiet):
        given = (clean, corrupted, target, foil, pairs, n, skip_misaligned)
        inputs = read_inputs(loaded, *given, "train", quiet)
        progress = console.wants_progress(quiet)
        shared: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
        if method == "exact":
            scores = la.circuits.exact_edge_effects(loaded, *inputs, **shared)
        else:
            scores = la.circuits.edge_scores(loaded, *inputs, method, steps=steps, **shared)
    chosen = min(size, scores.wiring.n_edges)
    circuit = la.circuits.extract(scores, chosen, by=by, ordering=ordering)
    if not len(circuit) and not quiet:
        console.note(EMPTY.format(chosen))
    _write(scores, circuit, html, csv, save, model)
    if as_json:
        console.print_json(_document(scores, circuit))
        return
    console.print_facts({f"edges scored by {scores.method}": f"{scores.wiring.n_edges}"})
    console.print_facts({"circuit": f"{len(circuit)} edges, {len(circuit.nodes)} nodes"})
    console.print_blank()
    console.print_table(scores.to_pandas().head(top))
    if not quiet:
        console.print_written(page=html, scores=csv, saved=save)


def _check_steps(steps: int | None, method: EdgeMethod) -> None:
    if steps is not None and method == "exact":
        raise typer.BadParameter("--steps goes with the methods that use gradients.")
    if method == "eap" and (steps or 1) > 1:
        raise typer.BadParameter("eap is one gradient; with --steps it is --method eap_ig.")


def read_inputs(
    model: Any,
    clean: str | None,
    corrupted: str | None,
    target: str | None,
    foil: str | None,
    pairs: Path | None,
    n: int,
    skip: bool,
    split: pairs_cli.Split,
    quiet: bool,
) -> pairs_cli.Inputs:
    """Clean and corrupted prompts with their target; generated ones where none are given."""
    if clean is not None:
        return clean, corrupted, options.build_target(target, foil, -1)
    if pairs is not None:
        return pairs_cli.read(pairs, n, model, skip, False, quiet)
    return pairs_cli.generated(n, model, False, quiet, split)


def _write(
    scores: EdgeScores,
    circuit: Circuit,
    html: Path | None,
    csv: Path | None,
    save: Path | None,
    model: str,
) -> None:
    if csv is not None:
        options.write_csv(scores.to_pandas(), csv)
    if save is not None:
        scores.save(save)
        circuit.save(save)
        options.note_saved(save, "edges", model)
    if html is not None:
        _write_html(scores, circuit, html, model)


def _write_html(scores: EdgeScores, circuit: Circuit, path: Path, model: str) -> None:
    from lens_attr.report import Page, Section, write_page

    how = circuit.metadata
    prose = (
        f"{model}: every edge scored by {scores.method} on {scores.n} pairs of prompts, in "
        f"{scores.unit}s. A negative score means that the target falls when the edge carries its "
        "corrupted value: the edge supports the prediction."
    )
    chosen = (
        f"{how['n_chosen']} edges chosen ({how['by']}, {how['ordering']} ordering); "
        f"{len(circuit)} are left without dead ends."
    )
    chosen += "" if len(circuit) else " " + EMPTY.format(how["n_chosen"])
    drawn = [circuit.plot()] if len(circuit) else []
    sections = [
        Section("The circuit", chosen, [*drawn, circuit.to_pandas()]),
        Section("Its nodes", "", [circuit.nodes_to_pandas()]),
        Section("All edges, strongest first", "", [scores.to_pandas().head(200)]),
    ]
    write_page(Page("Which connections made this prediction?", prose, sections), path)


def _document(scores: EdgeScores, circuit: Circuit) -> dict[str, Any]:
    return {
        "method": scores.method,
        "unit": scores.unit,
        "n": scores.n,
        "edges": scores.to_pandas().drop(columns="method").to_dict("records"),
        "circuit": {
            "edges": [list(edge) for edge in circuit.edges],
            "nodes": [node.name for node in circuit.nodes],
            **circuit.metadata,
        },
        "metadata": dict(scores.metadata),
    }
