"""``lens-attr demo``: the whole tool on three tiny models, as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lens_attr.cli import console, options

QUICK_N, QUICK_SEEDS, SEEDS = 40, 3, 10
RANKED_PER_PRUNED = 3

OutOption = Annotated[Path, typer.Option("--out", file_okay=False, help="Folder for index.html.")]
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
    quiet: options.QuietOption = False,
) -> None:
    """Explain, rank and prune three tiny models that come with the package, as one page.

    Needs no download. Takes a minute or two on a laptop.
    """
    from lens_attr.cli import demo_data
    from lens_attr.demo import DEMO_MODELS
    from lens_attr.report import demo_page, write_page

    n, seeds = (min(n, QUICK_N), QUICK_SEEDS) if quick else (n, SEEDS)
    stories = []
    for name in DEMO_MODELS:
        with console.working(f"working on {name}", quiet):
            stories.append(demo_data.tell(name, backend, n, RANKED_PER_PRUNED * n, seeds))
    footer = f"Made by lens-attr demo with {n} samples and {seeds} random orders."
    page = write_page(demo_page(stories, footer), out / "index.html")
    for story in stories:
        title = f"{story.name} ({story.backend}): area under the pruning curve"
        console.print_blank()
        console.print_table(story.pruning.summary(), title=title)
        console.print_facts({f"{m} is refused": why for m, why in story.refused.items()})
    console.print_blank()
    console.print_facts({"page": page})
