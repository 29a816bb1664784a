"""DeepLIFT's rules (Shrikumar et al. 2017, arXiv 1704.02685) for the parts of a transformer.

Input x and baseline x0 run as one batch, ``[x; x0]``, and so do their gradients. The *multiplier*
of an activation a is the m with ``sum(m * (a - a0)) = F(x) - F(x0)``. Where both halves receive
the same multiplier, the ordinary backward needs little help to hand on another:

- a linear map gives both halves the same gradient, which is the multiplier;
- a product a b gives them m b and m b0, and the product rule is their mean, m (b + b0) / 2;
- at a nonlinear function the derivative is replaced by the secant (rescale rule).

So the gradients are averaged at the output of every product (`MeanMultiplier`), and the secants put
in at the scores, the activations and the standard deviations. These rules mean nothing on a batch
that is not such a pair, so they are no preset: `la.attribute` uses them for ``method="deeplift"``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lens_attr.errors import UnsupportedModelError
from lens_attr.graph import Activation, ModelGraph, Point
from lens_attr.rules.core import Placement, Rule, RuleSet, Tape

SoftmaxForm = Literal["log", "product"]
"""How the softmax is written before its parts get their rules, see `softmax_multiplier`."""


def halves(pair: Float[Tensor, "pair ..."]) -> tuple[Tensor, Tensor]:
    """Of the input, and of the baseline."""
    first, second = pair.chunk(2)
    return first, second


def both(tensor: Float[Tensor, "batch ..."]) -> Float[Tensor, "pair ..."]:
    """The same for input and baseline."""
    return torch.cat([tensor, tensor])


def mean_of(pair: Float[Tensor, "pair ..."]) -> Float[Tensor, "batch ..."]:
    """(a + a0) / 2; of gradients, the multiplier."""
    first, second = halves(pair)
    return (first + second) / 2


def difference_of(pair: Float[Tensor, "pair ..."]) -> Float[Tensor, "batch ..."]:
    """a - a0."""
    first, second = halves(pair)
    return first - second


def secant(
    function: Callable[[Tensor], Tensor], x: Float[Tensor, "*any"], x0: Float[Tensor, "*any"]
) -> Float[Tensor, "*any"]:
    """The rescale rule: (f(x) - f(x0)) / (x - x0).

    Where x and x0 are closer than the cube root of the machine epsilon, f' halfway between them:
    its error there, of order (x - x0)^2, is no larger than the rounding of the quotient.
    """
    distance = x - x0
    close = distance.abs() < torch.finfo(x.dtype).eps ** (1 / 3)
    with torch.enable_grad():
        middle = ((x + x0) / 2).requires_grad_()
        (slope,) = torch.autograd.grad(function(middle).sum(), middle)
    quotient = (function(x) - function(x0)) / torch.where(close, 1.0, distance)
    return torch.where(close, slope, quotient)


def log_secant_of_exp(a: Float[Tensor, "*any"], b: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """log of (e^a - e^b) / (a - b), which is e^a where a = b; no overflow, no cancellation."""
    distance = (a - b).abs()
    ratio = torch.where(distance == 0, 1.0, -torch.expm1(-distance) / distance)
    return torch.maximum(a, b) + ratio.log()


def log_sum_exp_multiplier(
    values: Float[Tensor, "*rows key"], baseline: Float[Tensor, "*rows key"]
) -> Float[Tensor, "*rows key"]:
    """Of log(sum(E)), E = e^value: rescale on exp and on the logarithm, the sum linear. In 0..1."""
    total, total0 = (each.logsumexp(dim=-1, keepdim=True) for each in (values, baseline))
    return (log_secant_of_exp(values, baseline) - log_secant_of_exp(total, total0)).exp()


def softmax_multiplier(
    multiplier: Float[Tensor, "*rows key"],
    scores: Float[Tensor, "*rows key"],
    baseline: Float[Tensor, "*rows key"],
    form: SoftmaxForm = "log",
) -> Float[Tensor, "*rows key"]:
    """From the pattern's multiplier m to the scores'; 0 for keys that neither row attends to.

    ``"product"``: p = E R, E = e^s, R = 1 / sum(E). Product rule on E R, rescale on the reciprocal
    and on exp, the sum linear. Written out, with the row means <m> and <m>_0 under p and p0, and D
    the secant (E - E0) / (s - s0)::

        D / 2 * (R (m - <m>_0) + R0 (m - <m>))

    A constant c added to s alone changes nothing in the model, but multiplies this by up to e^c.

    ``"log"``: p = exp(s - log(sum(E))). Rescale on both exp and on the logarithm, the rest linear:
    each secant is between 0 and 1, so no multiplier exceeds the row's sum of |m|.
    """
    log_p, log_p0 = (each.log_softmax(dim=-1) for each in (scores, baseline))
    keys = torch.maximum(log_p, log_p0).exp() > 0
    return torch.where(keys, SOFTMAX[form](multiplier, scores, baseline, keys), 0.0)


def _product_form(m: Tensor, scores: Tensor, baseline: Tensor, keys: Tensor) -> Tensor:
    total, total0 = (each.logsumexp(dim=-1, keepdim=True) for each in (scores, baseline))
    from_mean, from_mean0 = (
        m - (each.softmax(dim=-1) * m).sum(dim=-1, keepdim=True) for each in (scores, baseline)
    )
    log_secant = log_secant_of_exp(scores, baseline)
    doubled = (log_secant - total).exp() * from_mean0 + (log_secant - total0).exp() * from_mean
    return doubled / 2


def _log_form(m: Tensor, scores: Tensor, baseline: Tensor, keys: Tensor) -> Tensor:
    log_p, log_p0 = (each.log_softmax(dim=-1) for each in (scores, baseline))
    to_log_p = torch.where(keys, m * log_secant_of_exp(log_p, log_p0).exp(), 0.0)
    return to_log_p - to_log_p.sum(dim=-1, keepdim=True) * log_sum_exp_multiplier(scores, baseline)


SOFTMAX = {"product": _product_form, "log": _log_form}


def soft_cap_gradient(
    multiplier: Float[Tensor, "batch ..."], capped: Float[Tensor, "pair ..."], cap: float
) -> Float[Tensor, "pair ..."]:
    """What to hand to the backward of ``y = cap tanh(x / cap)`` to get the secant at x.

    The backward multiplies by the true derivative, so this divides by it.
    """
    ratio = capped / cap
    free = ratio.abs() < 1
    x, x0 = halves(torch.where(free, cap * torch.atanh(torch.where(free, ratio, 0.0)), 0.0))
    slope = both(secant(lambda raw: cap * torch.tanh(raw / cap), x, x0))
    return torch.where(free, both(multiplier) * slope / (1 - ratio**2), 0.0)


def wide(tensor: Tensor) -> Tensor:
    """In at least float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@dataclass(frozen=True, kw_only=True)
