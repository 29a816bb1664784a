"""``lens-attr check``: can a model be explained faithfully?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lens_attr.cli import console, options
from lens_attr.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from lens_attr.rules.audit import Audit

ModelArgument = Annotated[
    str | None,
    typer.Argument(metavar="[MODEL]", help="The same as --model.", show_default=False),
]
RulesOption = Annotated[
    str, typer.Option("--rules", help="The rules to try: gradient, lrp, attnlrp, gim or relp.")
]


def check(
    ctx: options.Context,
    named: ModelArgument = None,
    model: options.ModelOption = options.DEMO_MODEL,
    rules: RulesOption = "attnlrp",
    backend: options.BackendOption = "auto",
    dtype: options.DtypeOption = "float32",
    device: options.DeviceOption = None,
    as_json: options.JsonOption = False,
    save: options.SaveOption = None,
    quiet: options.QuietOption = False,
) -> None:
    """Try the rules on a model and show where each one acts.

    Ends with exit code 1 if the model cannot be explained faithfully.

    Example: lens-attr check demo-gpt2 --rules gim
    """
    import lens_attr as la

    if named not in (None, model) and options.is_given(ctx, "model"):
        raise typer.BadParameter(f"{named} and --model {model}: name the model once.")
    model = named or model
    if rules not in la.rules.PRESETS:
        raise InputError(f"unknown rules {rules!r}; {did_you_mean(rules, la.rules.PRESETS)}")
    with console.working(f"loading {model}", quiet):
        loaded = options.load_model(model, backend, dtype, device)
    with console.working("checking", quiet):
        audit = la.check(loaded, la.rules.PRESETS[rules]())
    table = audit.to_pandas()
    if save is not None:
        save_coverage(audit, save)
        options.note_saved(save, "coverage", model)
    if as_json:
        console.print_json(_document(audit))
    elif not quiet and len(table):
        console.print_table(table.replace({"rule": {"": "none: true gradient"}}))
    if not audit.accepted:
        console.error(f"{rules} refuses {model}: {'; '.join(audit.reasons)}")
        raise typer.Exit(1)
    if not as_json:
        console.print_facts({f"{rules} on {model}": "accepted"})


def save_coverage(audit: Audit, folder: Path) -> None:
    """Write ``coverage.json``, which `lens-attr report` shows."""
    from lens_attr.circuits.files import write_json

    write_json(folder, "coverage.json", {"rules": audit.rules} | _document(audit))


def _document(audit: Audit) -> dict[str, Any]:
    rows = audit.to_pandas().astype(object)
    coverage = rows.where(rows.notna(), None).to_dict("records")
    return {"accepted": audit.accepted, "reasons": list(audit.reasons), "coverage": coverage}
