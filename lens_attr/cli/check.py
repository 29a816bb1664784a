"""``lens-attr check``: can a model be explained faithfully?"""

from __future__ import annotations

from typing import Annotated

import typer

from lens_attr.cli import console, options
from lens_attr.errors import InputError, did_you_mean

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A Hugging Face name, a model folder, or demo-gpt2, demo-llama, demo-bert.",
        show_default=False,
    ),
]
RulesOption = Annotated[
    str, typer.Option("--rules", help="The rules to try: gradient, lrp, attnlrp, gim or relp.")
]


def check(
    model: ModelArgument,
    rules: RulesOption = "attnlrp",
    backend: options.BackendOption = "auto",
    dtype: options.DtypeOption = "float32",
    device: options.DeviceOption = None,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Try the rules on a model and show where each one acts.

    Ends with exit code 1 if the model cannot be explained faithfully.
    """
    import lens_attr as la

    if rules not in la.rules.PRESETS:
        raise InputError(f"unknown rules {rules!r}; {did_you_mean(rules, la.rules.PRESETS)}")
    with console.working(f"loading {model}", quiet):
        loaded = options.load_model(model, backend, dtype, device)
    with console.working("checking", quiet):
        audit = la.check(loaded, la.rules.PRESETS[rules]())
    table = audit.to_pandas()
    if as_json:
        coverage = table.to_dict("records")
        console.print_json(
            {"accepted": audit.accepted, "reasons": list(audit.reasons), "coverage": coverage}
        )
    elif not quiet and len(table):
        console.print_table(table.replace({"rule": {"": "none: true gradient"}}))
    if not audit.accepted:
        console.error(f"{rules} refuses {model}: {'; '.join(audit.reasons)}")
        raise typer.Exit(1)
    if not as_json:
        console.print_facts({f"{rules} on {model}": "accepted"})
