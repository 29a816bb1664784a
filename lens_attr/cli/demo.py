"""``lens-attr demo``: the whole tool on three tiny models, as result files and one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lens_attr.cli import console, options

QUICK_N, QUICK_SEEDS, SEEDS = 40, 3, 10
RANKED_PER_PRUNED = 3

OutOption = Annotated[
    Path, typer.Option("--out", file_okay=False, help="Folder for the results and index.html.")
]
NOption = Annotated[
    int, typer.Option("--n", min=1, help="Samples to prune on; three times as many rank heads.")
]
QuickOption = Annotated[
    bool,
    typer.Option("--quick", help=f"At most {QUICK_N} samples and {QUICK_SEEDS} random orders."),
]


def demo(
    out: OutOption = Path("out/demo"),
    n: NOption = 120,
    quick: QuickOption = False,
    backend: options.BackendOption = "auto",
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Explain, rank, prune, patch and find circuits in three tiny models that come along.

    Needs no download. Takes one to two minutes on two cores; --quick less than one.

    Example: lens-attr demo --quick
    """
    from lens_attr.cli import demo_data
    from lens_attr.demo import DEMO_MODELS
    from lens_attr.report import run_page, write_page

    n, seeds = (min(n, QUICK_N), QUICK_SEEDS) if quick else (n, SEEDS)
    demo_data.open_folder(out)
    findings = {}
    for name in DEMO_MODELS:
        with console.working(f"working on {name}", quiet):
            findings[name] = demo_data.explore(
                name, backend, n, RANKED_PER_PRUNED * n, seeds, out / name
            )
    page = write_page(run_page(out), out / "index.html")
    if as_json:
        models = {name: _document(found) for name, found in findings.items()}
        console.print_json({"page": page, "models": models})
        return
    for name, found in findings.items():
        title = f"{name} ({found.backend}): area under the pruning curve"
        console.print_blank()
        console.print_table(found.pruning.summary(), title=title)
        console.print_facts({f"{m} is refused": why for m, why in found.refused.items()})
    console.print_blank()
    console.print_facts({"page": page})


def _document(found: Any) -> dict[str, Any]:
    return {
        "backend": found.backend,
        "pruning": found.pruning.summary().to_dict("records"),
        "agreement": found.agreement.to_pandas().to_dict("records"),
        "refused": dict(found.refused),
    }