class MeanMultiplier(Rule):
    """One multiplier for both halves at the output of every product: A.V, gate x up, c / sigma.

    What arrives came through linear maps from the factors of the products above, so the mean is
    their product rule. The scores Q.K get theirs from `SecantSoftmax`, the input from its reader.
    """

    def place(self, graph: ModelGraph) -> Iterable[Placement]:
        """At every ``hook_z``, ``hook_normalized`` and, in gated MLPs, ``mlp.hook_post``."""
        products = [site.post for site in graph.activations() if site.up is not None]
        points = [*graph.points("z"), *products, *graph.points("normalized")]
        return [Placement(point, lambda grad, tape: both(mean_of(grad))) for point in points]


@dataclass(frozen=True, kw_only=True)
class SecantSoftmax(Rule):
    """`softmax_multiplier`, and where the scores are soft-capped the secant of that too.

    Attributes:
        form: how the softmax is taken apart.
    """

    form: SoftmaxForm = "log"

    def place(self, graph: ModelGraph) -> Iterable[Placement]:
        """At every ``hook_attn_scores``."""
        if not graph.attention_in_graph:
            raise UnsupportedModelError(
                f"{graph.architecture} on {graph.backend} computes its softmax outside the "
                "autograd graph: blocks.*.attn.hook_pattern never sees a gradient, so DeepLIFT's "
                "softmax rule is impossible. Use 'integrated_gradients', or, for BERT, a "
                "HookedEncoder on transformer-lens 3.9."
            )
        for flag, what in (("use_attention_sinks", "attention sinks"), ("clip_qkv", "clipping")):
            if getattr(graph.cfg, flag, None):
                raise UnsupportedModelError(
                    f"cfg.{flag}: there is no DeepLIFT rule for {what} between queries, keys and "
                    "pattern. Use 'integrated_gradients'."
                )
        cap = graph.soft_cap("scores")
        sites = zip(graph.points("scores"), graph.points("pattern"), strict=True)
        return [self._at(scores, pattern, cap) for scores, pattern in sites]

    def _at(self, scores: Point, pattern: Point, cap: float | None) -> Placement:
        def transform(grad: Tensor, tape: Tape) -> Tensor:
            values = wide(tape.value(scores))
            from_pattern = mean_of(wide(tape.grad(pattern)))
            multiplier = softmax_multiplier(from_pattern, *halves(values), self.form)
            return both(multiplier) if cap is None else soft_cap_gradient(multiplier, values, cap)

        return Placement(scores, transform, values=(scores,), grads=(pattern,), replaces=True)


