"""Options of the commands that compare a clean prompt with a corrupted one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lens_attr.cli import console

if TYPE_CHECKING:
    from lens_attr.circuits.pairs import Pairs
    from lens_attr.targets import Target

Split = Literal["train", "heldout"]

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
SkipOption = Annotated[
    bool,
    typer.Option(
        "--skip-misaligned",
        help="Leave out pairs of the csv that cannot be used, and say how many: prompts that "
        "differ in how many tokens they have, an answer that starts as its foil.",
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
    skip: bool,
) -> None:
    """Raise a usage error unless exactly one source of prompts is named, and whole."""
    if skip and pairs is None:
        raise typer.BadParameter("--skip-misaligned goes with --pairs.")
    if sum(given is not None for given in (clean, pairs, task)) != 1:
        raise typer.BadParameter("give --clean with --corrupted, or --pairs, or --task.")
    if clean is not None and target is None:
        raise typer.BadParameter("--clean needs --target: the word whose logit is measured.")
    if clean is None and any(given is not None for given in (corrupted, target, foil)):
        raise typer.BadParameter("--corrupted, --target and --foil go with --clean.")


def check_corrupted(clean: str | None, corrupted: str | None) -> None:
    """Raise a usage error where a clean prompt stands alone."""
    if clean is not None and corrupted is None:
        raise typer.BadParameter(
            "--clean needs --corrupted: the same prompt with the deciding word changed."
        )


def read(path: Path, n: int, model: Any, skip: bool, by_position: bool, quiet: bool) -> Inputs:
    """The first pairs of a file: as they are, or those that can be used."""
    import lens_attr as la

    pairs = la.circuits.read_pairs(path)[:n]
    return kept(pairs, model, by_position, quiet) if skip else pairs.inputs(model)


def generated(
    n: int, model: Any, by_position: bool, quiet: bool, split: Split = "heldout"
) -> Inputs:
    """Those of so many pairs of the generator that can be used."""
    import lens_attr as la

    return kept(la.circuits.sva_pairs(n, split=split), model, by_position, quiet)


def kept(pairs: Pairs, model: Any, by_position: bool, quiet: bool) -> Inputs:
    """The pairs that can be used, with a note of how many those are."""
    usable = pairs.of_one_length(model) if by_position else pairs.aligned(model)
    if usable.dropped and not quiet:
        why = "can be used and have the most common length" if by_position else "can be used"
        console.note(f"{len(usable)} of {len(pairs)} pairs {why}; the others are left out.")
    return usable.inputs(model)
