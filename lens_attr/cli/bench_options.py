"""The options of ``lens-attr bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lens_attr.cli import options

GENERATED = "sva,ra,qa"
TIMED = "sva"
"""What --speed and --self-repair use by default."""

TaskOption = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="Tasks, separated by commas: sva, ra and qa are built in; with --data, what to take "
        f"of the file or what to call it. Default: {GENERATED}.",
        show_default=False,
    ),
]
MethodsOption = Annotated[
    list[str],
    typer.Option(*options.METHOD, help="all, or methods, with commas or given again."),
]
NOption = Annotated[int, typer.Option("--n", min=1, help="Samples per task.")]
DataOption = Annotated[
    list[Path],
    typer.Option(
        "--data",
        exists=True,
        dir_okay=False,
        help="A file of samples: BLiMP, Linzen or Marvin-Linzen pairs, SQuAD, a tsv of texts and "
        "labels, or your own jsonl. May be given several times.",
        show_default=False,
    ),
]
FormatOption = Annotated[
    Literal["auto", "blimp", "linzen", "marvin-linzen", "squad", "labelled", "choices", "own"],
    typer.Option("--format", help="What the files are."),
]
SkipBadOption = Annotated[
    bool, typer.Option("--skip-bad", help="Keep the good rows of a file with malformed ones.")
]
TemplateOption = Annotated[
    str | None,
    typer.Option(
        "--template",
        help="How {context} and {question} become a prompt (SQuAD).",
        show_default=False,
    ),
]
OutOption = Annotated[
    Path,
    typer.Option("--out", file_okay=False, help="Folder for tables; a stopped run goes on there."),
]
ContrastiveOption = Annotated[
    bool | None,
    typer.Option(
        "--contrastive/--not-contrastive",
        help="Explain the answer against its foil, or the highest candidate alone. Default: "
        "against its foil; with --faithfulness alone.",
        show_default=False,
    ),
]
SpecialOption = Annotated[
    bool, typer.Option("--special-tokens", help="Judge BOS, [CLS], [SEP] and the mask as well.")
]
WholeOption = Annotated[
    bool, typer.Option("--whole-text", help="Judge the question as well as its context.")
]
EmbeddingsOption = Annotated[
    options.Embeddings | None,
    typer.Option(
        "--embeddings",
        help="Explain whole embeddings, or tokens without positions. Default: the method's own.",
        show_default=False,
    ),
]
TiesOption = Annotated[
    Literal["expected", "min", "dense"], typer.Option("--ties", help="How equal scores rank.")
]
KeepIncorrectOption = Annotated[
    bool, typer.Option("--keep-incorrect", help="Judge samples that the model gets wrong too.")
]
SeedOption = Annotated[
    int, typer.Option("--seed", help="Of the samples, the random baseline and the intervals.")
]
BatchOption = Annotated[int, typer.Option("--batch-size", min=1, help="Samples at a time.")]
DeletionOption = Annotated[
    bool, typer.Option("--deletion", help="Delete the most relevant words instead.")
]
KOption = Annotated[float, typer.Option("--k", help="Percent of words to delete, with --deletion.")]
SweepOption = Annotated[
    str,
    typer.Option("--sweep", help="Percents over which AOPC averages, with --deletion."),
]
UnitOption = Annotated[
    Literal["word", "token"], typer.Option("--unit", help="What is deleted, with --deletion.")
]
DeleteOption = Annotated[
    Literal["zero", "pad", "token", "remove"],
    typer.Option("--delete", help="What a deleted token becomes, with --deletion."),
]
LengthsOption = Annotated[
    str | None,
    typer.Option(
        "--lengths",
        help="Cut texts to these numbers of tokens, e.g. 50,200,400, with --deletion.",
        show_default=False,
    ),
]
InterestOption = Annotated[
    Literal["last", "random"],
    typer.Option("--interest", help="Which content word of a text is explained (--deletion)."),
]
FaithfulnessOption = Annotated[
    bool,
    typer.Option(
        "--faithfulness",
        help="Replace the most relevant tokens by spaces, and stream positions by their mean, as "
        "GIM was measured.",
    ),
]
TokenOption = Annotated[
    str | None,
    typer.Option(
        "--token",
        help="What takes a token's place, with --faithfulness, and with --deletion --delete token. "
        "Default: the space; BERT: the mask.",
        show_default=False,
    ),
]
LayersOption = Annotated[
    str,
    typer.Option(
        "--layers",
        help="Blocks before which the stream is replaced too, with --faithfulness: all, none, or "
        "numbers separated by commas.",
    ),
]
AblateOption = Annotated[
    Literal["lrp", "attnlrp", "gim", "relp"] | None,
    typer.Option(
        "--ablate",
        help="Measure the parts of a preset: added one by one, one left out, and temperatures; "
        "alone, or with --deletion or --faithfulness.",
        show_default=False,
    ),
]
SpeedOption = Annotated[
    bool,
    typer.Option(
        "--speed", help="Time presets against gradient x input and explicit AttnLRP, text by text."
    ),
]
SelfRepairOption = Annotated[
    bool,
    typer.Option(
        "--self-repair", help="Ablate attention scores alone and in pairs: do keys stand in?"
    ),
]
AxesOption = Annotated[
    bool,
    typer.Option(
        "--axes",
        help="Compare contrastive or not, special tokens, question, precision and embeddings.",
    ),
]
CompareOption = Annotated[
    tuple[Path, Path] | None,
    typer.Option(
        "--compare",
        metavar="A B",
        help="Compare the results in two folders, sample by sample; nothing is run.",
        show_default=False,
    ),
]
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
