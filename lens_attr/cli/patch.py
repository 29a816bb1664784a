"""``lens-attr patch``: what happens when one activation is replaced by another prompt's?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lens_attr.cli import console, options
from lens_attr.cli import pairs as pairs_cli

if TYPE_CHECKING:
    from lens_attr.circuits.patch_result import PatchResult

Unit = Literal["head", "attn_out", "mlp_out", "resid", "q", "k", "v", "pattern"]
Mode = Literal["denoise", "noise"]
Source = Literal["other", "zero", "mean", "resample"]

UnitOption = Annotated[
    Unit, typer.Option("--unit", help="What is replaced, one at a time in every layer.")
]
ModeOption = Annotated[
    Mode,
    typer.Option(
        "--mode", help="denoise: clean into the corrupted run; noise: corrupted into the clean run."
    ),
]
SourceOption = Annotated[
    Source, typer.Option("--source", help="Put in something else than the other run's activation.")
]
ByPositionOption = Annotated[
    bool | None,
    typer.Option(
        "--by-position/--whole",
        help="One effect per position, or one for all; default: as the unit is usually shown.",
        show_default=False,
    ),
]


def patch(
    clean: pairs_cli.CleanOption = None,
    corrupted: pairs_cli.CorruptedOption = None,
    target: options.TargetOption = None,
    foil: options.FoilOption = None,
    pairs: pairs_cli.PairsOption = None,
    task: pairs_cli.TaskOption = None,
    skip_misaligned: pairs_cli.SkipOption = False,
    n: pairs_cli.NOption = 100,
    unit: UnitOption = "head",
    mode: ModeOption = "denoise",
    source: SourceOption = "other",
    by_position: ByPositionOption = None,
    model: options.ModelOption = options.DEMO_MODEL,
    backend: options.BackendOption = "auto",
    dtype: options.DtypeOption = "float32",
    device: options.DeviceOption = None,
    top: options.TopOption = 10,
    as_json: options.JsonOption = False,
    html: options.HtmlOption = None,
    csv: pairs_cli.CsvOption = None,
    save: options.SaveOption = None,
    quiet: options.QuietOption = False,
) -> None:
    """Replace one activation at a time by another prompt's and measure the prediction: exact.

    Example: lens-attr patch --task sva --unit head --html patching.html
    """
    import lens_attr as la

    pairs_cli.check(clean, corrupted, target, pairs, task, foil, skip_misaligned)
    if clean is not None and corrupted is None and (source == "other" or mode == "denoise"):
        raise typer.BadParameter(
            "--clean needs --corrupted; or, to ablate the clean run alone, --mode noise and "
            "--source zero or mean."
        )
    with console.working(f"loading {model}", quiet):
        loaded = options.load_model(model, backend, dtype, device)
    with console.notices(quiet):
        inputs = (
            (clean, corrupted, options.build_target(target, foil, -1))
            if clean is not None
            else _pairs(loaded, pairs, n, skip_misaligned, by_position, unit, quiet)
        )
        result = la.circuits.patch(
            loaded,
            *inputs,
            unit,
            mode,
            source=source,
            positions=by_position,
            progress=console.wants_progress(quiet),
        )
    _write(result, html, csv, save)
    if save is not None:
        options.note_saved(save, "patching", model)
    if as_json:
        console.print_json(_document(result))
        return
    _print(result, top)
    if not quiet:
        console.print_written(page=html, effects=csv, saved=save)


def _splits_positions(unit: Unit, by_position: bool | None) -> bool:
    from lens_attr.circuits.patching import LAYOUTS

    return LAYOUTS[unit].positions if by_position is None else by_position


def _pairs(
    model: Any,
    path: Path | None,
    n: int,
    skip: bool,
    by_position: bool | None,
    unit: Unit,
    quiet: bool,
) -> pairs_cli.Inputs:
    """Your pairs, or the generator's, of one length where effects are by position."""
    split = _splits_positions(unit, by_position)
    if path is not None:
        return pairs_cli.read(path, n, model, skip, split, quiet)
    return pairs_cli.generated(n, model, split, quiet)


def _print(result: PatchResult, top: int) -> None:
    unit = result.target_unit
    runs = {
        f"patched run, {result.target[0]}" if len(result) == 1 else "patched run": result.unpatched
    }
    if result.other is not None:
        runs["other run"] = result.other
    console.print_facts(
        {name: f"{console.number(float(run.mean()))} {unit}" for name, run in runs.items()}
    )
    console.print_blank()
    table = result.to_pandas()
    order = table["effect"].abs().sort_values(ascending=False).index
    console.print_table(table.loc[order].head(top))


def _write(result: PatchResult, html: Path | None, csv: Path | None, save: Path | None) -> None:
    if csv is not None:
        options.write_csv(result.to_pandas(), csv)
    if save is not None:
        result.save(save)
    if html is not None:
        _write_html(result, html)


def _write_html(result: PatchResult, path: Path) -> None:
    from lens_attr.report import Page, Section, write_page

    three = len(result.axes) == 3
    layers = range(result.effects.shape[0]) if three else [None]
    figures = [result.plot(layer=layer) for layer in layers]
    prose = (
        "Every activation was replaced in turn, and the target measured again: "
        f"{result.target[0]}"
        + (f" and {len(result) - 1} others, mean over all." if len(result) > 1 else ".")
        + " Orange raises it, blue lowers it."
    )
    section = Section("Effect of each replacement", "", [*figures, result.to_pandas()])
    write_page(Page("Activation patching", prose, [section]), path)


def _document(result: PatchResult) -> dict[str, Any]:
    return {
        "unit": result.unit,
        "mode": result.mode,
        "source": result.source,
        "axes": list(result.axes),
        "n": len(result),
        "target": result.target[0] if len(result) == 1 else result.target,
        "target_unit": result.target_unit,
        "unpatched": float(result.unpatched.mean()),
        "other": None if result.other is None else float(result.other.mean()),
        "effects": result.effects.tolist(),
        "metadata": dict(result.metadata),
    }
