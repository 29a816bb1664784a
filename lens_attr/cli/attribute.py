"""``lens-attr attribute``: which tokens of a text made the prediction."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lens_attr.cli import console, options

if TYPE_CHECKING:
    import pandas as pd

    from lens_attr.attribution.comparison import Comparison

MethodsOption = Annotated[
    list[str],
    typer.Option(
        *options.METHOD,
        metavar="NAME",
        help="How to explain; several, with commas or given again, are compared. "
        "See: lens-attr methods.",
    ),
]


def attribute(
    text: options.TextArgument,
    target: options.TargetOption = None,
    foil: options.FoilOption = None,
    model: options.ModelOption = options.DEMO_MODEL,
    method: MethodsOption = ["attnlrp"],  # noqa: B006  (typer copies it)
    position: options.PositionOption = -1,
    embeddings: options.EmbeddingsOption = None,
    backend: options.BackendOption = "auto",
    dtype: options.DtypeOption = "float32",
    device: options.DeviceOption = None,
    top: options.TopOption = 10,
    as_json: options.JsonOption = False,
    html: options.HtmlOption = None,
    save: options.SaveOption = None,
    quiet: options.QuietOption = False,
) -> None:
    """Explain one prediction: how much did every token of TEXT raise or lower it?

    Example: lens-attr attribute "the keys near the cabinet" -t " are" -f " is" --method gim
    """
    from lens_attr.attribution.comparison import Comparison

    names = options.method_names(method)
    options.check_methods(names)
    explained = options.build_target(target, foil, position)
    with console.working(f"loading {model}", quiet):
        loaded = options.load_model(model, backend, dtype, device)
    with console.notices(quiet):
        results = {
            name: _explain(loaded, text, explained, name, embeddings, quiet) for name in names
        }
    comparison = Comparison(results)
    if save is not None:
        _save(comparison, save)
        options.note_saved(save, "relevance", model)
    if html is not None:
        _write_html(comparison, html, model, text)
    if as_json:
        console.print_json(_document(comparison))
    else:
        _print(comparison, top, html, quiet)


def _explain(
    model: Any,
    text: str,
    target: Any,
    method: str,
    embeddings: options.Embeddings | None,
    quiet: bool,
) -> Any:
    import lens_attr as la

    progress = False if quiet else None
    return la.attribute(model, text, target, method, embeddings=embeddings, progress=progress)


def _save(comparison: Comparison, folder: Path) -> None:
    """One result in the folder itself, several in one folder each."""
    only = next(iter(comparison.results.values())) if len(comparison.results) == 1 else None
    (comparison if only is None else only).save(folder)


def _document(comparison: Comparison) -> dict[str, Any]:
    results = comparison.results
    first = next(iter(results.values()))[0]
    return {
        "tokens": first.real_str_tokens(),
        "token_ids": first.token_ids[0].tolist(),
        "position": int(first.position[0]),
        "target": first.target[0],
        "value": float(first.target_value[0]),
        "relevance": {name: r[0].real_tokens().double().tolist() for name, r in results.items()},
        "unit": {name: r.unit for name, r in results.items()},
        "metadata": {name: dict(r.metadata) for name, r in results.items()},
    }


def _print(comparison: Comparison, top: int, html: Path | None, quiet: bool) -> None:
    first = next(iter(comparison.results.values()))[0]
    console.print_facts({first.target[0]: console.number(float(first.target_value[0]))})
    for name, result in comparison.results.items():
        values = result[0].real_tokens().double().tolist()
        total = console.number(sum(values))
        console.print_heading(name, f"relevance adds up to {total} {result.unit}")
        console.print_coloured(first.real_str_tokens(), values)
    if not quiet:
        console.print_colour_key()
    console.print_blank()
    console.print_table(_top_tokens(comparison, top))
    if html is not None:
        console.print_facts({"page": html})


def _top_tokens(comparison: Comparison, top: int) -> pd.DataFrame:
    """The tokens with the largest absolute relevance for any method, relative to its largest."""
    from lens_attr.plots.token_text import readable

    table = comparison.to_pandas()
    tokens = table.pop("str_token").map(readable)
    sizes = table.abs()
    order = (sizes / sizes.max().replace(0.0, 1.0)).max(axis=1).nlargest(top).index
    table.insert(0, "token", tokens)
    table.insert(0, "position", range(len(table)))
    return table.loc[order]


def _write_html(comparison: Comparison, path: Path, model: str, text: str) -> None:
    from lens_attr.plots import heads
    from lens_attr.report import Page, Section, colour_key, explained_text, write_page

    first = next(iter(comparison.results.values()))[0]
    value = f"{first.target[0]} = {float(first.target_value[0]):.3f}"
    tokens = Section("Tokens", "", [colour_key(), explained_text(comparison.results)])
    maps = [heads(r) for r in comparison.results.values() if r.head_tokens is not None]
    table = Section("All values", "", [comparison.to_pandas()])
    sections = [tokens, *([Section("Heads", "", maps)] if maps else []), table]
    prose = f"{model} reads: {text}\n\nExplained: {value}"
    write_page(Page("Why this prediction?", prose, sections), path)
