"""The presets as data: each is a row of switches, and each switch that is not neutral one rule.

=========  =============  ==================  ======  ===================  ================
preset     every norm     pattern             z       MLP activation       gate x up
=========  =============  ==================  ======  ===================  ================
gradient   true           true                true    true                 true
lrp        constant       constant            true    identity             gate constant
attnlrp    constant       1/2                 1/2     identity             1/2 each
gim        constant       1/2, tempered T=2   1/2     true                 1/2 each
relp       constant       true                true    identity             1/2 each
=========  =============  ==================  ======  ===================  ================
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from lens_attr.errors import InputError, did_you_mean, refuse_no_number
from lens_attr.rules.attention import ScalePattern, ScaleZ, TemperedSoftmax
from lens_attr.rules.core import Rule, RuleSet
from lens_attr.rules.mlp import GateSplit, IdentityActivation
from lens_attr.rules.norm import FreezeNorm

ActivationMode = Literal["true", "identity"]
GateMode = Literal["true", "half", "constant"]

GATE_AND_UP: dict[str, tuple[float, float]] = {"half": (0.5, 0.5), "constant": (0.0, 1.0)}


@dataclass(frozen=True, kw_only=True)
class Switches:
    """What a preset does at each kind of hook point; the defaults are the true gradient.

    Attributes:
        norm: factor at every ``hook_scale``; 0 freezes the standard deviation.
        pattern: factor at ``hook_pattern``.
        temperature: of the softmax Jacobian (T > 0); 1 is the true one.
        z: factor at ``hook_z``.
        activation: ``"identity"`` rule, or the ``"true"`` derivative.
        gate: ``"half"`` each, gate ``"constant"``, or the ``"true"`` product rule.
        layers: blocks the rules act in; None: everywhere, the final norm included.
    """

    norm: float = 1.0
    pattern: float = 1.0
    temperature: float = 1.0
    z: float = 1.0
    activation: ActivationMode = "true"
    gate: GateMode = "true"
    layers: Collection[int] | None = None

    def __post_init__(self) -> None:
        for name in ("norm", "pattern", "temperature", "z"):
            refuse_no_number(name, getattr(self, name))
        for name, modes in (("activation", ActivationMode), ("gate", GateMode)):
            if getattr(self, name) not in get_args(modes):
                known = ", ".join(map(repr, get_args(modes)))
                raise InputError(f"{name} must be one of {known}, got {getattr(self, name)!r}.")

    def rules(self) -> tuple[Rule, ...]:
        """One rule per switch that is not neutral, in the order they compose."""
        where: dict[str, Any] = {"layers": self.layers}
        chosen: list[Rule] = []
        if self.norm != 1.0:
            chosen.append(FreezeNorm(factor=self.norm, **where))
        if self.temperature != 1.0:
            chosen.append(TemperedSoftmax(temperature=self.temperature, **where))
        if self.pattern != 1.0:
            chosen.append(ScalePattern(factor=self.pattern, **where))
        if self.z != 1.0:
            chosen.append(ScaleZ(factor=self.z, **where))
        if self.activation == "identity":
            chosen.append(IdentityActivation(**where))
        if self.gate != "true":
            gate, up = GATE_AND_UP[self.gate]
            chosen.append(GateSplit(gate=gate, up=up, **where))
        return tuple(chosen)


SWITCHES: dict[str, Switches] = {
    "gradient": Switches(),
    "lrp": Switches(norm=0.0, pattern=0.0, activation="identity", gate="constant"),
    "attnlrp": Switches(norm=0.0, pattern=0.5, z=0.5, activation="identity", gate="half"),
    "gim": Switches(norm=0.0, pattern=0.5, temperature=2.0, z=0.5, gate="half"),
    "relp": Switches(norm=0.0, activation="identity", gate="half"),
}


def preset(name: str, **switches: Any) -> RuleSet:
    """A preset by name, with some of its `Switches` set otherwise.

    Raises:
        InputError: unknown preset, switch or mode, or a temperature that is not positive.
    """
    if name not in SWITCHES:
        raise InputError(f"unknown preset {name!r}; {did_you_mean(name, SWITCHES)}")
    known = [field.name for field in fields(Switches)]
    for switch in switches:
        if switch not in known:
            raise InputError(f"{name} has no switch {switch!r}; {did_you_mean(switch, known)}")
    return RuleSet(replace(SWITCHES[name], **switches).rules(), name=name)


def gradient(**switches: Any) -> RuleSet:
    """No rule: the true gradient. Single `Switches` may be set, e.g. ``norm=0``."""
    return preset("gradient", **switches)


def lrp(**switches: Any) -> RuleSet:
    """LRP for transformers (Ali et al. 2022; CP-LRP; LRPx appendix C).

    Norms, patterns and gates are constants, activations pass relevance unchanged: without biases
    the relevance of the tokens sums to the target. Single `Switches` may be set.
    """
    return preset("lrp", **switches)


def attnlrp(**switches: Any) -> RuleSet:
    """AttnLRP (Achtibat et al. 2024, arXiv 2402.05602).

    As LRP, but relevance also flows through the softmax to queries and keys; every product of two
    activations shares it equally. Single `Switches` may be set, e.g. ``activation="true"``.
    """
    return preset("attnlrp", **switches)


def gim(**switches: Any) -> RuleSet:
    """GIM, gradient interaction modifications (Edin et al. 2025, arXiv 2505.17630).

    The true gradient with frozen norms, halved products, and the softmax Jacobian at temperature
    2, against self-repair. Single `Switches` may be set, e.g. ``temperature=3.0``.
    """
    return preset("gim", **switches)


def relp(**switches: Any) -> RuleSet:
    """RelP (Jafari et al. 2025): LRP's norms and activations, true attention, gates halved.

    ``pattern=0`` is its option with constant attention. Single `Switches` may be set.
    """
    return preset("relp", **switches)


PRESETS: dict[str, Callable[..., RuleSet]] = {
    "gradient": gradient,
    "lrp": lrp,
    "attnlrp": attnlrp,
    "gim": gim,
    "relp": relp,
}
