"""``lens-attr demo``: the whole tool on three tiny models, as one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lens_attr.cli import console, options

if TYPE_CHECKING:
    import pandas as pd

    from lens_attr.report import ModelStory

QUICK_N, QUICK_SEEDS, SEEDS = 40, 3, 10

OutOption = Annotated[
    Path, typer.Option("--out", file_okay=False, help="Folder for index.html.")
]
NOption = Annotated[
    int, typer.Option("--n", min=1, help="Samples to rank heads on, and as many to prune on.")
]
QuickOption = Annotated[
    bool, typer.Option("--quick", help=f"At most {QUICK_N} samples and {QUICK_SEEDS} random orders.")
]


def demo(
    out: OutOption = Path("out/demo"),
    n: NOption = 200,
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
            stories.append(demo_data.tell(name, backend, n, seeds))
    footer = f"Made by lens-attr demo with {n} samples and {seeds} random orders."
    page = write_page(demo_page(stories, footer), out / "index.html")
    for story in stories:
        console.print_table(_summary(story), title=f"\n{story.name} ({story.backend})")
    for method, reason in _refused(stories).items():
        console.print_facts({f"\n{method}": reason})
    console.print_facts({"\npage": page})


def _summary(story: ModelStory) -> pd.DataFrame:
    """Pruning areas, beside how often each method puts the deciding word first."""
    table = story.pruning.summary()
    return table.rename(columns={"area": "pruning area", "n": "samples"})


def _refused(stories: list[ModelStory]) -> dict[str, str]:
    return {
        f"{story.name} refuses {method}": reason
        for story in stories
        for method, reason in story.refused.items()
    }