@dataclass(frozen=True, kw_only=True)
class SecantActivation(Rule):
    """The rescale rule at every activation: MLPs, gated or not, and BERT's masked-word head.

    In a gated MLP the activation is multiplied by up, whose mean is its multiplier.
    """

    def place(self, graph: ModelGraph) -> Iterable[Placement]:
        """At every activation's pre-activation; the gradient is read after the activation."""
        sites = graph.activations()
        return [self._at(site, graph.activation_function()) for site in sites]

    def absent(self, graph: ModelGraph) -> bool:
        """True for attention-only models."""
        return bool(getattr(graph.cfg, "attn_only", False))

    def _at(self, site: Activation, function: Callable[[Tensor], Tensor]) -> Placement:
        def transform(grad: Tensor, tape: Tape) -> Tensor:
            multiplier = mean_of(wide(tape.grad(site.post)))
            if site.up is not None:
                multiplier = multiplier * mean_of(wide(tape.value(site.up)))
            return both(multiplier * secant(function, *halves(wide(tape.value(site.pre)))))

        values = (site.pre,) if site.up is None else (site.pre, site.up)
        return Placement(site.pre, transform, values=values, grads=(site.post,), replaces=True)


def norm_scale_gradient(
    grad: Float[Tensor, "pair ..."], sigma: Float[Tensor, "pair ..."]
) -> Float[Tensor, "pair ..."]:
    """The gradient at sigma = sqrt(variance + eps) from which the backward makes DeepLIFT's.

    The norm is c r with c the centred input and r = 1 / sigma. What arrives, -m c / sigma^2, holds
    r's multiplier m c, to be averaged (product rule). The secant of 1 / sigma is
    -1 / (sigma sigma0), that of the square root 1 / (sigma + sigma0). The backward goes on with
    the derivative of the root, 1 / (2 sigma), so that is divided out; then with 2 c / d, whose mean
    over both halves is the product rule of c with itself.
    """
    s, s0 = halves(sigma)
    of_reciprocal = mean_of(-grad * sigma**2)
    of_variance = -of_reciprocal / (s * s0) / (s + s0)
    return both(of_variance) * 2 * sigma


@dataclass(frozen=True, kw_only=True)
class SecantNorm(Rule):
    """Reciprocal and square root in every norm by the rescale rule: `norm_scale_gradient`."""

    def place(self, graph: ModelGraph) -> Iterable[Placement]:
        """At every ``hook_scale``."""
        return [self._at(point) for point in graph.points("norm_scale")]

    def absent(self, graph: ModelGraph) -> bool:
        """True for a model built without norms."""
        return graph.cfg.normalization_type is None

    def _at(self, point: Point) -> Placement:
        def transform(grad: Tensor, tape: Tape) -> Tensor:
            return norm_scale_gradient(wide(grad), wide(tape.latest(point)))

        return Placement(point, transform, values=(point,))


def deeplift(softmax: SoftmaxForm = "log") -> RuleSet:
    """Every rule of DeepLIFT, for a batch ``[x; x0]``."""
    rules = (SecantSoftmax(form=softmax), SecantActivation(), SecantNorm(), MeanMultiplier())
    return RuleSet(rules, name="deeplift")
