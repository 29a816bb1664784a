"""The presets: short lists of rules. What each switch does stands with the rule itself.

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
from typing import Any, Literal

from lens_attr.errors import InputError, did_you_mean
from lens_attr.rules.attention import ScalePattern, ScaleZ, TemperedSoftmax
from lens_attr.rules.core import Rule, RuleSet
from lens_attr.rules.mlp import GateSplit, IdentityActivation
from lens_attr.rules.norm import FreezeNorm

GateMode = Literal["true", "half", "constant"]
ActivationMode = Literal["true", "identity"]

GATES: dict[str, tuple[float, float]] = {"half": (0.5, 0.5), "constant": (0.0, 1.0)}


def build(
    name: str,
    *,
    norm: float = 1.0,
    pattern: float = 1.0,
    temperature: float = 1.0,
    z: float = 1.0,
    activation: ActivationMode = "true",
    gate: GateMode = "true",
    layers: Collection[int] | None = None,
) -> RuleSet:
    """A rule set from its switches; a switch at its neutral value adds no rule.

    Args:
        name: how results call it.
        norm: factor at every ``hook_scale``; 0 freezes the standard deviation.
        pattern: factor at ``hook_pattern``.
        temperature: of the softmax Jacobian (T > 0); 1 is the true one.
        z: factor at ``hook_z``.
        activation: ``"identity"`` or the ``"true"`` derivative.
        gate: ``"half"`` each, gate ``"constant"``, or the ``"true"`` product rule.
        layers: blocks the rules act in; None: everywhere, the final norm included.

    Raises:
        InputError: unknown ``activation`` or ``gate``, or a temperature that is not positive.
    """
    if activation not in ("true", "identity"):
        raise InputError(f"activation must be 'true' or 'identity', got {activation!r}.")
    if gate not in ("true", *GATES):
        raise InputError(f"gate must be 'true', 'half' or 'constant', got {gate!r}.")
    rules: list[Rule] = []
    if norm != 1.0:
        rules.append(FreezeNorm(factor=norm, layers=layers))
    if temperature != 1.0:
        rules.append(TemperedSoftmax(temperature=temperature, layers=layers))
    if pattern != 1.0:
        rules.append(ScalePattern(factor=pattern, layers=layers))
    if z != 1.0:
        rules.append(ScaleZ(factor=z, layers=layers))
    if activation == "identity":
        rules.append(IdentityActivation(layers=layers))
    if gate in GATES:
        to_gate, to_up = GATES[gate]
        rules.append(GateSplit(gate=to_gate, up=to_up, layers=layers))
    return RuleSet(tuple(rules), name=name)


def gradient(**switches: Any) -> RuleSet:
    """No rule: the true gradient. Switches as in `build`."""
    return build("gradient", **switches)


def lrp(**switches: Any) -> RuleSet:
    """LRP for transformers (Ali et al. 2022; CP-LRP; LRPx appendix C). Switches as in `build`.

    Norms, patterns and gates are constants, activations pass relevance unchanged: without biases
    the relevance of the tokens sums to the target.
    """
    return build("lrp", **{"norm": 0.0, "pattern": 0.0, "activation": "identity"}
                 | {"gate": "constant"} | switches)


def attnlrp(**switches: Any) -> RuleSet:
    """AttnLRP (Achtibat et al. 2024, arXiv 2402.05602). Switches as in `build`.

    As LRP, but relevance also flows through the softmax to queries and keys; every product of two
    activations shares it equally.
    """
    return build("attnlrp", **{"norm": 0.0, "pattern": 0.5, "z": 0.5}
                 | {"activation": "identity", "gate": "half"} | switches)


def gim(**switches: Any) -> RuleSet:
    """GIM, gradient interaction modifications (Edin et al. 2025, arXiv 2505.17630).

    The true gradient with frozen norms, halved products, and the softmax Jacobian at temperature
    2, against self-repair. Switches as in `build`.
    """
    return build("gim", **{"norm": 0.0, "pattern": 0.5, "temperature": 2.0, "z": 0.5}
                 | {"gate": "half"} | switches)


def relp(**switches: Any) -> RuleSet:
    """RelP (Jafari et al. 2025): LRP's norms and activations, true attention, gates halved.

    ``pattern=0`` is its option with constant attention. Switches as in `build`.
    """
    return build("relp", **{"norm": 0.0, "activation": "identity", "gate": "half"} | switches)


PRESETS: dict[str, Callable[..., RuleSet]] = {
    "gradient": gradient,
    "lrp": lrp,
    "attnlrp": attnlrp,
    "gim": gim,
    "relp": relp,
}


def preset(name: str, **switches: Any) -> RuleSet:
    """A preset by name.

    Raises:
        InputError: unknown name.
    """
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}; {did_you_mean(name, PRESETS)}")
    return PRESETS[name](**switches)
