"""``lens-attr generate``: let the model go on with a prompt, and explain every token it writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lens_attr.cli import console, options

if TYPE_CHECKING:
    from lens_attr.attribution.generation import Generation

Explained = Literal["logit", "log_prob", "logit_diff"]

DEFAULT_NEW_TOKENS = 20

PromptArgument = Annotated[
    str, typer.Argument(metavar="PROMPT", help="The text that goes on.", show_default=False)
]
NewTokensOption = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        "-n",
        min=1,
        help=f"How many tokens to generate at most; default: {DEFAULT_NEW_TOKENS}.",
        show_default=False,
    ),
]
GeneratedOption = Annotated[
    str | None,
    typer.Option(
        "--generated",
        help="Explain this continuation instead, with its leading space: ' are new'.",
        show_default=False,
    ),
]
ExplainedOption = Annotated[
    Explained,
    typer.Option(
        "--explain",
        help="What of each generated token: its logit, its log-probability, or its logit minus "
        "that of the most likely other token.",
    ),
]
TemperatureOption = Annotated[
    float,
    typer.Option(
        "--sampling-temperature", min=0.0, help="0 takes the most likely token; above, they vary."
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Of the drawing of tokens.")]
CsvOption = Annotated[
    Path | None,
    typer.Option(
        "--csv", dir_okay=False, help="Also write every pair as a table.", show_default=False
    ),
]
TokensOption = Annotated[
    bool, typer.Option("--tokens", help="Show and write tokens instead of words.")
]


def generate(
    prompt: PromptArgument,
    max_new_tokens: NewTokensOption = None,
    generated: GeneratedOption = None,
    target: ExplainedOption = "logit",
    model: options.ModelOption = options.DEMO_MODEL,
    method: options.MethodOption = "attnlrp",
    embeddings: options.EmbeddingsOption = None,
    sampling_temperature: TemperatureOption = 0.0,
    seed: SeedOption = 0,
    tokens: TokensOption = False,
    backend: options.BackendOption = "auto",
    dtype: options.DtypeOption = "float32",
    device: options.DeviceOption = None,
    top: options.TopOption = 10,
    as_json: options.JsonOption = False,
    html: options.HtmlOption = None,
    csv: CsvOption = None,
    save: options.SaveOption = None,
    quiet: options.QuietOption = False,
) -> None:
    """Explain a whole continuation: what of PROMPT did every generated word use?

    Example: lens-attr generate "the keys near the cabinet" -n 8 --html out/generation.html
    """
    import lens_attr as la

    if max_new_tokens is not None and generated is not None:
        raise typer.BadParameter("--generated is a continuation already: leave --max-new-tokens.")
    options.check_methods([method])
    with console.working(f"loading {model}", quiet):
        loaded = options.load_model(model, backend, dtype, device)
    with console.notices(quiet):
        result = la.attribute_generation(
            loaded,
            prompt,
            max_new_tokens=(max_new_tokens or DEFAULT_NEW_TOKENS) if generated is None else None,
            generated=generated,
            target=target,
            method=method,
            embeddings=embeddings,
            sampling_temperature=sampling_temperature,
            sampling_seed=seed,
            progress=False if quiet else None,
        )
    _write(result, not tokens, html, csv, save, model)
    if as_json:
        console.print_json(_document(result, not tokens))
    else:
        _print(result, not tokens, top, quiet)
        console.print_written(page=html, matrix=csv, saved=save)


def _document(result: Generation, words: bool) -> dict[str, Any]:
    matrix = result.matrix(words)
    values = matrix.values.double().tolist()
    return {
        "prompt": result.prompt,
        "generated": result.generated,
        "unit": matrix.unit,
        "method": matrix.method,
        "kind": matrix.kind,
        "rows": matrix.rows,
        "columns": matrix.columns,
        "n_prompt": matrix.n_prompt,
        "target_value": matrix.target_value.double().tolist(),
        "relevance": [[None if cell != cell else cell for cell in row] for row in values],
        "metadata": dict(result.relevance.metadata),
    }


def _print(result: Generation, words: bool, top: int, quiet: bool) -> None:
    console.print_facts({"prompt": result.prompt, "generated": result.generated})
    total = result.accumulated()
    shown = total.words().coloured_text() if words else total.coloured_text()
    console.print_heading(
        total.method,
        f"relevance of the prompt for all {len(result)} generated tokens adds up to "
        f"{console.number(sum(shown.values))} {total.unit}",
    )
    console.print_coloured(shown.tokens, shown.values)
    if not quiet:
        console.print_colour_key()
    console.print_blank()
    table = result.to_pandas(words)
    order = table["relevance"].abs().nlargest(top).index
    console.print_table(table.loc[order, ["generated", "read", "part", "relevance"]])


def _write(
    result: Generation,
    words: bool,
    html: Path | None,
    csv: Path | None,
    save: Path | None,
    model: str,
) -> None:
    if csv is not None:
        options.write_csv(result.to_pandas(words), csv)
    if save is not None:
        result.save(save)
        options.note_saved(save, "generation", model)
    if html is not None:
        _write_html(result, words, html, model)


def _write_html(result: Generation, words: bool, path: Path, model: str) -> None:
    from lens_attr.plots import html_tokens
    from lens_attr.report import Html, Page, Section, colour_key, write_page

    whole = result.accumulated("all")
    text = whole.words().coloured_text() if words else whole.coloured_text()
    coloured = Html(html_tokens(text.tokens, text.values, text.unit))
    sections = [
        Section(
            "What the whole continuation used",
            "Relevance of every word for all generated tokens, added up.",
            [colour_key(), coloured],
        ),
        Section("Every pair", "", [result.plot(words=words)]),
        Section("Where each token comes from", "", [result.sources()]),
    ]
    prose = f"{model} reads: {result.prompt}\n\nand goes on: {result.generated}"
    write_page(Page("What did the generated text use?", prose, sections), path)
