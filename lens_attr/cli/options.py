"""Options that several commands share, and how they become a model and a target."""

from __future__ import annotations

import contextlib
import io
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    import pandas as pd
    from typer import Context

    from lens_attr.targets import Target
else:
    Context = typer.Context.__base__
    """What typer really hands over: a context of click, and it brings a click of its own."""

Backend = Literal["auto", "hooked", "bridge"]
Embeddings = Literal["full", "token"]
Pool = Literal["sum", "relu_token", "relu_dim"]
Order = Literal["least", "most"]
Ablation = Literal["zero", "mean", "resample"]
Unit = Literal["head", "mlp", "neuron"]

DEMO_MODEL = "demo-gpt2"
METHOD = ("--method", "--methods")
"""Both spellings, in every command."""
PAGES = (".html", ".htm")

TextArgument = Annotated[
    str,
    typer.Argument(
        metavar="TEXT",
        help="The text the model reads; for a BERT, with \\[MASK] at the explained word.",
        show_default=False,
    ),
]
TargetOption = Annotated[
    str | None,
    typer.Option(
        "--target",
        "-t",
        help="The predicted word to explain, with its leading space: ' are'; or a token id: "
        "id:326. Without it, the prediction the model finds most likely.",
        show_default=False,
    ),
]
FoilOption = Annotated[
    str | None,
    typer.Option(
        "--foil",
        "-f",
        help="The word (or id) it competes with: explains why the target and not this one.",
        show_default=False,
    ),
]
PositionOption = Annotated[
    int,
    typer.Option(
        "--position",
        help="Which token's prediction to explain; -1 is the last token (for a BERT, the mask).",
    ),
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="A Hugging Face name, a model folder, or demo-gpt2, demo-llama, demo-bert.",
    ),
]
BackendOption = Annotated[
    Backend,
    typer.Option("--backend", help="The TransformerLens class that holds the model."),
]
DtypeOption = Annotated[str, typer.Option("--dtype", help="Precision: float32, bfloat16, ...")]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device", help="cpu or cuda; default: the GPU if there is one.", show_default=False
    ),
]


def is_given(ctx: Context, name: str) -> bool:
    """Whether a parameter stands on the command line."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _one_method(name: str) -> str:
    if "," in name:
        raise typer.BadParameter("one method at a time here; lens-attr attribute compares several.")
    return name


MethodOption = Annotated[
    str,
    typer.Option(*METHOD, callback=_one_method, help="How to explain. See: lens-attr methods."),
]
EmbeddingsOption = Annotated[
    Embeddings | None,
    typer.Option(
        "--embeddings",
        help="What a token is: its whole embedding, or without its position; default: the "
        "method's own.",
        show_default=False,
    ),
]
PoolOption = Annotated[
    Pool, typer.Option("--pool", help="How the positions of a head become one number.")
]
TopOption = Annotated[int, typer.Option("--top", min=1, help="How many rows to show.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print results only: no progress, no notes.")
]


def check_page(path: Path | None) -> Path | None:
    """Refuse an ending that promises something else than a page."""
    if path is not None and path.suffix.lower() not in PAGES:
        raise typer.BadParameter(f"{path.name!r} is to hold a page: let it end in .html.")
    return path


HtmlOption = Annotated[
    Path | None,
    typer.Option(
        "--html",
        dir_okay=False,
        callback=check_page,
        help="Also write a page that opens offline.",
        show_default=False,
    ),
]
SaveOption = Annotated[
    Path | None,
    typer.Option(
        "--save", file_okay=False, help="Also save the result in this folder.", show_default=False
    ),
]


def load_model(name: str, backend: Backend, dtype: str, device: str | None) -> Any:
    """The model behind the shared options; what its libraries print meanwhile is dropped."""
    import lens_attr as la

    with silent_libraries():
        return la.load(name, backend=backend, dtype=dtype, device=device)


@contextlib.contextmanager
def silent_libraries() -> Iterator[None]:
    """Drop what model libraries print while they load."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def command_line() -> str:
    """What was typed, as it can be typed again."""
    return shlex.join(["lens-attr", *sys.argv[1:]])


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """A table as a file of a folder that need not be there yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False)


def note_saved(folder: Path, made: str, model: str) -> None:
    """Write down beside saved results which command made them; `lens-attr report` shows it."""
    from lens_attr.report import write_about

    write_about(folder, made, command_line(), title=model)


def method_names(given: Sequence[str]) -> list[str]:
    """Methods that were given one by one, separated by commas, or both.

    Raises:
        typer.BadParameter: none is named, or one of them twice.
    """
    names = [name.strip() for several in given for name in several.split(",") if name.strip()]
    if not names:
        raise typer.BadParameter("--method names no method.")
    for i, name in enumerate(names):
        if name in names[:i]:
            raise typer.BadParameter(f"--method names {name} twice.")
    return names


def check_methods(names: Sequence[str]) -> None:
    """Refuse an unknown method before a model is loaded.

    Raises:
        InputError: unknown name.
    """
    import lens_attr as la

    for name in names:
        la.methods()[name]


def build_target(target: str | None, foil: str | None, position: int) -> Target:
    """The target behind the shared options."""
    import lens_attr as la

    if foil is not None and target is None:
        raise typer.BadParameter("--foil needs --target: the word that it competes with.")
    if target is None:
        return la.TopLogit(position=position)
    if foil is None:
        return la.Logit(_token(target), position=position)
    return la.LogitDiff(_token(target), _token(foil), position=position)


def _token(given: str) -> str | int:
    """A word, or the id in ``id:326``."""
    prefix, _, number = given.partition(":")
    return int(number) if prefix == "id" and number.isdecimal() else given
