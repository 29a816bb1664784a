"""MLP rules: the elementwise activation, and the product of gate and up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from lens_attr.errors import UnsupportedModelError
from lens_attr.graph import Activation, ModelGraph
from lens_attr.rules.core import Placement, Rule, Tape, scale


@dataclass(frozen=True, kw_only=True)
class IdentityActivation(Rule):
    """Pass relevance through an elementwise activation unchanged (LRPx C.3).

    The gradient at z of a = f(z) becomes g f(z) / z, and 0 where z = 0. In a gated MLP, where
    post = f(pre) up, that is g post / pre, which needs no activation function. Covers the MLPs
    and the activation of BERT's masked-word head.
    """

    vectorised = True

    def place(self, graph: ModelGraph) -> Iterable[Placement]:
        """At every activation's pre-activation; the gradient is read after the activation."""
        if str(getattr(graph.cfg, "act_fn", "")).endswith("_ln"):
            raise UnsupportedModelError(
                f"act_fn={graph.cfg.act_fn!r} has a LayerNorm between blocks.*.mlp.hook_pre and "
                "hook_post, so the identity rule cannot be read off them: use 'gradient', or a "
                "preset with activation='true'."
            )
        return [self._at(site) for site in graph.activations()]

    def absent(self, graph: ModelGraph) -> bool:
        """True for attention-only models."""
        return bool(getattr(graph.cfg, "attn_only", False))

    def _at(self, site: Activation) -> Placement:
        def transform(grad: Tensor, tape: Tape) -> Tensor:
            # Not finite where z = 0 alone: a NaN of the model itself is in its logits as well. Four
            # times as fast as a mask.
            slope = tape.value(site.post) / tape.value(site.pre)
            return slope.nan_to_num_(0.0, posinf=0.0, neginf=0.0) * tape.grad(site.post)

        return Placement(
            site.pre,
            transform,
            values=(site.pre, site.post),
            grads=(site.post,),
            replaces=True,
            bypasses="all" if site.up is None else "branch",
        )


@dataclass(frozen=True, kw_only=True)
class GateSplit(Rule):
    """Share the gradient of gate x up between its factors.

    1/2 each is the uniform rule (AttnLRP, GIM, RelP); gate 0 and up 1 makes the gate a constant
    (LRP). Acts in gated MLPs only.

    Attributes:
        gate: factor at the gate's pre-activation.
        up: factor at what the gate multiplies.
    """

    gate: float = 0.5
    up: float = 0.5

    vectorised = True

    def place(self, graph: ModelGraph) -> Iterable[Placement]:
        """At ``mlp.hook_pre`` and ``mlp.hook_pre_linear`` of every gated MLP, if not 1 there."""
        gated = [site for site in graph.activations() if site.up is not None]
        factors = [(site.pre, self.gate) for site in gated]
        factors += [(site.up, self.up) for site in gated if site.up is not None]
        return [scale(point, factor) for point, factor in factors if factor != 1.0]

    def absent(self, graph: ModelGraph) -> bool:
        """True for models without gated MLPs."""
        return not getattr(graph.cfg, "gated_mlp", False)
