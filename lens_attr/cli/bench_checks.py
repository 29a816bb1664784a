"""Which options of ``lens-attr bench`` go together: what a run would not read is refused."""

from __future__ import annotations

from collections.abc import Mapping

import typer

from lens_attr.cli.options import Context, is_given

PLAIN = "the plain benchmark"
MODES = ("axes", "deletion", "faithfulness", "speed", "self_repair", "stability", "length")
"""Parameters that choose another kind of run; only one can be given."""

ABLATED = (PLAIN, "deletion", "faithfulness")
"""Kinds of runs whose measures --ablate can use."""

TAKEN_BY: Mapping[str, tuple[str, ...]] = {
    "contrastive": (PLAIN, "faithfulness", "stability", "length"),
    "special_tokens": (PLAIN, "length"),
    "whole_text": (PLAIN, "length"),
    "embeddings": (PLAIN, "deletion", "faithfulness", "stability", "length"),
    "ties": (PLAIN, "axes", "length"),
    "keep_incorrect": (PLAIN, "axes", "stability", "length"),
    "batch_size": (PLAIN, *(mode for mode in MODES if mode != "speed")),
    "k": ("deletion",),
    "sweep": ("deletion",),
    "unit": ("deletion",),
    "delete": ("deletion",),
    "lengths": ("deletion", "faithfulness"),
    "interest": ("deletion", "faithfulness"),
    "interest_file": ("deletion", "faithfulness"),
    "token": ("deletion", "faithfulness"),
    "layers": ("faithfulness",),
    "pairs": ("stability",),
}
"""Kinds of runs that read a parameter; every one reads what is not named here."""

COMPARED = ("compare", "as_json", "quiet")
"""All that --compare reads."""

NEEDS: Mapping[str, tuple[str, ...]] = {
    "format": ("data",),
    "template": ("data",),
    "skip_bad": ("data", "pairs"),
}
"""Parameters that say how files are read: one of these must be given too."""

EITHER = (
    ("methods", "ablate"),
    ("data", "pairs"),
    ("task", "pairs"),
    ("interest", "interest_file"),
)
"""Parameters of which the second leaves the first without effect."""


def check(ctx: Context) -> None:
    """Raise for an option that was given and would do nothing.

    Raises:
        typer.BadParameter: names the option and what it goes with.
    """
    flags = {str(one.name): one.opts[0] for one in ctx.command.params}
    given = [name for name in flags if is_given(ctx, name)]
    modes = [mode for mode in MODES if ctx.params[mode]]
    if "compare" in given:
        for name in given:
            if name not in COMPARED:
                raise typer.BadParameter(f"{flags[name]} does not go with --compare.")
        return
    if len(modes) > 1:
        chosen = " and ".join(flags[mode] for mode in modes)
        raise typer.BadParameter(f"{chosen} are different runs: choose one.")
    mode = modes[0] if modes else PLAIN
    if "ablate" in given and mode not in ABLATED:
        raise typer.BadParameter(f"--ablate does not go with {flags[mode]}.")
    for name in given:
        _check_one(name, given, mode, {PLAIN: PLAIN, **flags})
    if mode == "deletion" and "token" in given and ctx.params["delete"] != "token":
        raise typer.BadParameter("--token goes with --delete token here.")


def _check_one(name: str, given: list[str], mode: str, flags: Mapping[str, str]) -> None:
    taking = TAKEN_BY.get(name, (mode,))
    if mode not in taking:
        modes = " and ".join(flags[one] for one in taking)
        raise typer.BadParameter(f"{flags[name]} goes with {modes}, not with {flags[mode]}.")
    needed = NEEDS.get(name, given)
    if not set(needed) & {*given}:
        files = " or ".join(flags[one] for one in needed)
        raise typer.BadParameter(f"{flags[name]} says how a file is read: give one with {files}.")
    for first, second in EITHER:
        if name == first and second in given:
            raise typer.BadParameter(f"{flags[first]} does not go with {flags[second]}.")
