"""``lens-attr heads``: which attention heads made the prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lens_attr.cli import console, options

if TYPE_CHECKING:
    from pathlib import Path

    from lens_attr.attribution.relevance import Relevance
    from lens_attr.circuits.results import Ranking


def heads(
    text: options.TextArgument,
    target: options.TargetOption = None,
    foil: options.FoilOption = None,
    model: options.ModelOption = options.DEMO_MODEL,
    method: options.MethodOption = "attnlrp",
    pool: options.PoolOption = "relu_token",
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
    """Rank the attention heads by how much they mattered for one prediction.

    Example: lens-attr heads "the keys near the cabinet" -t " are" -f " is" --top 5
    """
    import lens_attr as la

    options.check_methods([method])
    explained = options.build_target(target, foil, position)
    with console.working(f"loading {model}", quiet):
        loaded = options.load_model(model, backend, dtype, device)
    with console.notices(quiet):
        progress = False if quiet else None
        result = la.attribute(
            loaded, text, explained, method, embeddings=embeddings, progress=progress
        )
    ranking = la.circuits.rank_heads(result, pool=pool)
    if save is not None:
        result.save(save)
        ranking.save(save)
        options.note_saved(save, "relevance", model)
    if html is not None:
        _write_html(result, ranking, html, text)
    if as_json:
        console.print_json(_document(result, ranking))
        return
    console.print_facts({result.target[0]: console.number(float(result.target_value[0]))})
    console.print_blank()
    best_first = ranking.to_pandas().iloc[::-1]
    console.print_table(best_first[["layer", "head", "score"]].head(top))
    if html is not None:
        console.print_facts({"page": html})


def _document(result: Relevance, ranking: Ranking) -> dict[str, Any]:
    best_first = ranking.to_pandas().iloc[::-1]
    return {
        "target": result.target[0],
        "value": float(result.target_value[0]),
        "method": ranking.method,
        "pool": ranking.pool,
        "unit": result.unit,
        "heads": best_first[["layer", "head", "score"]].to_dict("records"),
        "metadata": dict(result.metadata),
    }


def _write_html(result: Relevance, ranking: Ranking, path: Path, text: str) -> None:
    from lens_attr.plots import heads as head_map
    from lens_attr.report import Page, Section, write_page

    value = f"{result.target[0]} = {float(result.target_value[0]):.3f}"
    table = ranking.to_pandas().iloc[::-1][["layer", "head", "score"]]
    section = Section("Attention heads", "", [head_map(ranking), table])
    prose = f"The model reads: {text}\n\nExplained: {value}"
    write_page(Page("Which heads made this prediction?", prose, [section]), path)
