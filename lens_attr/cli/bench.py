"""``lens-attr bench``: which attribution is right, on ground truth and by deletion?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lens_attr.cli import bench_options, options

if TYPE_CHECKING:
    from lens_attr.evaluation import Published
    from lens_attr.evaluation.tasks import Task

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
    str, typer.Option("--methods", help="all, or methods separated by commas.")
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
        help="What takes a token's place, with --faithfulness. Default: the space; BERT: the mask.",
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


def bench(
    model: options.ModelOption = options.DEMO_MODEL,
    task: TaskOption = None,
    methods: MethodsOption = "all",
    n: NOption = 1000,
    data: DataOption = [],  # noqa: B006  (typer copies it)
    format: FormatOption = "auto",
    skip_bad: SkipBadOption = False,
    template: TemplateOption = None,
    out: OutOption = Path("out/bench"),
    contrastive: ContrastiveOption = None,
    special_tokens: SpecialOption = False,
    whole_text: WholeOption = False,
    embeddings: EmbeddingsOption = None,
    ties: TiesOption = "expected",
    keep_incorrect: KeepIncorrectOption = False,
    seed: SeedOption = 0,
    batch_size: BatchOption = 64,
    deletion: DeletionOption = False,
    k: KOption = 20.0,
    unit: UnitOption = "word",
    delete: DeleteOption = "zero",
    lengths: LengthsOption = None,
    interest: InterestOption = "last",
    faithfulness: FaithfulnessOption = False,
    token: TokenOption = None,
    layers: LayersOption = "all",
    ablate: AblateOption = None,
    speed: SpeedOption = False,
    self_repair: SelfRepairOption = False,
    interest_file: bench_options.InterestFileOption = None,
    axes: AxesOption = False,
    stability: bench_options.StabilityOption = False,
    pairs: bench_options.PairsOption = None,
    length: bench_options.LengthOption = False,
    published: bench_options.PublishedOption = None,
    compare: CompareOption = None,
    backend: options.BackendOption = "auto",
    dtype: options.DtypeOption = "float32",
    device: options.DeviceOption = None,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Measure which attribution method is right, against words that are known to decide.

    Only samples that the model predicts correctly are judged. Random, first, last and uniform
    scores stand in every table, with 95 % intervals.

    Example: lens-attr bench --task sva --methods attnlrp,lrp --n 200
    """
    from lens_attr.cli import bench_modes, bench_runs

    if compare is not None:
        bench_runs.compare(*compare, as_json)
        return
    _check_modes(
        {"--axes": axes, "--deletion": deletion, "--faithfulness": faithfulness, "--speed": speed,
         "--self-repair": self_repair, "--stability": stability, "--length": length}, ablate
    )  # fmt: skip
    _check_files(pairs, stability and not data, interest_file, deletion or faithfulness)
    names = _method_names(methods)
    generated = TIMED if speed or self_repair else GENERATED
    tasks = _tasks(task or (None if data else generated), data, format, skip_bad, template, n, seed)
    request = bench_runs.Request(
        model, names, tasks, n, seed, batch_size, out, backend, dtype, device, quiet,
        _published(published),
    )  # fmt: skip
    if speed or self_repair:
        (bench_modes.speed if speed else bench_modes.self_repair)(request, as_json)
        return
    from lens_attr.evaluation import Deletion, Faithfulness, Settings, Stability

    against = contrastive is not False
    if stability:
        edits = Stability(
            contrastive=against, embeddings=embeddings, keep_incorrect=keep_incorrect, seed=seed
        )
        bench_modes.stability(request, edits, pairs, skip_bad, as_json)
        return
    settings: Settings | Deletion | Faithfulness
    if deletion:
        settings = Deletion(k=k, unit=unit, delete=delete, embeddings=embeddings, seed=seed)
    elif faithfulness:
        settings = Faithfulness(
            token=token,
            layers=_layers(layers),
            contrastive=bool(contrastive),
            embeddings=embeddings,
            seed=seed,
        )
    else:
        settings = Settings(
            against, special_tokens, whole_text, embeddings, ties, keep_incorrect, seed
        )
    measured = bench_runs.Measured(
        settings, _whole_numbers("--lengths", lengths), interest_file or interest
    )
    if length:
        bench_modes.length(request, measured, as_json)
    elif axes:
        bench_runs.show_axes(bench_runs.run_axes(request, measured), request, as_json)
    elif ablate is not None:
        bench_modes.ablate(request, measured, ablate, as_json)
    else:
        bench_modes.measure(request, measured, as_json)


# -------------------------------------------------------------------------- arguments


def _method_names(methods: str) -> list[str] | Literal["all"]:
    names = [name.strip() for name in methods.split(",") if name.strip()]
    if not names:
        raise typer.BadParameter("--methods names no method.")
    if names == ["all"]:
        return "all"
    options.check_methods(names)
    return names


def _check_modes(modes: dict[str, bool], ablate: str | None) -> None:
    """Raise if two kinds of runs are asked for at once."""
    chosen = [flag for flag, on in modes.items() if on]
    if len(chosen) > 1:
        raise typer.BadParameter(f"{' and '.join(chosen)} are different runs: choose one.")
    if ablate is not None and chosen and chosen[0] not in ("--deletion", "--faithfulness"):
        raise typer.BadParameter(f"--ablate does not go with {chosen[0]}.")


def _check_files(
    pairs: Path | None, takes_pairs: bool, interest: Path | None, takes_interest: bool
) -> None:
    """Raise for a file that this kind of run does not read."""
    if pairs is not None and not takes_pairs:
        raise typer.BadParameter("--pairs goes with --stability, and without --data.")
    if interest is not None and not takes_interest:
        raise typer.BadParameter("--interest-file goes with --deletion and --faithfulness.")


def _published(path: Path | None) -> list[Published]:
    from lens_attr.evaluation import read_published

    return [] if path is None else read_published(path)


def _whole_numbers(flag: str, numbers: str | None) -> list[int]:
    try:
        return [int(one) for one in (numbers or "").split(",") if one.strip()]
    except ValueError as error:
        raise typer.BadParameter(f"{flag} must be whole numbers and commas.") from error


def _layers(layers: str) -> list[int] | None:
    """None for all."""
    if layers in ("all", "none"):
        return None if layers == "all" else []
    return _whole_numbers("--layers", layers)


def _tasks(
    task: str | None,
    data: list[Path],
    format: Any,
    skip_bad: bool,
    template: str | None,
    n: int,
    seed: int,
) -> list[Task]:
    """Built-in tasks, or those of the files; several files may add to one task."""
    from lens_attr.evaluation import tasks

    wanted = [name.strip() for name in (task or "").split(",") if name.strip()]
    if not data:
        return [tasks.built_in(name, n, seed) for name in wanted]
    name = wanted[0] if len(wanted) == 1 else None
    chosen = template or tasks.QA_TEMPLATE
    read = [
        one
        for path in data
        for one in tasks.read(path, format, task=name, skip_bad=skip_bad, template=chosen).values()
    ]
    found = tasks.joined(read)
    missing = [name for name in wanted if name not in found]
    if missing:
        raise typer.BadParameter(
            f"the files hold no task {', '.join(missing)}, but {', '.join(found)}."
        )
    return [found[name] for name in wanted or found]
