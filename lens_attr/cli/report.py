"""``lens-attr report``: one page about everything that was saved in a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lens_attr.cli import console, options

PAGE = "index.html"

FolderArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RUN_DIR",
        exists=True,
        file_okay=False,
        help="What other commands wrote with --save or --out, or a folder of such folders.",
        show_default=False,
    ),
]
HtmlOption = Annotated[
    Path | None,
    typer.Option(
        "--html",
        dir_okay=False,
        callback=options.check_page,
        help=f"The page; default: {PAGE} in RUN_DIR.",
        show_default=False,
    ),
]


def report(
    folder: FolderArgument,
    html: HtmlOption = None,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Write one page that opens offline about all results in RUN_DIR. Runs no model.

    Saved explanations, generated texts, rankings, pruning curves, patching, circuits, rule
    coverage, benchmarks and data-set runs are shown; what cannot be read is named on the page.

    Example: lens-attr report out/prune
    """
    from lens_attr.report import read_run, run_page, write_page

    with console.working("reading results", quiet):
        run = read_run(folder)
        page = write_page(run_page(run), html or folder / PAGE)
    files = [found.file for chapter in run.chapters for found in chapter.found]
    if as_json:
        console.print_json({"page": page, "files": files, "problems": dict(run.problems)})
        return
    for file, why in run.problems.items():
        console.note(f"{file} could not be read: {why}")
    if not quiet:
        console.print_facts({"result files": len(files)})
    console.print_facts({"page": page})
