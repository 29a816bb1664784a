"""Attribution rules as backward hooks: presets, single rules, and rules of your own."""

from lens_attr.rules.attention import ScalePattern, ScaleZ, TemperedSoftmax
from lens_attr.rules.clamp import ClampGradient
from lens_attr.rules.core import Placement, Rule, RuleSet, Tape, scale
from lens_attr.rules.custom import Custom, custom
from lens_attr.rules.mlp import GateSplit, IdentityActivation
from lens_attr.rules.norm import FreezeNorm
from lens_attr.rules.presets import (
    PRESETS,
    Switches,
    attnlrp,
    gim,
    gradient,
    lrp,
    preset,
    relp,
)

__all__ = [
    "PRESETS",
    "ClampGradient",
    "Custom",
    "FreezeNorm",
    "GateSplit",
    "IdentityActivation",
    "Placement",
    "Rule",
    "RuleSet",
    "ScalePattern",
    "ScaleZ",
    "Switches",
    "Tape",
    "TemperedSoftmax",
    "attnlrp",
    "custom",
    "gim",
    "gradient",
    "lrp",
    "preset",
    "relp",
    "scale",
]
