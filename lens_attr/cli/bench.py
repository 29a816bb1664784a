"""``lens-attr bench``: which attribution is right, on ground truth and by deletion?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import typer

from lens_attr.cli import bench_checks, bench_options, options

if TYPE_CHECKING:
    from lens_attr.evaluation import Published
    from lens_attr.evaluation.tasks import Task


def bench(
    ctx: options.Context,
    model: options.ModelOption = options.DEMO_MODEL,
    task: bench_options.TaskOption = None,
    methods: bench_options.MethodsOption = ["all"],  # noqa: B006  (typer copies it)
    n: bench_options.NOption = 1000,
    data: bench_options.DataOption = [],  # noqa: B006  (typer copies it)
    format: bench_options.FormatOption = "auto",
    skip_bad: bench_options.SkipBadOption = False,
    template: bench_options.TemplateOption = None,
    out: bench_options.OutOption = Path("out/bench"),
    contrastive: bench_options.ContrastiveOption = None,
    special_tokens: bench_options.SpecialOption = False,
    whole_text: bench_options.WholeOption = False,
    embeddings: bench_options.EmbeddingsOption = None,
    ties: bench_options.TiesOption = "expected",
    keep_incorrect: bench_options.KeepIncorrectOption = False,
    seed: bench_options.SeedOption = 0,
    batch_size: bench_options.BatchOption = 64,
    deletion: bench_options.DeletionOption = False,
    k: bench_options.KOption = 20.0,
    sweep: bench_options.SweepOption = "5,10,20,50",
    unit: bench_options.UnitOption = "word",
    delete: bench_options.DeleteOption = "zero",
    lengths: bench_options.LengthsOption = None,
    interest: bench_options.InterestOption = "last",
    faithfulness: bench_options.FaithfulnessOption = False,
    token: bench_options.TokenOption = None,
    layers: bench_options.LayersOption = "all",
    ablate: bench_options.AblateOption = None,
    speed: bench_options.SpeedOption = False,
    self_repair: bench_options.SelfRepairOption = False,
    interest_file: bench_options.InterestFileOption = None,
    axes: bench_options.AxesOption = False,
    stability: bench_options.StabilityOption = False,
    pairs: bench_options.PairsOption = None,
    length: bench_options.LengthOption = False,
    published: bench_options.PublishedOption = None,
    compare: bench_options.CompareOption = None,
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

    bench_checks.check(ctx)
    if compare is not None:
        bench_runs.compare(*compare, as_json)
        return
    names = _method_names(methods)
    generated = bench_options.TIMED if speed or self_repair else bench_options.GENERATED
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
        settings = Deletion(
            k=k,
            sweep=_numbers("--sweep", sweep, float, "percents"),
            unit=unit,
            delete=delete,
            token=token,
            embeddings=embeddings,
            seed=seed,
        )
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
    sizes = [] if lengths is None else _numbers("--lengths", lengths, int, "whole numbers")
    measured = bench_runs.Measured(settings, sizes, interest_file or interest)
    if length:
        bench_modes.length(request, measured, as_json)
    elif axes:
        bench_modes.axes(request, measured, as_json)
    elif ablate is not None:
        bench_modes.ablate(request, measured, ablate, as_json)
    else:
        bench_modes.measure(request, measured, as_json)


# -------------------------------------------------------------------------- arguments


def _method_names(methods: list[str]) -> list[str] | Literal["all"]:
    names = options.method_names(methods)
    if names == ["all"]:
        return "all"
    options.check_methods(names)
    return names


def _published(path: Path | None) -> list[Published]:
    from lens_attr.evaluation import read_published

    return [] if path is None else read_published(path)


Number = TypeVar("Number", int, float)


def _numbers(flag: str, given: str, number: type[Number], called: str) -> list[Number]:
    """At least one, separated by commas."""
    try:
        return [number(one) for one in given.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{flag} must be {called} and commas.") from error


def _layers(layers: str) -> list[int] | None:
    """None for all."""
    if layers in ("all", "none"):
        return None if layers == "all" else []
    return _numbers("--layers", layers, int, "whole numbers")


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
