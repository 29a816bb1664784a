"""Options of the commands that compare a clean prompt with a corrupted one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from lens_attr.targets import Target

Inputs = tuple[Any, Any, "Target"]
"""Clean and corrupted prompts, and what is measured."""

CleanOption = Annotated[
    str | None,
    typer.Option("--clean", help="The prompt the model gets right.", show_default=False),
]
CorruptedOption = Annotated[
    str | None,
    typer.Option(
        "--corrupted", help="The same prompt with the deciding word changed.", show_default=False
    ),
]
PairsOption = Annotated[
    Path | None,
    typer.Option(
        "--pairs",
        exists=True,
        dir_okay=False,
        help="A csv of pairs instead: columns clean, corrupted, answer, foil (or correct_idx, "
        "incorrect_idx, or label for years); or the indirect-object file of EAP-IG.",
        show_default=False,
    ),
]
TaskOption = Annotated[
    Literal["sva"] | None,
    typer.Option(
        "--task", help="Subject-verb pairs of the built-in generator instead.", show_default=False
    ),
]
NOption = Annotated[int, typer.Option("--n", min=1, help="At most so many pairs.")]
CsvOption = Annotated[
    Path | None,
    typer.Option("--csv", dir_okay=False, help="Also write the whole table.", show_default=False),
]


def check(
    clean: str | None,
    corrupted: str | None,
    target: str | None,
    pairs: Path | None,
    task: str | None,
    foil: str | None,
) -> None:
    """Raise a usage error unless exactly one source of prompts is named, and whole."""
    if sum(given is not None for given in (clean, pairs, task)) != 1:
        raise typer.BadParameter("give --clean with --corrupted, or --pairs, or --task.")
    if clean is not None and target is None:
        raise typer.BadParameter("--clean needs --target: the word whose logit is measured.")
    if clean is None and any(given is not None for given in (corrupted, target, foil)):
        raise typer.BadParameter("--corrupted, --target and --foil go with --clean.")
