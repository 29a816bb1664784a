"""``lens-attr run``: a method over a whole data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lens_attr.cli import console, options

if TYPE_CHECKING:
    from lens_attr.runs import Job

JobArgument = Annotated[
    Path,
    typer.Argument(
        metavar="JOB",
        exists=True,
        dir_okay=False,
        help="A YAML file with model, data, method and out; see docs/how-to/runs.md.",
        show_default=False,
    ),
]
DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="Only say what would be done: rows, batches, memory."),
]


def run(
    job: JobArgument,
    dry_run: DryRunOption = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Explain every row of a data set; give the same command again to resume.

    Ends with exit code 3 if some rows hold an error, 4 if some could not be written.

    Example: lens-attr run job.yaml --dry-run
    """
    from lens_attr.runs import Job

    checked = Job.of(job)
    if dry_run:
        _preview(checked, as_json, quiet)
    else:
        _run(checked, as_json, quiet)


def _preview(job: Job, as_json: bool, quiet: bool) -> None:
    from lens_attr.runs import preview

    with console.working("reading the data", quiet), options.silent_libraries():
        found = preview(job)
    if as_json:
        console.print_json(found.facts() | {"problems": found.problems})
        return
    console.print_facts(found.facts())
    console.print_facts({f"problem {i}": p for i, p in enumerate(found.problems, start=1)})


def _run(job: Job, as_json: bool, quiet: bool) -> None:
    from lens_attr.runs import run as run_job

    with console.notices(quiet), options.silent_libraries():
        report = run_job(job, progress=console.wants_progress(quiet))
    facts = {
        "rows": report.rows,
        "explained now": report.computed,
        "with an error": report.errors,
        "not written": report.unwritten,
        "results": str(report.out),
    }
    if as_json:
        console.print_json(facts | {"complete": report.complete, "notices": report.notices})
    elif not quiet:
        console.print_facts(facts)
    for notice in () if quiet else report.notices:
        console.note(notice)
    if report.exit_code:
        raise typer.Exit(report.exit_code)
