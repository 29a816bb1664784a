"""Options of single modes of ``lens-attr bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

StabilityOption = Annotated[
    bool,
    typer.Option(
        "--stability",
        help="Edit every text without changing what it says, and correlate its words' relevance.",
    ),
]
PairsOption = Annotated[
    Path | None,
    typer.Option(
        "--pairs",
        exists=True,
        dir_okay=False,
        help="A jsonl of texts with an edited version each, in place of the built-in edits "
        "(--stability).",
        show_default=False,
    ),
]
LengthOption = Annotated[
    bool,
    typer.Option("--length", help="Put 0, 1, 2, 4 and 8 distractor sentences before every text."),
]
InterestFileOption = Annotated[
    Path | None,
    typer.Option(
        "--interest-file",
        exists=True,
        dir_okay=False,
        help="A jsonl with the word of each text that is explained (--deletion, --faithfulness).",
        show_default=False,
    ),
]
PublishedOption = Annotated[
    Path | None,
    typer.Option(
        "--published",
        exists=True,
        dir_okay=False,
        help="A csv of values from papers, printed beside ours where model, task, method and "
        "metric match.",
        show_default=False,
    ),
]
