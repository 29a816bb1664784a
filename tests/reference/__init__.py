"""A slow, independent float64 reference of the attribution methods, for the tests only.

Nothing here imports ``lens_attr`` or ``transformer_lens``, and no relevance comes from autograd.
Start reading at ``papers``: the presets (``rules``), an explicit forward pass that keeps every
intermediate (``model``), and two independent backward passes, one that propagates multipliers
(``multipliers``) and one that propagates relevance itself (``relevances``). ``deeplift`` compares
two forward passes and has definitions of its own.
"""

from .deeplift import DeepLift, deeplift
from .model import Trace, forward
from .papers import Reference, contrast, relevance
from .rules import PRESETS, Rules

__all__ = [
    "PRESETS",
    "DeepLift",
    "Reference",
    "Rules",
    "Trace",
    "contrast",
    "deeplift",
    "forward",
    "relevance",
]
