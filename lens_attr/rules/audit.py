"""`check`: which hook point each rule acts on, what is left uncovered, and whether to trust it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from lens_attr.display import Glance, Shown
from lens_attr.errors import InputError, LensAttrError
from lens_attr.graph import ModelGraph, Role, resolve
from lens_attr.graph.preflight import Finding, preflight, probe_backward
from lens_attr.rules.core import RuleSet
from lens_attr.rules.presets import preset
from lens_attr.rules.session import Session

RULED_ROLES: tuple[Role, ...] = ("norm_scale", "pattern", "z", "mlp_pre", "mlp_up", "head_pre")
"""Where the presets act; a point of these roles without a rule keeps its true gradient."""


@dataclass(frozen=True)
class Coverage:
    """One hook point and what happens to the gradient there."""

    rule: str
    role: str
    hook_point: str
    layer: int | None
    fired: int


@dataclass(frozen=True, repr=False)
class Audit(Shown):
    """Whether a rule set can explain a model faithfully.

    Attributes:
        accepted: every rule acted and every identity it relies on holds.
        reasons: why not, one sentence each, with the way out.
        coverage: every relevant hook point, with the rule that acted there.
        findings: the identities that were tested on a few tokens.
        rules: name of the rule set.
    """

    accepted: bool
    reasons: list[str]
    coverage: list[Coverage] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    rules: str = ""

    @property
    def uncovered(self) -> list[str]:
        """Hook points of ruled roles where the true gradient is kept."""
        return [row.hook_point for row in self.coverage if not row.rule]

    def to_pandas(self) -> pd.DataFrame:
        """One row per hook point: rule ("" = true gradient), role, hook_point, layer, fired."""
        columns = ["rule", "role", "hook_point", "layer", "fired"]
        frame = pd.DataFrame([vars(row) for row in self.coverage], columns=columns)
        return frame.assign(layer=frame["layer"].astype("Int64"))

    @property
    def headline(self) -> str:
        """The verdict."""
        return str(self).splitlines()[0]

    def glance(self) -> Glance:
        """The verdict, and what happens at each kind of hook point."""
        if not self.coverage:
            return Glance(self.headline, notes=self.reasons)
        kinds = self.to_pandas().groupby(["role", "rule"], sort=False)
        table = kinds.agg(hook_points=("hook_point", "size"), fired=("fired", "sum")).reset_index()
        table["rule"] = table["rule"].replace("", "none: true gradient")
        return Glance(self.headline, notes=self.reasons, table=table)

    def __str__(self) -> str:
        acted = sum(bool(row.rule) for row in self.coverage)
        verdict = "accepted" if self.accepted else "refused"
        held = sum(finding.holds for finding in self.findings)
        lines = [
            f"{self.rules}: {verdict}; rules act on {acted} hook points, {len(self.uncovered)} "
            f"keep the true gradient; {held} of {len(self.findings)} identities hold."
        ]
        return "\n".join(lines + [f"  - {reason}" for reason in self.reasons])


def check(model: Any, rules: RuleSet | str) -> Audit:
    """Run a few tokens through the model and report what each rule does.

    Args:
        model: a TransformerLens model.
        rules: a rule set, or a preset's name.

    Raises:
        InputError: not a TransformerLens model, or an unknown preset.
    """
    rules = preset(rules) if isinstance(rules, str) else rules
    if not isinstance(rules, RuleSet):
        raise InputError(f"expected a RuleSet or a preset's name, got {type(rules).__name__}.")
    try:
        graph = resolve(model)
        fired = _fired(graph, rules)
        findings = preflight(graph)
    except InputError:
        raise
    except LensAttrError as error:
        return Audit(False, [str(error)], rules=rules.name)
    broken = [f for f in findings if not f.holds]
    reasons = [
        f"{f.claim} does not hold at {f.hook_point} (off by {f.error:.1e}), so rules placed there "
        "would mean something else: use 'gradient', or another backend."
        for f in broken
    ]
    return Audit(not broken, reasons, _coverage(graph, rules, fired), findings, rules.name)


def _fired(graph: ModelGraph, rules: RuleSet) -> dict[str, int]:
    with Session(graph, rules, strict=True) as session:
        probe_backward(graph)
    return session.fired


def _coverage(graph: ModelGraph, rules: RuleSet, fired: dict[str, int]) -> list[Coverage]:
    placed = rules.placements(graph)
    names = {name: " + ".join(rule.name for rule, _ in here) for name, here in placed.items()}
    rows = [
        Coverage(names.get(p.name, ""), role, p.name, p.layer, fired.get(p.name, 0))
        for role in RULED_ROLES
        for p in graph.points(role)
        if graph.attention_in_graph or role != "pattern"
    ]
    elsewhere = set(placed) - {row.hook_point for row in rows}
    layers = {name: placed[name][0][1].point.layer for name in elsewhere}
    return rows + [Coverage(names[n], "", n, layers[n], fired[n]) for n in sorted(elsewhere)]
